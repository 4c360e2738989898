"""Metrics of resampled sets of users: what the replicates of all metrics have in common.

In: labels, probabilities, the unit of every row and how often each unit is drawn (bootstrap.py). Out:
sums over the drawn rows, and the replicates of AUC and PR-AUC. Called by the files of the metrics.

Sums over rows are summed by unit first, so a replicate costs O(units). AUC and PR-AUC are no sums:
their rows are sorted once and read once for all replicates, in pieces, exactly and in memory of
draws + O(rows).
Shapes: N rows, T groups of tied scores, U units, R replicates, C rows of a piece.
"""

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.metrics.bootstrap import draw_units, sums_of_draws
from recsys.metrics.predictions import LabelledScores, checked_predictions, group_starts

_PIECE_ROWS = 1024


class Resamples:
    """Rows and how often each is drawn in every replicate; what several metrics need is kept."""

    def __init__(
        self,
        rows: LabelledScores,
        *,
        units_N: NDArray[np.int64],
        draws_UR: NDArray[np.uint16],
    ):
        """Args: units_N: unit of every row (`bootstrap_units`); draws_UR: of `draw_units`.

        Raises:
            UserError: units of another shape than the labels.
        """
        if units_N.shape != rows.positive_N.shape:
            raise UserError(f"units {units_N.shape}: expected the shape of the labels")
        self.rows = rows
        self.units_N = units_N
        self.draws_UR = draws_UR
        self.num_replicates = draws_UR.shape[1]

    def of_units(self, values_U: NDArray) -> NDArray[np.float64]:
        """Return the sum of the units' values over every replicate [R]."""
        return sums_of_draws(values_U, self.draws_UR)

    def sums(self, values_N: NDArray | None) -> NDArray[np.float64]:
        """Return the sum of the rows' values over every replicate [R]; None: the number of rows."""
        return self.of_units(np.bincount(self.units_N, values_N, len(self.draws_UR)))

    @functools.cached_property
    def num_rows(self) -> NDArray[np.float64]:
        """Rows of every replicate [R]."""
        return self.sums(None)

    @functools.cached_property
    def num_positives(self) -> NDArray[np.float64]:
        """Positives of every replicate [R]."""
        return self.sums(self.rows.positive_N)

    @functools.cached_property
    def ranked(self) -> dict[str, NDArray[np.float64]]:
        """Replicates [R] of `auc` and `pr_auc`, which one pass over the sorted rows counts."""
        rows = self.rows
        with np.errstate(invalid="ignore", divide="ignore"):
            return _ranked(rows.positive_N, rows.probability_N, self.units_N, self.draws_UR, True)


