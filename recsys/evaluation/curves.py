"""Curves and histograms of the evaluation report: ROC, calibration bins, scores and modality weights.

In: rows of every rank, ascending by score. Out: as many numbers as a picture shows, the same on every
rank. Called by evaluate.py of this folder; recsys/report draws them.
Shapes: N rows of a rank, P points, H bins of a histogram, M modalities.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys.metrics.calibration import CalibrationBin, bins_of
from recsys.metrics.predictions import LabelledScores

_MOST_POINTS = 400
_PIECE_ROWS = 1 << 20
SCORE_EDGES = np.linspace(0, 1, 51)
"""Bounds of the bins of scores [H + 1]."""
WEIGHT_EDGES = np.linspace(0, 1, 61)
"""Bounds of the bins of weights [H + 1]."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Shares of negatives and of positives [P]; empty where one class is absent."""


@dataclass(kw_only=True)
class Curves:
    """Distributions of the predictions of a split."""

    roc: dict[str, Curve]
    """By name: `model`, and `best possible` where the truth is known."""
    bins: list[CalibrationBin]
    score_counts_2H: NDArray[np.int64]
    """Rows by bin of SCORE_EDGES: negatives, positives."""
    weight_counts_MH: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 60), np.int64))
    """Rows by bin of WEIGHT_EDGES, by modality."""


def curves_of(rows: LabelledScores, weights_NM: NDArray[np.float32]) -> Curves:
    """Return the curves of the predictions of all ranks.

    Args:
        weights_NM: modality weights of this rank's rows.
    """
    by_class = [rows.probability_N[rows.positive_N == label] for label in (False, True)]
    scores_2H = np.stack([np.histogram(scores, SCORE_EDGES)[0] for scores in by_class])
    weights_MH = np.zeros((weights_NM.shape[1], len(WEIGHT_EDGES) - 1), np.int64)
    for index, counts_H in enumerate(weights_MH):
        counts_H[:] = np.histogram(weights_NM[:, index], WEIGHT_EDGES)[0]
    return Curves(
        roc={"model": roc_curve(rows)},
        bins=bins_of(rows),
        score_counts_2H=rows.ranks.total(scores_2H),
        weight_counts_MH=rows.ranks.total(weights_MH),
    )


def roc_curve(rows: LabelledScores) -> Curve:
    """Return the ROC curve over all ranks, thinned to what a picture can show.

    Its points are spread evenly along the curve, so that neither the steep nor the flat end is lost.
    """
    num_negatives = rows.num_rows - rows.num_positives
    if not rows.num_positives or not num_negatives:
        return np.zeros(0), np.zeros(0)
    score_N = rows.probability_N
    is_first_N = np.ones(score_N.size, bool)
    np.not_equal(score_N[1:], score_N[:-1], out=is_first_N[1:])
    num_points = rows.ranks.total(int(np.count_nonzero(is_first_N)))
    own_2P = _points(rows, is_first_N, thinned=num_points >= _MOST_POINTS)
    # Higher scores are on later ranks, and first on the curve.
    points_2P = np.concatenate([np.zeros((2, 1)), *reversed(rows.ranks.gather(own_2P))], axis=1)
    return points_2P[0], points_2P[1]


def _points(
    rows: LabelledScores, is_first_N: NDArray[np.bool_], *, thinned: bool
) -> NDArray[np.float64]:
    """Return shares of negatives and positives that score this much or more [2, P], highest first.

    Args:
        is_first_N: whether a row is the first of its group of tied scores.
        thinned: keep the first point at or beyond each of equal steps along the curve, and the last.
    """
    (rows_below, positives_below), (num_rows, num_positives) = rows.counts
    totals_2 = np.array([num_rows - num_positives, num_positives], np.int64)
    num_own = rows.positive_N.size
    own_2 = np.array([num_own - np.count_nonzero(rows.positive_N), rows.positive_N.sum()])
    below_2 = np.array([rows_below - positives_below, positives_below])
    above_2 = totals_2 - below_2 - own_2
    reached = float((above_2 / totals_2).sum())
    parts = [np.zeros((2, 0))]
    for stop in range(num_own, 0, -_PIECE_ROWS):
        piece = slice(max(0, stop - _PIECE_ROWS), stop)
        positive = rows.positive_N[piece][::-1]
        counts_2C = np.stack([np.cumsum(~positive), np.cumsum(positive)]) + above_2[:, None]
        above_2 = counts_2C[:, -1]
        points_2P = counts_2C[:, is_first_N[piece][::-1]] / totals_2[:, None]
        if thinned and points_2P.size:
            way_P = points_2P.sum(axis=0)
            steps = np.linspace(0, 2, _MOST_POINTS)
            steps = steps[(steps > reached) & (steps <= way_P[-1])]
            at = set(np.searchsorted(way_P, steps).tolist())
            if piece.start == 0 and not rows_below:
                at.add(len(way_P) - 1)
            reached = max(reached, float(way_P[-1]))
            points_2P = points_2P[:, sorted(at)]
        parts.append(points_2P)
    return np.concatenate(parts, axis=1)
