"""How far an AUC would move with other users: the bootstrap over users.

In: labels, scores, user rows. Out: AUCs of resampled user sets. Called by reports and comparisons.

Rows of one user are not independent, so users are drawn, not rows. Two models compared on the same
rows with generators of the same seed see the same users: subtract their replicates for a paired
difference.

Accumulation over ranks: gather the rows on one rank, as for AUC.
Shapes: N rows, T groups of tied scores, U users, R replicates.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.metrics.auc import group_starts
from recsys.metrics.predictions import checked_predictions


def bootstrap_auc(
    labels_N: ArrayLike,
    scores_N: ArrayLike,
    user_rows_N: ArrayLike,
    *,
    num_replicates: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the AUC of each replicate [R]: U users drawn from U with replacement.

    A user drawn k times counts each of its rows k times (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, with users as the units). The scores are sorted once; a replicate costs
    O(N).

    Edge cases: nan for a replicate that lacks one of the classes; no rows give all nan.
    """
    positive, scores = checked_predictions(labels_N, scores_N)
    users, user_N = np.unique(np.asarray(user_rows_N), return_inverse=True)
    if user_N.shape != scores.shape:
        raise ValueError(
            f"user rows {user_N.shape}: expected the shape of the scores, {scores.shape}"
        )
    replicates = np.full(num_replicates, np.nan)
    if not scores.size:
        return replicates
    order = np.argsort(scores)
    positive, scores, user_N = positive[order], scores[order], user_N[order]
    starts_T = group_starts(scores[1:] != scores[:-1], scores.size)
    for replicate in range(num_replicates):
        drawn = rng.integers(users.size, size=users.size)
        weight_N = np.bincount(drawn, minlength=users.size)[user_N]
        positives_T = np.add.reduceat(weight_N * positive, starts_T)
        negatives_T = np.add.reduceat(weight_N, starts_T) - positives_T
        below_T = np.cumsum(negatives_T) - negatives_T
        num_pairs = positives_T.sum() * negatives_T.sum()
        if num_pairs:
            won_twice = (positives_T * (2 * below_T + negatives_T)).sum()
            replicates[replicate] = won_twice / (2 * num_pairs)
    return replicates


def interval(replicates_R: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval that holds `level` of the replicates.

    Replicates that are nan are left out; (nan, nan) where all are.

    Raises:
        ValueError: level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share between 0 and 1, such as 0.95")
    replicates = np.asarray(replicates_R, dtype=np.float64)
    replicates = replicates[~np.isnan(replicates)]
    if not replicates.size:
        return float("nan"), float("nan")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