def bootstrap_auc(
    labels_N: ArrayLike,
    scores_N: ArrayLike,
    units_N: ArrayLike,
    *,
    num_replicates: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the AUC of each replicate [R], of any scores; equal seeds draw equal units.

    Args:
        units_N: as `bootstrap_units` returns them, or some of them.

    Edge cases: nan for a replicate that lacks one of the classes; no rows give all nan.
    """
    positive, scores = checked_predictions(labels_N, scores_N)
    if np.shape(units_N) != scores.shape:
        raise UserError(
            f"units {np.shape(units_N)}: expected the shape of the scores, {scores.shape}"
        )
    if not scores.size:
        return np.full(num_replicates, np.nan)
    found, codes_N = np.unique(np.asarray(units_N), return_inverse=True)
    draws_UR = draw_units(found.size, num_replicates, rng)
    with np.errstate(invalid="ignore"):
        return _ranked(positive, scores, codes_N, draws_UR, False)["auc"]


def _ranked(
    positive: NDArray[np.bool_],
    scores: NDArray[np.float64],
    units_N: NDArray[np.int64],
    draws_UR: NDArray[np.uint16],
    with_precision: bool,
) -> dict[str, NDArray[np.float64]]:
    """Return the replicates [R] of AUC, and of PR-AUC where it is asked for.

    The rows pass by once, lowest score first. A group of tied scores is counted when it is whole:
    what is left open at the end of a piece waits for the next.
    """
    order = np.argsort(scores, kind="stable")
    positive, scores, units_N = positive[order], scores[order], units_N[order]
    is_new_N = np.concatenate([[True], scores[1:] != scores[:-1]])
    positives_U = np.bincount(units_N[positive], minlength=len(draws_UR)).astype(np.float64)
    rows_U = np.bincount(units_N, minlength=len(draws_UR)).astype(np.float64)
    total_pos_R = sums_of_draws(positives_U, draws_UR)
    total_R = sums_of_draws(rows_U, draws_UR)
    tally = _Tally(total_pos_R, total_R - total_pos_R, with_precision)
    open_pos_1R = open_neg_1R = np.zeros((1, draws_UR.shape[1]))
    for start in range(0, scores.size, _PIECE_ROWS):
        stop = min(start + _PIECE_ROWS, scores.size)
        is_new_C, positive_C = is_new_N[start:stop], positive[start:stop, None]
        drawn_CR = draws_UR[units_N[start:stop]].astype(np.float64)
        pos_TR = drawn_CR * positive_C
        neg_TR = np.subtract(drawn_CR, pos_TR, out=drawn_CR)
        if not is_new_C.all():
            starts_T = group_starts(is_new_C[1:], stop - start)
            pos_TR = np.add.reduceat(pos_TR, starts_T, axis=0)
            neg_TR = np.add.reduceat(neg_TR, starts_T, axis=0)
        if is_new_C[0]:
            tally.count(open_pos_1R, open_neg_1R)
        else:
            pos_TR[0] += open_pos_1R[0]
            neg_TR[0] += open_neg_1R[0]
        tally.count(pos_TR[:-1], neg_TR[:-1])
        open_pos_1R, open_neg_1R = pos_TR[-1:].copy(), neg_TR[-1:].copy()
    tally.count(open_pos_1R, open_neg_1R)
    return tally.metrics()


class _Tally:
    """Running sums of a pass from the lowest score to the highest; whole numbers in float64."""

    def __init__(self, total_pos_R: NDArray, total_neg_R: NDArray, with_precision: bool):
        self.total_pos_R, self.total_neg_R = total_pos_R, total_neg_R
        self.with_precision = with_precision
        self.pos_below_R, self.neg_below_R = np.zeros_like(total_pos_R), np.zeros_like(total_pos_R)
        self.won_twice_R = np.zeros_like(total_pos_R)
        self.precision_R = np.zeros_like(total_pos_R)

    def count(self, pos_TR: NDArray, neg_TR: NDArray) -> None:
        """Count whole groups of tied scores, ascending."""
        if not len(pos_TR):
            return
        below_TR = np.cumsum(neg_TR, axis=0)
        below_TR += self.neg_below_R
        # Twice what lies below a group, and once what it ties with: up to before + up to here.
        twice_TR = 2 * below_TR - neg_TR
        self.won_twice_R += np.einsum("tr,tr->r", pos_TR, twice_TR)
        if self.with_precision:
            pos_above_TR = np.cumsum(pos_TR, axis=0)
            np.subtract(self.total_pos_R - self.pos_below_R, pos_above_TR, out=pos_above_TR)
            pos_above_TR += pos_TR
            above_TR = self.total_neg_R - below_TR
            above_TR += neg_TR
            above_TR += pos_above_TR
            np.divide(pos_above_TR, above_TR, out=pos_above_TR, where=above_TR > 0)
            self.precision_R += np.einsum("tr,tr->r", pos_TR, pos_above_TR)
            self.pos_below_R = self.pos_below_R + pos_TR.sum(axis=0)
        self.neg_below_R = below_TR[-1].copy()

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Return the replicates [R] by metric."""
        metrics = {"auc": self.won_twice_R / (2 * self.total_pos_R * self.total_neg_R)}
        if self.with_precision:
            metrics["pr_auc"] = self.precision_R / self.total_pos_R
        return metrics
