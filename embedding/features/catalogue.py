"""Rows of prepared/items.parquet in bounded pieces, and samples of them, for embedding."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.files import PREPARE_AGAIN, reading


def drawn(num_values: int, most: int, seed: int) -> np.ndarray:
    """Return int64 [N]: up to `most` positions below `num_values`, seeded, ascending.

    A sample cut off the front would be of the most popular items: rows are numbered by falling count.
    """
    rng = np.random.default_rng(seed)
    # Without a permutation of all positions, where few of many are asked for.
    chosen = rng.choice(num_values, size=min(most, num_values), replace=False, shuffle=False)
    return np.sort(chosen)


def sample_rows(num_rows: int, count: int, seed: int) -> list[int]:
    """Return up to `count` item rows (never row 0), seeded, ascending."""
    return [row + 1 for row in drawn(num_rows - 1, count, seed).tolist()]


class Catalogue:
    """items.parquet, read by row range."""

    def __init__(self, prepared: Path):
        """Open the file.

        Raises:
            UserError: it is missing or broken (says to run prepare).
        """
        self.path = prepared / "items.parquet"
        with reading(self.path, PREPARE_AGAIN):
            self._file = pq.ParquetFile(self.path)
        metadata = self._file.metadata
        self.num_rows = metadata.num_rows
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._ends = np.cumsum(groups)
        # Consecutive pieces share a row group; decoding it for each would cost more than reading it.
        self._group = lru_cache(maxsize=1)(self._read_group)

    def _read_group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        with reading(self.path, PREPARE_AGAIN):
            return self._file.read_row_group(group, columns=list(columns))

    def read(self, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Return rows [start, stop); only the row groups that hold them are read."""
        assert 0 <= start < stop <= self.num_rows, f"rows {start} to {stop} are in the file"
        parts = []
        for group in range(
            int(np.searchsorted(self._ends, start, side="right")),
            int(np.searchsorted(self._ends, stop, side="left")) + 1,
        ):
            table = self._group(group, tuple(columns))
            first = int(self._ends[group]) - table.num_rows
            begin = max(start - first, 0)
            parts.append(table.slice(begin, min(stop - first, table.num_rows) - begin))
        return pa.concat_tables(parts)

    def column(self, name: str, rows: list[int]) -> list:
        """Return one column at ascending rows, reading one row group at a time."""
        values = []
        for group, at in enumerate(np.split(np.asarray(rows), np.searchsorted(rows, self._ends))):
            if len(at):
                column = self._group(group, (name,)).column(0)
                first = int(self._ends[group]) - len(column)
                values += column.take(pa.array(at - first)).to_pylist()
        return values
