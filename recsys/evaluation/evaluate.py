"""Evaluation of a split: everything the ranks compute from the scores, as one record.

In: scores of the split, of candidates and with each input shuffled, spread over the ranks; prepared data
and, on the drawn world, its truth. Out: the result that metrics.json holds, and what the report shows
beside it. Called by launch/evaluate.py on every rank. Shapes: N rows of a rank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.curves import Curves, curves_of, roc_curve
from recsys.evaluation.data import EvaluationData
from recsys.evaluation.importance import evaluate_importance
from recsys.evaluation.interactions import Interactions
from recsys.evaluation.planted import PlantedShare, planted_shares
from recsys.evaluation.predict import Predictions, by_score, users_of
from recsys.evaluation.ranking import evaluate_candidates
from recsys.evaluation.result import EvaluationResult
from recsys.evaluation.samples import SampleUser, choose_users, sample_user
from recsys.evaluation.segments import ROW_COLUMNS, Segment, read_by_row_id, segments
from recsys.evaluation.split import RowUsers, evaluate_rows, scored_rows_of
from recsys.evaluation.two_stages import evaluate_two_stages
from recsys.metrics.bootstrap import unit_keys
from recsys.metrics.oracle import oracle_metrics, true_probabilities
from recsys.metrics.predictions import labelled_scores
from recsys.runtime.ranks import Ranks
from recsys.schema import HISTORIES


@dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """Everything that was scored."""

    predictions: Predictions
    """Rows of this rank, in any order; every row of the split is on one rank. Emptied by `evaluate`."""
    modality_names: list[str]
    """Of the columns of the weights."""
    candidates: Candidates | None = None
    """Of this rank's users; None: nobody is ranked, on any rank."""
    of_candidates: Predictions | None = None
    """Predictions of these candidates, in their order."""
    first_rows: Predictions | None = None
    """Rows of this rank that were scored with shuffled inputs, as they are; None: no importance."""
    shuffled: Mapping[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    """Scores of the same rows [N] with one input shuffled, by its kind and name."""
    id_maps: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    """Table row of every row of the vocabulary, by table, of tables with a fixed capacity."""


@dataclass(kw_only=True)
class Evaluation:
    """The result of an evaluation, and what the report shows beside it."""

    result: EvaluationResult
    predictions: Predictions
    """Rows of this rank: a range of the scores of all, ascending."""
    users: RowUsers
    """Of these rows."""
    modality_names: list[str]
    curves: Curves
    planted: dict[str, PlantedShare] = field(default_factory=dict)
    """By modality; empty where the truth is not known."""
    sample_users: list[SampleUser] = field(default_factory=list)
    vector_counts: dict[str, int] = field(default_factory=dict)
    """Items with a vector, by modality."""
    interactions: dict[str, Interactions] = field(default_factory=dict)
    """By `item` and `user`, as far as the data has them."""


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
    ranks = data.ranks
    _check_all_scored(data, ranks.total(len(scored.predictions.row_id)), config.split)
    predictions, names = by_score(scored.predictions, ranks), scored.modality_names
    # 1. All rows, kinds of items, segments.
    row_values = read_by_row_id(
        data.prepared, data.manifest, config.split, predictions.row_id, ROW_COLUMNS, ranks
    )
    users = RowUsers(
        user_row_N=users_of(predictions, data.manifest),
        unknown_user_N=row_values.get("unknown_user"),
    )
    result = evaluate_rows(
        predictions,
        users,
        segments=_segments(data, scored, predictions, row_values, config, ranks),
        item_counts=data.item_counts,
        modality_names=names,
        config=config,
        ranks=ranks,
    )
    evaluation = Evaluation(
        result=result,
        predictions=predictions,
        users=users,
        modality_names=names,
        curves=curves_of(scored_rows_of(predictions, users, ranks), predictions.weights),
        vector_counts=data.vector_counts,
        interactions=data.interactions,
    )
    # 2. The truth of the drawn world, where there is one.
    _add_truth(evaluation, data, ranks)
    # 3. Candidates: rankings, lists, and sample users of the report.
    if scored.candidates is not None and scored.of_candidates is not None:
        ranked, of_ranked = scored.candidates, scored.of_candidates
        _add_rankings(evaluation, data, ranked, of_ranked, config)
        if bundle is not None and ranked.is_full:
            histories = {name: data.histories(ranked, name) for name in HISTORIES}
            result.two_stages = evaluate_two_stages(
                ranked, of_ranked.score, bundle, histories, config, ranks
            )
    # 4. Shuffled inputs.
    if (rows := scored.first_rows) is not None:
        units_N = _units_of(data, rows, config.split)
        result.importance = evaluate_importance(rows, scored.shuffled, units_N, config, ranks)
    return evaluation


def _units_of(data: EvaluationData, predictions: Predictions, split: str) -> NDArray[np.uint64]:
    """Return the bootstrap's units of some rows [N] of a split."""
    told = read_by_row_id(
        data.prepared, data.manifest, split, predictions.row_id, ["unknown_user"], data.ranks
    )
    users_N = users_of(predictions, data.manifest)
    return unit_keys(predictions.row_id, users_N, told.get("unknown_user"))


def _segments(
    data: EvaluationData,
    scored: ScoredSplit,
    predictions: Predictions,
    row_values: Mapping[str, NDArray],
    config: EvaluateConfig,
    ranks: Ranks,
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
        user_train_count_U=None if "history_end" in row_values else data.user_train_count,
        first_time_R=data.first_time,
        id_maps=scored.id_maps,
        ranks=ranks,
    )


def _check_all_scored(data: EvaluationData, num_scored: int, split: str) -> None:
    num_rows = data.dataset.num_rows
    if num_scored == num_rows and num_rows:
        return
    remedy = (
        f"the files under {data.prepared} do not belong together; run launch/prepare.py again"
        if num_rows
        else "there is nothing to evaluate; choose another split="
    )
    raise UserError(
        f"{num_scored:,} rows were scored and the manifest counts {num_rows:,} in {split!r}: {remedy}"
    )


def _add_truth(evaluation: Evaluation, data: EvaluationData, ranks: Ranks) -> None:
    """Add the oracle's metrics, and learned weights against planted sensitivities."""
    predictions, result = evaluation.predictions, evaluation.result
    true_N = true_probabilities(data.truth / "probabilities.parquet", predictions.row_id)
    if true_N is not None:
        true_rows = labelled_scores(predictions.label, true_N, ranks=ranks)
        result.oracle = oracle_metrics(true_rows, reached_auc=result.all.value("auc"))
        evaluation.curves.roc["best possible"] = roc_curve(true_rows)
    if data.manifest.num_user_rows and predictions.weights.shape[1]:
        evaluation.planted = planted_shares(
            predictions,
            evaluation.modality_names,
            data.truth / "users.parquet",
            data.user_ids,
            ranks,
        )
        result.planted = {n: s.correlation for n, s in evaluation.planted.items()}


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
        scored.score,
        train_count_I=train_count_I,
        profile_count_U={
            user: float(train_count_I[items].mean())
            for user, items in histories.items()
            if items.size
        },
        tables=data.tables,
        config=config,
        ranks=data.ranks,
    )
    evaluation.result.rankings, evaluation.result.lists = ranked.rankings, ranked.lists
    chosen = choose_users(
        ranked.best,
        histories,
        num_users=config.sample_users,
        seed=config.seed,
        ranks=data.ranks,
    )
    own = {
        user: sample_user(
            user,
            str(data.user_ids(np.array([user]))[0]),
            candidates=candidates,
            scored=scored,
            best_K=ranked.best[user],
            history=histories.get(user, np.zeros(0, np.int64)),
            modality_names=evaluation.modality_names,
            planted=evaluation.planted,
        )
        for user in chosen
        if user in ranked.best
    }
    shown = {user: sample for part in data.ranks.gather(own) for user, sample in part.items()}
    evaluation.sample_users += [shown[user] for user in chosen]
