"""Distributed sort: rows of all ranks in one order, each rank a range of it, equal keys on one rank.

In: columns of this rank's rows and the one to sort by. Out: columns of this rank's range. The ranges are
cut at order statistics, found by counting on all ranks: they are equally long but for equal keys, and
do not depend on chance. Called by metrics and evaluation.
Shapes: N rows of this rank, K places, W ranks.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.runtime.ranks import ALONE, Ranks

_PIECE_ROWS = 1 << 20
"""Rows that are put in order at a time."""
_DIGIT = 256
"""Ways into which the range of possible keys is parted at a time."""


def sorted_rows(columns: dict[str, NDArray], key: str, ranks: Ranks = ALONE) -> dict[str, NDArray]:
    """Return this rank's range of the rows of all ranks, ascending by column `key`.

    Rows of equal keys keep their order on a rank and come by rank. The memory beside the rows is that of
    one column and of 32 bits a row. All rows of one key are on one rank, however many they are.

    Args:
        columns: [N, ...] each, emptied on the way; equal names and types on every rank.
        key: name of the column to sort by: numbers without NaN.
    """
    columns = _ordered(columns, key)
    if ranks.size == 1:
        return columns
    counts_W = _counts_of_ranges(columns[key], ranks)
    return _ordered(ranks.exchange(columns, counts_W), key)


def _counts_of_ranges(keys_N: NDArray, ranks: Ranks) -> NDArray[np.int64]:
    """Return how many of this rank's ascending keys lie in the range of each rank [W]."""
    num_rows = ranks.total(len(keys_N))
    places = np.arange(1, ranks.size) * num_rows // ranks.size
    counts_W = np.zeros(ranks.size, np.int64)
    counts_W[0] = len(keys_N)
    if num_rows:
        # A range begins with the whole group of its first key.
        firsts = order_statistics(keys_N, places, ranks)
        starts = np.concatenate([[0], np.searchsorted(keys_N, firsts, side="left")])
        counts_W = np.diff(starts, append=len(keys_N))
    return counts_W


def order_statistics(sorted_N: NDArray, places_K: NDArray[np.int64], ranks: Ranks) -> NDArray:
    """Return the values [K] at some places of the ascending order of the values of all ranks.

    Args:
        sorted_N: this rank's values, ascending, of one numeric type on all ranks; no NaN.
        places_K: from 0; each is below the number of values of all ranks.
    """
    # Keys are whole numbers in the order of the values. The key at a place is the largest below which no
    # more than `place` values lie; each round finds one of its digits.
    low_K = np.zeros(len(places_K), np.uint64)
    step = 1 << 64
    while step > 1:
        step //= _DIGIT
        probes_KD = low_K[:, None] + np.arange(_DIGIT, dtype=np.uint64) * np.uint64(step)
        probed_KD = _values(probes_KD, sorted_N.dtype)
        below_KD = ranks.total(np.searchsorted(sorted_N, probed_KD, side="left"))
        digit_K = (below_KD <= places_K[:, None]).sum(axis=1) - 1
        low_K = np.take_along_axis(probes_KD, digit_K[:, None], axis=1)[:, 0]
    return _values(low_K, sorted_N.dtype).astype(sorted_N.dtype)


_SIGN = np.uint64(1 << 63)


def _values(keys: NDArray[np.uint64], dtype: np.dtype) -> NDArray:
    """Return the numbers [K, ...] of 64 bits that keys stand for, in the order of a type."""
    if dtype.kind in "ub":
        return keys
    if dtype.kind == "i":
        return (keys ^ _SIGN).view(np.int64)
    is_positive = keys >= _SIGN
    values = np.where(is_positive, keys ^ _SIGN, ~keys).view(np.float64)
    # Keys beyond those of all numbers are NaN, which is sorted last.
    return np.where(is_positive | ~np.isnan(values), values, -np.inf)


def _ordered(columns: dict[str, NDArray], key: str) -> dict[str, NDArray]:
    """Return the columns [N, ...] ascending by one of them; the given ones are let go one by one."""
    order_N = np.argsort(columns[key], kind="stable")
    if len(order_N) <= 1 << 32:
        order_N = order_N.astype(np.uint32)
    ordered = {}
    for name in list(columns):
        column = columns.pop(name)
        ordered[name] = np.empty_like(column)
        # numpy takes indices in 64 bits: those of a piece at a time.
        for start in range(0, len(column), _PIECE_ROWS):
            piece = slice(start, start + _PIECE_ROWS)
            ordered[name][piece] = column[order_N[piece]]
    return ordered
