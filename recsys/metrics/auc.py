"""AUC and per-user AUC (GAUC), exact, ties included.

In: labels, scores and user rows of all examples. Out: one float. Called by comparisons, exports and the
sums of evaluations.

Accumulation over ranks: neither metric is a sum over rows. row_sums.py adds up won pairs over ranks that
each have a range of the scores, and the users' own AUCs over ranks that each have all rows of theirs.
Shapes: N rows, T groups of tied scores, U users.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.metrics.predictions import checked_predictions, group_starts
from recsys.schema import is_known


def auc(labels_N: ArrayLike, scores_N: ArrayLike) -> float:
    """Return the share of (positive, negative) pairs in which the positive scores higher.

    AUC = (pairs won + pairs tied / 2) / (positives * negatives), the Mann-Whitney statistic
    (Hanley and McNeil, Radiology 143, 1982). The pairs are counted in integers, so the result is
    exact up to one division. O(N log N).

    Edge cases: nan where one of the two classes is absent (no rows included).
    """
    positive, scores = checked_predictions(labels_N, scores_N)
    order = np.argsort(scores, kind="stable")
    scores, positive = scores[order], positive[order]
    starts_T = group_starts(scores[1:] != scores[:-1], scores.size)
    won_twice, num_positives, num_negatives = _pairs(positive, starts_T)
    num_pairs = int(num_positives.sum()) * int(num_negatives.sum())
    return int(won_twice.sum()) / (2 * num_pairs) if num_pairs else float("nan")


def gauc(labels_N: ArrayLike, scores_N: ArrayLike, user_rows_N: ArrayLike) -> float:
    """Return the mean of the users' own AUCs, each weighted by the user's rows.

    GAUC = sum_u n_u AUC_u / sum_u n_u over users u with both classes, n_u rows of u
    (Zhu et al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017). It asks how well
    each user's rows are ordered among themselves; a score that depends on the user alone gets 0.5.
    One sort, no loop over users.

    Edge cases: users with one class only are left out, and so are the rows of unknown users (row 0),
    who are many users and not one; nan where no user has both classes.
    """
    users_U, auc_U, rows_U = auc_by_user(labels_N, scores_N, user_rows_N)
    auc_U, rows_U = auc_U[is_known(users_U)], rows_U[is_known(users_U)]
    both_U = ~np.isnan(auc_U)
    if not both_U.any():
        return float("nan")
    return float(np.average(auc_U[both_U], weights=rows_U[both_U]))


def auc_by_user(
    labels_N: ArrayLike, scores_N: ArrayLike, user_rows_N: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return users, ascending [U], the AUC of each one's rows [U], and how many rows that are [U].

    Edge cases: nan for a user with one class only; empty arrays without rows.
    """
    positive, scores = checked_predictions(labels_N, scores_N)
    users = np.asarray(user_rows_N)
    if users.shape != scores.shape:
        raise UserError(
            f"user rows {users.shape}: expected the shape of the scores, {scores.shape}"
        )
    if not scores.size:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)
    order = np.lexsort((scores, users))
    positive, scores, users = positive[order], scores[order], users[order]
    new_user = users[1:] != users[:-1]
    starts_T = group_starts(new_user | (scores[1:] != scores[:-1]), scores.size)
    starts_U = group_starts(new_user, scores.size)
    # Every user begins a group of tied scores; its position among the groups:
    first_group_U = np.searchsorted(starts_T, starts_U)
    won_twice, num_positives, num_negatives = _pairs(positive, starts_T, first_group_U)
    won_twice_U = np.add.reduceat(won_twice, first_group_U)
    num_positives_U = np.add.reduceat(num_positives, first_group_U)
    num_negatives_U = np.add.reduceat(num_negatives, first_group_U)
    pairs_U = num_positives_U * num_negatives_U
    auc_U = np.full(starts_U.size, np.nan)
    np.divide(won_twice_U, 2 * pairs_U, out=auc_U, where=pairs_U > 0)
    return users[starts_U], auc_U, num_positives_U + num_negatives_U


def _pairs(
    positive: NDArray[np.bool_],
    starts_T: NDArray[np.int64],
    first_group_U: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count per group of tied scores [T]: twice the pairs its positives win, positives, negatives.

    `first_group_U` are the groups at which the counting begins anew (the users).
    """
    if not starts_T.size:
        return (np.zeros(0, np.int64),) * 3
    num_positives = np.add.reduceat(positive, starts_T, dtype=np.int64)
    num_negatives = np.diff(starts_T, append=positive.size) - num_positives
    negatives_below = np.cumsum(num_negatives) - num_negatives
    if first_group_U is not None:
        groups_U = np.diff(first_group_U, append=starts_T.size)
        negatives_below -= np.repeat(negatives_below[first_group_U], groups_U)
    return num_positives * (2 * negatives_below + num_negatives), num_positives, num_negatives
