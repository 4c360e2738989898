"""Ranking of candidates: metrics by user, and metrics of the recommended lists beside accuracy.

In: candidates of this rank's users and their scores. Out: the result's rankings and lists, over the users
of all ranks, and the best candidates of this rank's. Called by evaluate.py of this folder.
Shapes: N pairs, U users, K places of a list, I items, E width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding.features.store import FeatureTable
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.result import ListResult, RankingResult, Rankings
from recsys.metrics.beyond_accuracy import (
    coverage,
    intra_list_diversity,
    novelty,
    popularity_lift,
)
from recsys.metrics.bootstrap import drawn_means, interval
from recsys.metrics.ranking import mean_over_users, ranking_by_user
from recsys.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class RankedCandidates:
    """Rankings, lists where all items were candidates, and the best candidates of this rank's users."""

    rankings: Rankings
    lists: ListResult | None
    best: dict[int, NDArray[np.int64]]
    """Numbers of pairs, best first, by user row."""


def evaluate_candidates(
    candidates: Candidates,
    score_N: NDArray[np.float64],
    *,
    train_count_I: NDArray[np.int64],
    profile_count_U: Mapping[int, float],
    tables: Mapping[str, FeatureTable],
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
) -> RankedCandidates:
    """Return ranking and list metrics over the users of all ranks, and this rank's best candidates.

    Args:
        score_N: of every candidate of this rank.
        train_count_I: training rows by item row.
        profile_count_U: mean training rows of the items of a user's history, by user row.
        tables: item vectors by modality; only those of recommended items are read.
    """
    users_N, relevant_N = candidates.user_row_N, candidates.relevant_N
    chance_2N = _chance(users_N, config.seed)
    drawn_N = _drawn_candidates(candidates, config.ranking.num_negatives, chance_2N[0])
    sampled = _ranking(
        relevant_N[drawn_N],
        score_N[drawn_N],
        users_N[drawn_N],
        f"positives and {config.ranking.num_negatives} drawn items",
        config,
        ranks,
    )
    best = _best(users_N, score_N, max(config.ranking.ks), chance_2N[1])
    full, lists = None, None
    if candidates.is_full:
        said = "all items the user had not seen"
        full = _ranking(relevant_N, score_N, users_N, said, config, ranks)
        lists_UK = _lists(candidates, best, min(config.ranking.ks))
        profile_U = np.array([profile_count_U.get(user, np.nan) for user in best])
        lists = _evaluate_lists(lists_UK, train_count_I, profile_U, tables, ranks)
    return RankedCandidates(
        rankings=Rankings(num_users=ranks.total(candidates.users.size), sampled=sampled, full=full),
        lists=lists,
        best=best,
    )


def _chance(users_N: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return two random numbers for every candidate [2, N]; a user's do not depend on other users."""
    users, counts = np.unique(users_N, return_counts=True)
    parts = [
        # A stream beside the one that draws the user's candidates.
        np.random.default_rng([seed, user, 1]).random((2, count))
        for user, count in zip(users.tolist(), counts.tolist(), strict=True)
    ]
    return np.concatenate([np.zeros((2, 0)), *parts], axis=1)


def _best(
    users_N: NDArray[np.int64], score_N: NDArray[np.float64], k: int, chance_N: NDArray[np.float64]
) -> dict[int, NDArray[np.int64]]:
    """Return the numbers of every user's k best pairs, by user row."""
    # Ties are broken by chance, not by the order of the items.
    order_N = np.lexsort((chance_N, -score_N, users_N))
    users, starts = np.unique(users_N, return_index=True)
    parts = np.split(order_N, starts[1:]) if users.size else []
    return {int(user): part[:k] for user, part in zip(users, parts, strict=True)}


def _lists(
    candidates: Candidates, best: Mapping[int, NDArray[np.int64]], k: int
) -> NDArray[np.int64]:
    """Return the recommended item rows [U, K]; -1 where a list is shorter."""
    lists_UK = np.full((len(best), k), -1)
    for line, pairs in zip(lists_UK, best.values(), strict=True):
        line[: len(pairs[:k])] = candidates.item_row_N[pairs[:k]]
    return lists_UK


def _evaluate_lists(
    lists_UK: NDArray[np.int64],
    train_count_I: NDArray[np.int64],
    profile_mean_U: NDArray[np.float64],
    tables: Mapping[str, FeatureTable],
    ranks: Ranks,
) -> ListResult:
    values = {
        "coverage": coverage(lists_UK, num_item_rows=len(train_count_I), ranks=ranks),
        "novelty": novelty(lists_UK, count_I=train_count_I, ranks=ranks),
        "popularity_lift": popularity_lift(
            lists_UK, count_I=train_count_I, profile_mean_U=profile_mean_U, ranks=ranks
        ),
    }
    items = np.unique(lists_UK[lists_UK > 0])
    # Numbered anew, row 0 first, so that the vectors of these items alone are read.
    places_UK = np.where(lists_UK > 0, np.searchsorted(items, lists_UK) + 1, -1)
    for name, table in tables.items():
        parts = [table.read(row, row + 1) for row in (0, *items.tolist())]
        vectors_IE = np.concatenate(parts)
        values[f"diversity_{name}"] = intra_list_diversity(
            places_UK, vectors_IE=vectors_IE, ranks=ranks
        )
    return ListResult(k=lists_UK.shape[1], values=values)


def _drawn_candidates(
    candidates: Candidates, num_negatives: int, chance_N: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the numbers [P] of all relevant pairs and of so many others of each user."""
    if not candidates.is_full or not candidates.user_row_N.size:
        return np.arange(candidates.user_row_N.size)
    luck_N = np.where(candidates.relevant_N, -1.0, chance_N)
    order = np.lexsort((luck_N, candidates.user_row_N))
    users = candidates.user_row_N[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(users)) + 1])
    lengths = np.diff(starts, append=users.size)
    place = np.arange(users.size) - np.repeat(starts, lengths)
    num_relevant = np.add.reduceat(candidates.relevant_N[order], starts, dtype=np.int64)
    return order[place < np.repeat(num_relevant, lengths) + num_negatives]


def _ranking(
    relevant_N: NDArray[np.bool_],
    score_N: NDArray[np.float64],
    users_N: NDArray[np.int64],
    candidates: str,
    config: EvaluateConfig,
    ranks: Ranks,
) -> RankingResult:
    """Return the means over users, and their intervals over resampled users."""
    users_U, values = ranking_by_user(relevant_N, score_N, users_N, ks=config.ranking.ks)
    return RankingResult(
        values={name: mean_over_users(of_users, ranks) for name, of_users in values.items()},
        intervals=intervals_over_users(values, users_U, config, ranks),
        candidates=candidates,
    )


def intervals_over_users(
    values: Mapping[str, NDArray[np.float64]],
    users_U: NDArray[np.int64],
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
) -> dict[str, tuple[float, float]]:
    """Return the intervals of means over resampled users of all ranks, of values by user [U] and name."""
    drawn = config.bootstrap
    return {
        name: interval(
            drawn_means(
                of_users,
                users_U,
                num_replicates=drawn.num_replicates,
                seed=config.seed,
                ranks=ranks,
            ),
            level=drawn.level,
        )
        for name, of_users in values.items()
    }
