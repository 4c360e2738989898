"""Evaluation of a split: everything rank 0 computes from the scores, as one record.

In: scores of the split, of candidates, and with each input shuffled; prepared data and, on the drawn
world, its truth. Out: the result that metrics.json holds, and what the report shows beside it. Called by
launch/evaluate.py. Shapes: N rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.data import EvaluationData
from recsys.evaluation.importance import evaluate_importance
from recsys.evaluation.planted import PlantedShare, planted_shares
from recsys.evaluation.predict import Predictions, by_score, users_of
from recsys.evaluation.ranking import evaluate_candidates
from recsys.evaluation.result import EvaluationResult
from recsys.evaluation.samples import SampleUser, choose_users, sample_user
from recsys.evaluation.segments import ROW_COLUMNS, Segment, read_by_row_id, segments
from recsys.evaluation.split import RowUsers, evaluate_rows
from recsys.evaluation.two_stages import evaluate_two_stages
from recsys.metrics.oracle import oracle_metrics, true_probabilities


@dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """Everything that was scored."""

    predictions: Predictions
    """Every row of the split once, in any order."""
    modality_names: list[str]
    """Of the columns of the weights."""
    candidates: Candidates | None = None
    """None: nobody is ranked."""
    of_candidates: Predictions | None = None
    """Predictions of the candidates, in any order."""
    first_rows: Predictions | None = None
    """Rows that were scored with shuffled inputs, as they are; None: no importance."""
    shuffled: Mapping[tuple[str, str], Predictions] = field(default_factory=dict)
    """The same rows with one input shuffled, by its kind and name."""
    id_maps: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    """Table row of every row of the vocabulary, by table, of tables with a fixed capacity."""


@dataclass(kw_only=True)
class Evaluation:
    """The result of an evaluation, and what the report shows beside it."""

    result: EvaluationResult
    predictions: Predictions
    """Rows of the split in the order of their score."""
    users: RowUsers
    """Of these rows."""
    modality_names: list[str]
    true_probability_N: NDArray[np.float64] | None = None
    """Of these rows; None where the truth is not known."""
    planted: dict[str, PlantedShare] = field(default_factory=dict)
    """By modality; empty where the truth is not known."""
    sample_users: list[SampleUser] = field(default_factory=list)


def evaluate(
    data: EvaluationData,
    scored: ScoredSplit,
    config: EvaluateConfig,
    *,
    bundle: Path | None = None,
) -> Evaluation:
    """Return the evaluation of a split.

    Args:
        bundle: of the same checkpoint, whose candidates are compared with all items; None: no bundle.

    Raises:
        UserError: not every row was scored, once; a score is NaN.
    """
    _check_all_scored(data, scored.predictions, config.split)
    predictions, names = by_score(scored.predictions), scored.modality_names
    # 1. All rows, kinds of items, segments.
    row_values = read_by_row_id(
        data.prepared, data.manifest, config.split, predictions.row_id, ROW_COLUMNS
    )
    users = RowUsers(
        user_row_N=users_of(predictions, data.manifest),
        unknown_user_N=row_values.get("unknown_user"),
    )
    result = evaluate_rows(
        predictions,
        users,
        segments=_segments(data, scored, predictions, row_values, config),
        item_counts=data.item_counts,
        modality_names=names,
        config=config,
    )
    evaluation = Evaluation(
        result=result, predictions=predictions, users=users, modality_names=names
    )
    # 2. The truth of the drawn world, where there is one.
    _add_truth(evaluation, data)
    # 3. Candidates: rankings, lists, and sample users of the report.
    if scored.candidates is not None and scored.of_candidates is not None:
        _add_rankings(evaluation, data, scored.candidates, scored.of_candidates, config)
        if bundle is not None and scored.candidates.is_full:
            in_order = scored.of_candidates.score[np.argsort(scored.of_candidates.row_id)]
            result.two_stages = evaluate_two_stages(
                scored.candidates, in_order, bundle, data.histories(scored.candidates), config
            )
    # 4. Shuffled inputs.
    if scored.first_rows is not None:
        own = users.take(_places(predictions.row_id, scored.first_rows.row_id))
        result.importance = evaluate_importance(scored.first_rows, scored.shuffled, own, config)
    return evaluation


def _segments(
    data: EvaluationData,
    scored: ScoredSplit,
    predictions: Predictions,
    row_values: Mapping[str, NDArray],
    config: EvaluateConfig,
) -> Iterator[Segment]:
    """Return the segments of predictions; row_values: columns of their rows [N]."""
    return segments(
        prepared=data.prepared,
        manifest=data.manifest,
        row_values=row_values,
        user_row_N=predictions.user_row,
        item_row_N=predictions.item_row,
        item_counts=data.item_counts,
        has_vector=data.has_vector,
        config=config.segments,
        user_train_count_U=data.user_train_count,
        first_time_I=data.first_time,
        id_maps=scored.id_maps,
    )


def _check_all_scored(data: EvaluationData, predictions: Predictions, split: str) -> None:
    num_rows = data.dataset.num_rows
    if len(predictions.row_id) == num_rows and num_rows:
        return
    remedy = (
        f"the files under {data.prepared} do not belong together; run launch/prepare.py again"
        if num_rows
        else "there is nothing to evaluate; choose another split="
    )
    raise UserError(
        f"{len(predictions.row_id):,} rows were scored and the manifest counts {num_rows:,} in "
        f"{split!r}: {remedy}"
    )


def _add_truth(evaluation: Evaluation, data: EvaluationData) -> None:
    """Add the oracle's metrics, and learned weights against planted sensitivities."""
    predictions = evaluation.predictions
    true_N = true_probabilities(data.truth / "probabilities.parquet", predictions.row_id)
    if true_N is not None:
        evaluation.true_probability_N = true_N
        evaluation.result.oracle = oracle_metrics(
            true_N, labels_N=predictions.label, probabilities_N=predictions.score
        )
    if data.manifest.num_user_rows and predictions.weights.shape[1]:
        evaluation.planted = planted_shares(
            predictions, evaluation.modality_names, data.truth / "users.parquet", data.user_ids
        )
        evaluation.result.planted = {n: s.correlation for n, s in evaluation.planted.items()}


