"""The bootstrap over users: how far a metric would move with other users.

In: the user of every row. Out: units, how often each is drawn, and intervals of replicates. Called by
resamples.py, evaluations and comparisons.

Rows of one user are correlated, so users are drawn, not rows (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, with users as the units). A user drawn k times counts each of its rows k times. Two
models compared on the same rows see the same draws: subtract their replicates for a paired difference.

Accumulation over ranks: gather the rows on one rank, as for AUC.
Shapes: N rows, U units, R replicates.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.schema import is_known

_MOST_UNITS = 20_000
_HASHED = np.uint64(1 << 63)
"""Marks units that are hashes, apart from those that are rows."""
_PIECE_UNITS = 4096


def bootstrap_units(
    user_rows_N: ArrayLike | None,
    num_rows: int,
    rng: np.random.Generator,
    *,
    unknown_users_N: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Return the unit of every row [N], numbered from 0: its user, known to the vocabulary or not.

    Rows of which nobody says whose they are (no users at all; unknown users without a hash) are
    independent as far as anybody knows; they are dealt at random to at most 20,000 equal groups,
    which are then what is drawn (with fewer rows, every row is a group).

    Args:
        unknown_users_N: a hash of the user's id where the user row is the unknown 0; 0 elsewhere.
    """
    keys_N = np.zeros(num_rows, dtype=np.uint64)
    if user_rows_N is not None:
        keys_N = np.asarray(user_rows_N).astype(np.uint64)
        if unknown_users_N is not None:
            hashes_N = np.asarray(unknown_users_N, dtype=np.uint64)
            is_hashed_N = ~is_known(keys_N) & (hashes_N != 0)
            keys_N = np.where(is_hashed_N, hashes_N | _HASHED, keys_N)
    is_told_N = keys_N != 0
    users, codes = np.unique(keys_N[is_told_N], return_inverse=True)
    num_left = num_rows - codes.size
    units_N = np.empty(num_rows, dtype=np.int64)
    units_N[is_told_N] = codes
    units_N[~is_told_N] = users.size + rng.permutation(num_left) % min(
        max(num_left, 1), _MOST_UNITS
    )
    return units_N


def draw_units(num_units: int, num_replicates: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return how often each unit is drawn in each replicate [U, R]: U of U, with replacement."""
    draws_RU = np.empty((num_replicates, num_units), dtype=np.uint16)
    for drawn_U in draws_RU:
        drawn_U[:] = np.bincount(rng.integers(num_units, size=num_units), minlength=num_units)
    return np.ascontiguousarray(draws_RU.T)


def sums_of_draws(sums_U: NDArray, draws_UR: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return sums_U @ draws_UR [R] in pieces: as float64 the draws would take four times their memory."""
    total_R = np.zeros(draws_UR.shape[1])
    for start in range(0, len(sums_U), _PIECE_UNITS):
        stop = start + _PIECE_UNITS
        total_R += sums_U[start:stop] @ draws_UR[start:stop].astype(np.float64)
    return total_R


def interval(replicates_R: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval that holds `level` of the replicates.

    Replicates that are nan are left out; (nan, nan) where all are.

    Raises:
        UserError: level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level={level}: expected a share between 0 and 1, such as 0.95")
    replicates = np.asarray(replicates_R, dtype=np.float64)
    replicates = replicates[~np.isnan(replicates)]
    if not replicates.size:
        return float("nan"), float("nan")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
