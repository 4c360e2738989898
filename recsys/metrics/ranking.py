"""Ranking metrics of each user: Recall@K, NDCG@K, hit rate@K, MRR.

In: candidates of many users as flat rows (user, relevant or not, score). Out: one value per user;
their mean is the metric. Called by launch/evaluate.py.

The value depends on the candidate set. Full: every item of the catalogue; sampled: the
relevant items among some drawn ones, which is cheaper, flatters, and may even order two models
otherwise than the full set does (Krichene and Rendle, On Sampled Metrics for Item Recommendation, KDD
2020). Never compare numbers of different candidate sets.

Ties: every metric is its mean over all orders of the candidates that tie, so a model that scores
everything equally gets what a shuffled list would, not a perfect or an empty one (McSherry and
Najork, ECIR 2008).

Accumulation over ranks: metrics are means over users, whose sums and counts are added up; a user's
candidates must lie on one rank.
Shapes: N candidates of all users, U users, T groups of tied candidates.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from recsys.errors import UserError
from recsys.metrics.predictions import checked_predictions, group_starts
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import is_known


def ranking_by_user(
    relevant_N: ArrayLike, scores_N: ArrayLike, user_rows_N: ArrayLike, *, ks: Sequence[int]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Return the users, ascending [U], and their metrics [U] by name.

    With rel_i 1 where the candidate at position i (from 1) is relevant, and n relevant in all:

        recall@K = sum_{i <= K} rel_i / n            ndcg@K = DCG@K / ideal DCG@K
        hit_rate@K = 1 where any rel_i, i <= K       DCG@K = sum_{i <= K} rel_i / log2(i + 1)
        mrr = 1 / (position of the first relevant)

    Edge cases: users without a relevant candidate have no value and are left out, and so is the
    unknown user 0, who is many; K larger than a user's candidates counts all of them; no rows give no
    users.

    Raises:
        UserError: a K below 1; NaN scores; arrays of different shapes.
    """
    if any(k < 1 for k in ks):
        raise UserError(f"ks={list(ks)}: expected lengths of 1 or more")
    relevant, scores = checked_predictions(relevant_N, scores_N)
    users = np.asarray(user_rows_N)
    if users.shape != scores.shape:
        raise UserError(
            f"user rows {users.shape}: expected the shape of the scores, {scores.shape}"
        )
    keep = is_known(users) & np.isin(users, np.unique(users[relevant]))
    relevant, scores, users = relevant[keep], scores[keep], users[keep]
    order = np.lexsort((-scores, users))
    relevant, scores, users = relevant[order], scores[order], users[order]
    new_user = users[1:] != users[:-1]
    starts_U = group_starts(new_user, users.size)
    if not users.size:
        names = [f"{m}@{k}" for m in ("recall", "ndcg", "hit_rate") for k in ks] + ["mrr"]
        return users[:0].astype(np.int64), {name: np.zeros(0) for name in names}
    position_N = _since(starts_U, users.size) + 1
    starts_T = group_starts(new_user | (scores[1:] != scores[:-1]), users.size)
    tied_T = np.diff(starts_T, append=users.size)
    relevant_T = np.add.reduceat(relevant, starts_T, dtype=np.int64)
    group_N = np.repeat(np.arange(starts_T.size), tied_T)
    # A candidate among n ties of which r are relevant is relevant with probability r / n.
    share_N = (relevant_T / tied_T)[group_N]
    relevant_U = np.add.reduceat(relevant, starts_U, dtype=np.int64)
    found: dict[str, NDArray[np.float64]] = {}
    gain_N = share_N / np.log2(position_N + 1)
    ideal = np.cumsum(1 / np.log2(np.arange(int(relevant_U.max())) + 2))
    for k in ks:
        within = position_N <= k
        found[f"recall@{k}"] = np.add.reduceat(share_N * within, starts_U) / relevant_U
    for k in ks:
        within = position_N <= k
        best_U = ideal[np.minimum(relevant_U, k) - 1]
        found[f"ndcg@{k}"] = np.add.reduceat(gain_N * within, starts_U) / best_U
    # The group of ties that holds a user's first relevant candidates decides hit rate and MRR.
    first_T = np.flatnonzero(relevant_T)
    _, at = np.unique(users[starts_T[first_T]], return_index=True)
    first_U = first_T[at]
    before_U = position_N[starts_T[first_U]] - 1
    found |= _of_first_group(tied_T[first_U], relevant_T[first_U], before_U, ks)
    return users[starts_U].astype(np.int64), found


def _of_first_group(
    n_U: NDArray[np.int64], r_U: NDArray[np.int64], before_U: NDArray[np.int64], ks: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Return hit rates and MRR [U] by name.

    Args:
        n_U, r_U: candidates and relevant ones in the group of ties with a user's first relevant one.
        before_U: candidates ranked before that group.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        # Places of the group within K; none of r is among them with probability C(n-m, r) / C(n, r).
        m_U = np.clip(k - before_U, 0, n_U)
        missed = np.exp(_log_choose(n_U - m_U, r_U) - _log_choose(n_U, r_U))
        found[f"hit_rate@{k}"] = np.where(m_U > 0, 1 - missed, 0.0)
    found["mrr"] = _reciprocal_rank(n_U, r_U, before_U)
    return found


def _since(starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return each row's distance from the start of its group [N]; `starts` [U] are ascending."""
    return np.arange(size) - np.repeat(starts, np.diff(starts, append=size))


def _log_choose(n: NDArray[np.int64], r: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return ln C(n, r), elementwise [U]; minus infinity where r > n."""
    fits = n >= r
    n = np.maximum(n, r)
    return np.where(fits, gammaln(n + 1) - gammaln(r + 1) - gammaln(n - r + 1), -np.inf)


def _reciprocal_rank(
    n_U: NDArray[np.int64], r_U: NDArray[np.int64], before_U: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean of 1 / (position of the first of r among n tied, `before` of others first).

    The first lies at place j with probability C(n - j, r - 1) / C(n, r), j = 1 .. n - r + 1.
    """
    places_U = n_U - r_U + 1
    starts_U = np.cumsum(places_U) - places_U
    j = _since(starts_U, int(places_U.sum())) + 1
    n, r, before = (np.repeat(x, places_U) for x in (n_U, r_U, before_U))
    probability = np.exp(_log_choose(n - j, r - 1) - _log_choose(n, r))
    return np.add.reduceat(probability / (before + j), starts_U)


def mean_over_users(values_U: NDArray[np.float64], ranks: Ranks = ALONE) -> float:
    """Return the mean over the users [U] of all ranks; nan without users."""
    total, count = ranks.total(np.array([values_U.sum(), values_U.size]))
    return float(total / count) if count else float("nan")
