"""Metrics of a split's predictions: over all rows with intervals, by kind of item, by segment.

In: predictions of the split and masks of its rows. Out: the first parts of the result. Called by
evaluate.py of this folder. Shapes: N rows, M modalities.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.predict import Predictions
from recsys.evaluation.result import EvaluationResult, SegmentResult, UnknownUsers
from recsys.evaluation.segments import ItemCounts, Segment
from recsys.metrics.bootstrap import bootstrap_units, interval
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.resamples import bootstrap_auc
from recsys.metrics.summary import evaluate_predictions, evaluate_rows_of, intervals, too_small
from recsys.metrics.weights import summarise_weights
from recsys.schema import is_known

_INTERVAL_ROWS = 500_000
"""Segments of more rows get no interval of their own: it would be narrower than a mark."""


@dataclass(frozen=True, kw_only=True)
class RowUsers:
    """The user of every row, as the bootstrap tells users apart."""

    user_row_N: NDArray[np.int64] | None
    """0: a user that the vocabulary does not know; None where there are no users."""
    unknown_user_N: NDArray[np.uint64] | None
    """A hash of the user's id where the user row is 0; None: not known, such rows are units of their
    own."""

    def units(self, num_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the bootstrap's unit of every row [N]."""
        return bootstrap_units(self.user_row_N, num_rows, rng, unknown_users_N=self.unknown_user_N)

    def take(self, order_N: NDArray[np.int64]) -> "RowUsers":
        """Return the rows `order_N` [N]."""
        users_N, unknown_N = self.user_row_N, self.unknown_user_N
        return RowUsers(
            user_row_N=None if users_N is None else users_N[order_N],
            unknown_user_N=None if unknown_N is None else unknown_N[order_N],
        )


def evaluate_rows(
    predictions: Predictions,
    users: RowUsers,
    *,
    segments: Iterable[Segment],
    item_counts: ItemCounts | None,
    modality_names: list[str],
    config: EvaluateConfig,
) -> EvaluationResult:
    """Return metrics over all rows with their intervals, and over every segment; mean weights too.

    Args:
        predictions: sorted by score (`by_score`), else it takes longer.
        item_counts: None where there are no items.
        modality_names: of the columns of `predictions.weights` [N, M].
    """
    rows = labelled_scores(predictions.label, predictions.score, users.user_row_N)
    rng = np.random.default_rng(config.seed)
    units_N = users.units(len(predictions.label), rng)
    result = EvaluationResult(
        all=evaluate_rows_of(rows),
        intervals=intervals(
            rows,
            units_N=units_N,
            num_replicates=config.bootstrap.num_replicates,
            level=config.bootstrap.level,
            rng=rng,
        ),
        unknown_users=_unknown_users(users, units_N),
    )
    if item_counts is not None:
        for kind, mask_N in item_counts.kinds(predictions.item_row).items():
            result.by_item_kind[kind] = evaluate_rows_of(rows, mask_N)
    for segment in segments:
        result.segments.setdefault(segment.family, {})[segment.name] = _evaluate_segment(
            predictions, users.user_row_N, units_N, segment.mask_N, modality_names, config
        )
    if predictions.weights.shape[1]:
        result.weights = summarise_weights(predictions.weights, modality_names)
    return result


def _unknown_users(users: RowUsers, units_N: NDArray[np.int64]) -> UnknownUsers | None:
    """Count the rows of users whom the vocabulary does not know, and these users where it is known."""
    if users.user_row_N is None:
        return None
    is_unknown_N = ~is_known(users.user_row_N)
    is_told = users.unknown_user_N is not None or not is_unknown_N.any()
    return UnknownUsers(
        num_rows=int(np.count_nonzero(is_unknown_N)),
        num_users=int(np.unique(units_N[is_unknown_N]).size) if is_told else None,
    )


def _evaluate_segment(
    predictions: Predictions,
    users_N: NDArray[np.int64] | None,
    units_N: NDArray[np.int64],
    mask_N: NDArray[np.bool_],
    modality_names: list[str],
    config: EvaluateConfig,
) -> SegmentResult:
    """Return a segment's metrics, or its counts and why it has none."""
    labels, scores = predictions.label[mask_N], predictions.score[mask_N]
    num_rows, num_positives = labels.size, int(labels.sum())
    weights: dict[str, float] = {}
    if predictions.weights.shape[1] and num_rows:
        means = predictions.weights[mask_N].mean(axis=0, dtype=np.float64)
        weights = dict(zip(modality_names, means.tolist(), strict=True))
    note = too_small(
        num_rows,
        num_positives,
        min_rows=config.segments.min_rows,
        min_of_each_class=config.segments.min_of_each_class,
    )
    metrics, auc_interval = None, None
    if not note:
        own_users = None if users_N is None else users_N[mask_N]
        metrics = evaluate_predictions(
            labels_N=labels, probabilities_N=scores, user_rows_N=own_users
        )
        if own_users is not None and num_rows <= _INTERVAL_ROWS:
            replicates = bootstrap_auc(
                labels,
                scores,
                units_N[mask_N],
                num_replicates=config.bootstrap.num_replicates,
                rng=np.random.default_rng(config.seed),
            )
            auc_interval = interval(replicates, level=config.bootstrap.level)
    return SegmentResult(
        num_rows=num_rows,
        num_positives=num_positives,
        metrics=metrics,
        note=note,
        auc_interval=auc_interval,
        weights=weights,
    )
