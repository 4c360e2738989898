"""Evaluation of the two stages of serving: candidates of the run's bundle, ranked by the run.

In: candidates that were scored in full (every item a user had not seen) and the bundle that
launch/export.py made of the same checkpoint. Out: how many of the best items are among the bundle's
candidates, and the ranking metrics of the whole pipeline. Called by evaluate.py of this folder.
Shapes: N pairs and U users of a rank, V rows of a feature, T items of a history.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.scorer import Profile
from recsys.bundle.spec import read_spec
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.ranking import intervals_over_users
from recsys.evaluation.result import TwoStageResult
from recsys.metrics.ranking import mean_over_users, ranking_by_user
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import UNKNOWN_ROW, weights_column
from recsys.serving.recall import recall_of
from recsys.serving.recommender import Recommender
from recsys.serving.routes import Wanted
from recsys.serving.visitors import Visitor

NUM_CANDIDATES = 500
"""Candidates of every user: what a request gets where it does not say."""
_BATCH_USERS = 16


def bundle_of(workspace: Path, run: str, checkpoint: Path) -> Path | None:
    """Return the newest bundle of a run's checkpoint (step-00000012); None where there is none."""
    step, found = int(checkpoint.name.removeprefix("step-")), []
    for folder in sorted((workspace / "bundles").glob(f"{run}-{step}-*")):
        if (folder / "bundle.json").is_file():
            spec = read_spec(folder)
            if (spec.run, spec.step) == (run, step):
                found.append((spec.created, folder))
    return max(found)[1] if found else None


def evaluate_two_stages(
    candidates: Candidates,
    score_N: NDArray[np.float64],
    bundle: Path,
    histories: Mapping[str, Mapping[int, NDArray[np.int64]]],
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
) -> TwoStageResult:
    """Return the recall of the bundle's candidates and the metrics of the pipeline, over all users.

    Args:
        candidates: all items that each user of this rank had not seen.
        score_N: of every pair, by the run.
        bundle: of the same checkpoint; opened by every rank.
        histories: item rows [T] of each user before, by sequence of HISTORIES and user row.
    """
    k = max(config.ranking.ks)
    with sharing_errors():
        recalls, retrieved_N = _retrieved(candidates, score_N, bundle, histories, k)
    # An item that was not retrieved comes after all that were.
    users, values = ranking_by_user(
        candidates.relevant_N,
        np.where(retrieved_N, score_N, -np.inf),
        candidates.user_row_N,
        ks=config.ranking.ks,
    )
    by_user = {"candidate_recall": recalls, **values}
    return TwoStageResult(
        bundle=bundle.name,
        num_candidates=NUM_CANDIDATES,
        k=k,
        values={name: mean_over_users(of_users, ranks) for name, of_users in by_user.items()},
        intervals=intervals_over_users(by_user, users, config, ranks),
    )


def _retrieved(
    candidates: Candidates,
    score_N: NDArray[np.float64],
    bundle: Path,
    histories: Mapping[str, Mapping[int, NDArray[np.int64]]],
    k: int,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the recall of the bundle's candidates by user [U], and which pairs are among them [N]."""
    users, starts_U = np.unique(candidates.user_row_N, return_index=True)
    retrieved_N = np.zeros(len(score_N), bool)
    recalls: list[float] = []
    if not users.size:
        return np.array(recalls), retrieved_N
    parts = [slice(a, b) for a, b in zip(starts_U, [*starts_U[1:], len(score_N)], strict=True)]
    recommender = Recommender.open(bundle)
    for first in range(0, len(users), _BATCH_USERS):
        batch = parts[first : first + _BATCH_USERS]
        wanted = [_wanted(recommender, candidates, part, histories) for part in batch]
        for part, found in zip(batch, recommender.candidates(wanted), strict=True):
            items_C = candidates.item_row_N[part]
            retrieved_N[part] = np.isin(items_C, found.rows_C)
            best_K = items_C[np.argsort(-score_N[part], kind="stable")[:k]]
            recalls.append(recall_of(best_K, found.rows_C))
    return np.array(recalls), retrieved_N


def _wanted(
    recommender: Recommender,
    candidates: Candidates,
    part: slice,
    histories: Mapping[str, Mapping[int, NDArray[np.int64]]],
) -> Wanted:
    """Return what is asked of the bundle for one user, with the template's context and histories [T]."""
    bundle, user_row = recommender.bundle, int(candidates.user_row_N[part.start])
    row = candidates.templates.slice(int(candidates.template_N[part.start]), 1)
    context: dict[str, NDArray] = {
        feature.name: np.atleast_1d(np.asarray(row.column(feature.name)[0].as_py(), np.int64))
        for feature in bundle.spec.manifest.features
        if feature.source == "interaction" and feature.name in row.column_names
    }
    context |= {
        feature.name: row.column(feature.name).to_numpy()
        for feature in bundle.spec.manifest.dense
        if feature.source == "interaction" and feature.name in row.column_names
    }
    weights = {
        feature.name: np.asarray(row.column(weights_column(feature.name))[0].as_py(), np.float32)
        for feature in bundle.spec.manifest.features
        if feature.is_weighted and weights_column(feature.name) in row.column_names
    }
    seen = np.setdiff1d(np.arange(len(bundle.items)), candidates.item_row_N[part])
    history = histories.get("history", {}).get(user_row)
    if history is None:
        # A model that reads no history: what the bundle stores, less what came after the template.
        stored = bundle.users.history(user_row)
        history = stored[np.isin(stored, seen)]
    return Wanted(
        visitor=Visitor(
            profile=Profile(
                user_row=user_row,
                features=context,
                weights=weights,
                history=history,
                negatives=histories.get("history_negative", {}).get(user_row),
            ),
            likes=history[history != UNKNOWN_ROW],
            seen=seen,
            unknown_likes=[],
            known_user=True,
            dials=None,
        ),
        size=NUM_CANDIDATES,
        excluded=seen,
        allowed=None,
    )
