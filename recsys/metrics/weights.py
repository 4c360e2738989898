"""Statistics of the modality weights of the user-aware fusion: how they spread, and whom they follow.

In: the weights of scored rows. Out: floats. Called by launch/evaluate.py.

Accumulation over ranks: gather the rows on one rank.
Shapes: N rows, M modalities, U users.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.schema import is_known


@dataclass(frozen=True, kw_only=True)
class WeightSummary:
    """Distribution of one modality's weight over rows; nan without rows."""

    mean: float
    deviation: float
    p10: float
    median: float
    p90: float


def summarise_weights(weights_NM: ArrayLike, names: list[str]) -> dict[str, WeightSummary]:
    """Return mean, deviation and quantiles of every modality's weight; nan without rows."""
    weights = np.asarray(weights_NM, dtype=np.float64)
    summary = {}
    for index, name in enumerate(names):
        column = weights[:, index]
        mean = deviation = p10 = median = p90 = float("nan")
        if column.size:
            mean, deviation = float(column.mean()), float(column.std())
            p10, median, p90 = (float(q) for q in np.quantile(column, [0.1, 0.5, 0.9]))
        summary[name] = WeightSummary(
            mean=mean, deviation=deviation, p10=p10, median=median, p90=p90
        )
    return summary


def mean_by_user(
    weights_NM: ArrayLike, user_rows_N: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the users, ascending [U], and the mean weights of their rows [U, M].

    The unknown user (row 0) is nobody in particular and left out.
    """
    weights, users = np.asarray(weights_NM, dtype=np.float64), np.asarray(user_rows_N)
    known = is_known(users)
    found, code = np.unique(users[known], return_inverse=True)
    sums = np.zeros((found.size, weights.shape[1]))
    np.add.at(sums, code, weights[known])
    return found, sums / np.bincount(code, minlength=found.size)[:, None]


def correlation(first_U: ArrayLike, second_U: ArrayLike) -> float:
    """Return Pearson's r; nan with fewer than three pairs or where one side is constant."""
    first, second = np.asarray(first_U, np.float64), np.asarray(second_U, np.float64)
    if first.size < 3 or not first.std() or not second.std():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
