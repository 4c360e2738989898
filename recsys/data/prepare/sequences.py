"""Sequences: a list of values by row, as values and offsets, joined row by row and written in blocks.

In: two files of lists. Out: a file of both end to end, of each row as many values as are kept. Memory
follows a block of rows, however many there are. Shapes: U rows, V values, B rows of a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.dataset import jagged
from recsys.files import PREPARE_AGAIN, new_array, read_array

BLOCK_ROWS = 65_536
"""Rows whose lists are in memory at a time."""
Lengths = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Lengths of the lists of some rows [B], by the rows [B]."""


@dataclass(frozen=True)
class Sequences:
    """Lists by row: those of row u are values[offsets[u] : offsets[u + 1]]; later rows have none."""

    values: NDArray
    """[V]"""
    offsets: NDArray[np.int64]
    """[U + 1]"""

    def lengths(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lengths of the lists of some rows [B]."""
        starts_B, ends_B = self._bounds(rows_B)
        return ends_B - starts_B

    def of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.int64]]:
        """Return the values of some rows end to end, and how many each has [B]."""
        return jagged(self.values, *self._bounds(rows_B))

    def last_of(self, rows_B: NDArray[np.int64], num_B: NDArray[np.int64]) -> NDArray:
        """Return the last values of some rows end to end, `num_B` of each, which has as many."""
        _, ends_B = self._bounds(rows_B)
        values, _ = jagged(self.values, ends_B - num_B, ends_B)
        return values

    def _bounds(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        offsets = np.asarray(self.offsets)
        last = len(offsets) - 1
        return offsets[np.minimum(rows_B, last)], offsets[np.minimum(rows_B + 1, last)]


def read_sequences(folder: Path, prefix: str = "", name: str = "values") -> Sequences:
    """Return the lists of a folder, memory-mapped; arguments as of `write_sequences`."""
    files = (f"{prefix}{name}.npy", f"{prefix}offsets.npy")
    return Sequences(*(read_array(folder / file, PREPARE_AGAIN, mmap=True) for file in files))


def row_blocks(num_rows: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of all rows, a block of them at a time."""
    for start in range(0, num_rows, BLOCK_ROWS):
        yield np.arange(start, min(start + BLOCK_ROWS, num_rows))


def write_sequences(
    folder: Path,
    first: Sequences,
    then: Sequences,
    num_rows: int,
    kept: Lengths,
    prefix: str = "",
    name: str = "values",
) -> None:
    """Write values.npy and offsets.npy of each row's two lists end to end, the last of their values.

    Args:
        folder: made where it is not there.
        kept: how many values are kept, at most as many as there are.
        prefix: of the names of the files.
        name: of the file of values, in the place of `values`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    offsets = new_array(folder / f"{prefix}offsets.npy", np.int64, (num_rows + 1,))
    for rows_B in row_blocks(num_rows):
        total = offsets[rows_B[0]]
        offsets[rows_B[0] + 1 : rows_B[-1] + 2] = total + np.cumsum(kept(rows_B))
    kind = first.values.dtype.type
    values: NDArray = new_array(folder / f"{prefix}{name}.npy", kind, (int(offsets[-1]),))
    for rows_B in row_blocks(num_rows):
        starts_B = np.asarray(offsets[rows_B[0] : rows_B[-1] + 1])
        kept_B = np.asarray(offsets[rows_B[0] + 1 : rows_B[-1] + 2]) - starts_B
        then_B = np.minimum(then.lengths(rows_B), kept_B)
        first_B = kept_B - then_B
        values[_places(starts_B, first_B)] = first.last_of(rows_B, first_B)
        values[_places(starts_B + first_B, then_B)] = then.last_of(rows_B, then_B)


def _places(starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return starts[i], starts[i] + 1, ... of every i, lengths[i] of them, end to end."""
    firsts_B = np.cumsum(lengths_B) - lengths_B
    return np.repeat(starts_B - firsts_B, lengths_B) + np.arange(int(lengths_B.sum()))
