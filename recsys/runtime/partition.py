"""Partition: numbers by item or user, of which each rank has a range of the rows.

In: rows that a rank asks for. Out: their numbers, which the ranks that have them send. A rank's memory is
that of its range and of the rows it asks for, however many items or users there are. Called by
evaluation.
Shapes: I rows of all ranges, R rows of this rank's range, N rows asked for, K different ones of them,
M rows that this rank is asked for, W ranks.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from recsys.runtime.ranks import ALONE, Ranks


def range_of(num_rows: int, ranks: Ranks = ALONE) -> slice:
    """Return the range of `num_rows` rows that this rank has; the ranks' ranges follow each other."""
    starts_W = _starts(num_rows, ranks)
    return slice(int(starts_W[ranks.rank]), int(starts_W[ranks.rank + 1]))


def _starts(num_rows: int, ranks: Ranks) -> NDArray[np.int64]:
    """Return the first row of each rank's range, and the number of rows [W + 1]."""
    return np.arange(ranks.size + 1) * num_rows // ranks.size


class Lookup:
    """Rows of items or users that this rank asks the others for, as often as it needs numbers of them."""

    def __init__(self, rows_N: NDArray[np.int64], num_rows: int, ranks: Ranks = ALONE):
        """Tell the other ranks which of their rows are asked for; all ranks call this together.

        Args:
            rows_N: each at least 0 and below `num_rows`.
            num_rows: of all ranges.
        """
        self.ranks = ranks
        self.num_rows = num_rows
        self.range = range_of(num_rows, ranks)
        self._rows_N = rows_N
        if ranks.size == 1:
            return
        rows_K, place_N, count_K = np.unique(rows_N, return_inverse=True, return_counts=True)
        self._place_N = place_N.astype(np.uint32) if len(rows_K) < 1 << 32 else place_N
        bounds = np.searchsorted(rows_K, _starts(num_rows, ranks))
        counts_W = np.diff(bounds)
        self._asked_counts_W = np.stack(ranks.gather(counts_W))[:, ranks.rank]
        asked = ranks.exchange({"row": rows_K, "count": count_K}, counts_W)
        self._asked_M = asked["row"] - self.range.start
        self._asked_count_M = asked["count"]

    def of(self, numbers_R: NDArray) -> NDArray:
        """Return the numbers [N] of the rows asked for; all ranks call this together.

        Args:
            numbers_R: of this rank's range, of one type on all ranks.
        """
        if self.ranks.size == 1:
            return numbers_R[self._rows_N]
        answers = {"number": numbers_R[self._asked_M]}
        return self.ranks.exchange(answers, self._asked_counts_W)["number"][self._place_N]

    def times_asked(self) -> NDArray[np.int64]:
        """Return how often all ranks ask for each row of this rank's range [R]."""
        length = self.range.stop - self.range.start
        if self.ranks.size == 1:
            return np.bincount(self._rows_N, minlength=length)
        times_R = np.bincount(self._asked_M, self._asked_count_M, minlength=length)
        return times_R.astype(np.int64)


def reduced(
    pieces: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]],
    reduce: Callable[[NDArray, NDArray, NDArray], None],
    start_R: NDArray[np.int64],
    num_rows: int,
    ranks: Ranks = ALONE,
) -> NDArray[np.int64]:
    """Return this rank's range of numbers that all ranks have pieces of; all ranks call this together.

    Args:
        pieces: rows [N] and a number of each [N]; some ranks may have more of them than others.
        reduce: takes the result so far, rows of the range and their numbers: such as np.minimum.at.
        start_R: the result without any piece; changed and returned.
        num_rows: of all ranges.
    """
    starts_W = _starts(num_rows, ranks)
    none = np.zeros(0, np.int64)
    while True:
        piece = next(pieces, None)
        if not ranks.any(piece is not None):
            return start_R
        rows_N, numbers_N = (none, none) if piece is None else piece
        owner_N = np.searchsorted(starts_W, rows_N, side="right") - 1
        sent = ranks.send({"row": rows_N, "number": numbers_N}, owner_N)
        reduce(start_R, sent["row"] - starts_W[ranks.rank], sent["number"])