def _add_rankings(
    evaluation: Evaluation,
    data: EvaluationData,
    candidates: Candidates,
    scored: Predictions,
    config: EvaluateConfig,
) -> None:
    """Add rankings and lists, and the users that the report shows."""
    assert data.train_count is not None, "candidates are items"
    train_count_I, histories = data.train_count, data.histories(candidates)
    ranked = evaluate_candidates(
        candidates,
        scored,
        train_count_I=train_count_I,
        profile_count_U={
            user: float(train_count_I[items].mean())
            for user, items in histories.items()
            if items.size
        },
        tables=data.tables,
        config=config,
    )
    evaluation.result.rankings, evaluation.result.lists = ranked.rankings, ranked.lists
    in_order = scored.take(np.argsort(scored.row_id, kind="stable"))
    for user in choose_users(
        ranked.best, histories, num_users=config.sample_users, seed=config.seed
    ):
        evaluation.sample_users.append(
            sample_user(
                user,
                str(data.user_ids[user]),
                candidates=candidates,
                scored=in_order,
                best_K=ranked.best[user],
                history=histories.get(user, np.zeros(0, np.int64)),
                modality_names=evaluation.modality_names,
                planted=evaluation.planted,
            )
        )


def _places(row_id_N: NDArray[np.int64], wanted_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each wanted row is among the rows [N]; every one is there."""
    order_N = np.argsort(row_id_N, kind="stable")
    return order_N[np.searchsorted(row_id_N, wanted_N, sorter=order_N)]
