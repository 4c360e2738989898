"""Statistics of the modality weights of the user-aware fusion: how they spread, and whom they follow.

In: the weights of scored rows. Out: floats. Called by launch/evaluate.py.

Accumulation over ranks: means are sums, quantiles are found by counting, and users' means are merged.
Shapes: N rows of a rank, M modalities, U users, K quantiles.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.runtime.distributed_sort import order_statistics
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import is_known


@dataclass(frozen=True, kw_only=True)
class WeightSummary:
    """Distribution of one modality's weight over rows; nan without rows."""

    mean: float
    deviation: float
    p10: float
    median: float
    p90: float


def summarise_weights(
    weights_NM: ArrayLike, names: list[str], ranks: Ranks = ALONE
) -> dict[str, WeightSummary]:
    """Return mean, deviation and quantiles of every modality's weight over all ranks; nan without rows.

    Args:
        weights_NM: of this rank's rows.
    """
    weights = np.asarray(weights_NM)
    num_rows = ranks.total(len(weights))
    summary = {}
    for index, name in enumerate(names):
        column = np.sort(weights[:, index])
        mean = deviation = p10 = median = p90 = float("nan")
        if num_rows:
            mean = ranks.total(float(column.sum(dtype=np.float64))) / num_rows
            deviation = math.sqrt(
                ranks.total(float(np.sum((column.astype(np.float64) - mean) ** 2))) / num_rows
            )
            p10, median, p90 = _quantiles(column, np.array([0.1, 0.5, 0.9]), num_rows, ranks)
        summary[name] = WeightSummary(
            mean=mean, deviation=deviation, p10=p10, median=median, p90=p90
        )
    return summary


def _quantiles(
    sorted_N: NDArray, shares_K: NDArray[np.float64], num_rows: int, ranks: Ranks
) -> list[float]:
    """Return quantiles [K] of the values of all ranks, interpolated between two as numpy's are."""
    places_K = shares_K * (num_rows - 1)
    low_K = np.floor(places_K).astype(np.int64)
    high_K = np.minimum(low_K + 1, num_rows - 1)
    found = order_statistics(sorted_N, np.concatenate([low_K, high_K]), ranks).astype(np.float64)
    below_K, above_K = np.split(found, 2)
    return (below_K + (above_K - below_K) * (places_K - low_K)).tolist()


def mean_by_user(
    weights_NM: ArrayLike, user_rows_N: ArrayLike, ranks: Ranks = ALONE
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the users of all ranks' rows, ascending [U], and the mean weights of their rows [U, M].

    The unknown user (row 0) is nobody in particular and left out. Every rank gets the sums of all users.
    """
    weights, users = np.asarray(weights_NM, dtype=np.float64), np.asarray(user_rows_N)
    known = is_known(users)
    own_U, sums_UM, counts_U = _sums_by_user(users[known], weights[known], np.ones(known.sum()))
    parts = zip(*ranks.gather((own_U, sums_UM, counts_U)), strict=True)
    found_U, sums_UM, counts_U = _sums_by_user(*(np.concatenate(part) for part in parts))
    return found_U, sums_UM / counts_U[:, None]


def _sums_by_user(
    users_N: NDArray, values_NM: NDArray, counts_N: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Return users, ascending [U], and the sums of their values [U, M] and of their counts [U]."""
    found, code_N = np.unique(users_N, return_inverse=True)
    sums_UM = np.zeros((found.size, values_NM.shape[1]))
    np.add.at(sums_UM, code_N, values_NM)
    return found, sums_UM, np.bincount(code_N, counts_N, minlength=found.size)


def correlation(first_U: ArrayLike, second_U: ArrayLike) -> float:
    """Return Pearson's r; nan with fewer than three pairs or where one side is constant."""
    first, second = np.asarray(first_U, np.float64), np.asarray(second_U, np.float64)
    if first.size < 3 or not first.std() or not second.std():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
