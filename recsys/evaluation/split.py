"""Metrics of a split's predictions: over all rows with intervals, by kind of item, by segment.

In: predictions of the split, on every rank a range of their scores, and masks of its rows. Out: the first
parts of the result, the same on every rank. Called by evaluate.py of this folder.
Shapes: N rows of a rank, M modalities.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.predict import Predictions
from recsys.evaluation.result import EvaluationResult, SegmentResult, UnknownUsers
from recsys.evaluation.segments import ItemCounts, Segment
from recsys.metrics.bootstrap import interval, unit_keys
from recsys.metrics.formulas import auc_of
from recsys.metrics.predictions import LabelledScores, checked_probabilities
from recsys.metrics.row_sums import RowSums
from recsys.metrics.summary import evaluate_rows_of, intervals, too_small
from recsys.metrics.weights import summarise_weights
from recsys.runtime.ranks import ALONE, Ranks
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

    def units(self, row_id_N: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the key of the bootstrap's unit of every row [N]."""
        return unit_keys(row_id_N, self.user_row_N, self.unknown_user_N)


def scored_rows_of(predictions: Predictions, users: RowUsers, ranks: Ranks) -> LabelledScores:
    """Return predictions in the order of their scores (`by_score`) as the metrics take them."""
    positive_N, probability_N = checked_probabilities(predictions.label, predictions.score)
    return LabelledScores(
        positive_N=positive_N,
        probability_N=probability_N,
        user_row_N=users.user_row_N,
        unit_N=users.units(predictions.row_id),
        ranks=ranks,
    )


def evaluate_rows(
    predictions: Predictions,
    users: RowUsers,
    *,
    segments: Iterable[Segment],
    item_counts: ItemCounts | None,
    modality_names: list[str],
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
) -> EvaluationResult:
    """Return metrics over all rows with their intervals, and over every segment; mean weights too.

    Args:
        predictions: of this rank, in the order of the scores of all ranks (`by_score`).
        segments: of these rows; the same ones on every rank.
        item_counts: None where there are no items.
        modality_names: of the columns of `predictions.weights` [N, M].
    """
    rows = scored_rows_of(predictions, users, ranks)
    whole = RowSums(rows)
    result = EvaluationResult(
        all=evaluate_rows_of(rows, whole),
        intervals=intervals(
            whole,
            num_replicates=config.bootstrap.num_replicates,
            level=config.bootstrap.level,
            seed=config.seed,
        ),
        unknown_users=_unknown_users(users, rows),
    )
    if item_counts is not None:
        for kind, mask_N in item_counts.kinds(predictions.item_row).items():
            result.by_item_kind[kind] = evaluate_rows_of(rows.where(mask_N))
    for segment in segments:
        result.segments.setdefault(segment.family, {})[segment.name] = _evaluate_segment(
            rows, predictions.weights, segment.mask_N, modality_names, config
        )
    if predictions.weights.shape[1]:
        result.weights = summarise_weights(predictions.weights, modality_names, ranks)
    return result


def _unknown_users(users: RowUsers, rows: LabelledScores) -> UnknownUsers | None:
    """Count the rows of users whom the vocabulary does not know, and these users where it is known."""
    if users.user_row_N is None or rows.unit_N is None:
        return None
    is_unknown_N = ~is_known(users.user_row_N)
    num_rows = rows.ranks.total(int(np.count_nonzero(is_unknown_N)))
    is_told = users.unknown_user_N is not None or not num_rows
    return UnknownUsers(
        num_rows=num_rows,
        num_users=rows.ranks.num_distinct(rows.unit_N[is_unknown_N]) if is_told else None,
    )


def _evaluate_segment(
    rows: LabelledScores,
    weights_NM: NDArray[np.float32],
    mask_N: NDArray[np.bool_],
    modality_names: list[str],
    config: EvaluateConfig,
) -> SegmentResult:
    """Return a segment's metrics, or its counts and why it has none."""
    part = rows.where(mask_N)
    num_rows, num_positives = part.num_rows, part.num_positives
    weights: dict[str, float] = {}
    if weights_NM.shape[1] and num_rows:
        sums_M = rows.ranks.total(weights_NM[mask_N].sum(axis=0, dtype=np.float64))
        weights = dict(zip(modality_names, (sums_M / num_rows).tolist(), strict=True))
    note = too_small(
        num_rows,
        num_positives,
        min_rows=config.segments.min_rows,
        min_of_each_class=config.segments.min_of_each_class,
    )
    metrics, auc_interval = None, None
    if not note:
        metrics = evaluate_rows_of(part)
        if rows.user_row_N is not None and num_rows <= _INTERVAL_ROWS:
            drawn = RowSums(
                part,
                num_replicates=config.bootstrap.num_replicates,
                seed=config.seed,
                only_order=True,
            )
            auc_interval = interval(auc_of(drawn), level=config.bootstrap.level)
    return SegmentResult(
        num_rows=num_rows,
        num_positives=num_positives,
        metrics=metrics,
        note=note,
        auc_interval=auc_interval,
        weights=weights,
    )
