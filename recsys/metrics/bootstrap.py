"""The Poisson bootstrap over users: how far a metric would move with other users.

In: the user of every row. Out: keys of units, how often each unit is drawn, and intervals of replicates.
Called by row_sums.py, evaluations and comparisons.

Rows of one user are correlated, so users are drawn, not rows (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, with users as the units). Every unit is drawn Poisson(1) times in every replicate,
independently of the others, which for many units is drawing them with replacement (Chamandy et al.,
Estimating Uncertainty for Massive Data Streams, Google, 2012). The number of times is a function of the
unit's key, the replicate and the seed: it is drawn where it is needed, is the same on every rank, and
costs no memory by user. A user drawn k times counts each of its rows k times. Two models compared on the
same rows see the same draws: subtract their replicates for a paired difference.

Shapes: N rows, U units, R replicates, K kinds of sums.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import is_known

_HASHED, _OF_ROW = np.uint64(1 << 63), np.uint64(1 << 62)
"""Mark keys that are hashes of ids, and row ids, apart from those that are user rows."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PIECE_UNITS = 1024


def unit_keys(
    row_ids_N: ArrayLike,
    user_rows_N: ArrayLike | None = None,
    unknown_users_N: ArrayLike | None = None,
) -> NDArray[np.uint64]:
    """Return the key of every row's unit [N]: its user, known to the vocabulary or not.

    Rows of which nobody says whose they are (no users at all; unknown users without a hash) are
    independent as far as anybody knows; each is a unit.

    Args:
        row_ids_N: tell these rows apart.
        user_rows_N: 0 for unknown users; None: there are no users.
        unknown_users_N: a hash of the user's id where the user row is the unknown 0; 0 elsewhere.
    """
    keys_N = np.asarray(row_ids_N).astype(np.uint64) | _OF_ROW
    if unknown_users_N is not None:
        hashes_N = np.asarray(unknown_users_N, dtype=np.uint64)
        keys_N = np.where(hashes_N != 0, hashes_N | _HASHED, keys_N)
    if user_rows_N is not None:
        users_N = np.asarray(user_rows_N)
        keys_N = np.where(is_known(users_N), users_N.astype(np.uint64), keys_N)
    return keys_N


def _poisson_of_16_bits() -> NDArray[np.uint8]:
    """Return the Poisson(1) quantiles of all 16-bit numbers [65536]; their mean is 1 within 1e-5."""
    shares = np.exp(-1) / np.cumprod([1, *range(1, 12)])
    middles = (np.arange(1 << 16) + 0.5) / (1 << 16)
    return np.searchsorted(np.cumsum(shares), middles, side="right").astype(np.uint8)


_POISSON = _poisson_of_16_bits()


def poisson_draws(keys_U: NDArray, num_replicates: int, seed: int) -> NDArray[np.uint8]:
    """Return how often each unit is drawn in each replicate [U, R]; equal keys, equal draws.

    Args:
        keys_U: whole numbers of 0 or more.
    """
    salt_1 = _mixed(np.array([seed & (1 << 64) - 1], np.uint64) + _GOLDEN)
    base_U = _mixed(np.asarray(keys_U).astype(np.uint64) ^ salt_1)
    # Each hash of 64 bits holds four draws.
    steps_W = _GOLDEN * np.arange(1, -(-num_replicates // 4) + 1, dtype=np.uint64)
    hashes_UW = _mixed(base_U[:, None] + steps_W)
    return np.take(_POISSON, hashes_UW.view(np.uint16)[:, :num_replicates])


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finalizer of SplitMix64 (Steele et al., OOPSLA 2014) of every number [N, ...]."""
    mixed = numbers ^ (numbers >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def drawn_sums(
    values_KU: NDArray, keys_U: NDArray, *, num_replicates: int, seed: int
) -> NDArray[np.float64]:
    """Return the sums over the drawn units [K, R], a unit's values as often as it is drawn."""
    total_KR = np.zeros((len(values_KU), num_replicates))
    for start in range(0, len(keys_U), _PIECE_UNITS):
        part = slice(start, start + _PIECE_UNITS)
        total_KR += values_KU[:, part] @ poisson_draws(keys_U[part], num_replicates, seed).astype(
            np.float64
        )
    return total_KR


def drawn_means(
    values_U: NDArray[np.float64],
    keys_U: NDArray,
    *,
    num_replicates: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> NDArray[np.float64]:
    """Return the mean of the drawn units' values [R] over all ranks; nan where a replicate draws none."""
    both_2U = np.stack([values_U, np.ones(len(values_U))])
    drawn_2R = drawn_sums(both_2U, keys_U, num_replicates=num_replicates, seed=seed)
    sum_R, count_R = ranks.total(drawn_2R)
    with np.errstate(invalid="ignore"):
        return sum_R / count_R


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
