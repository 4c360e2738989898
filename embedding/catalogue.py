"""Rows of prepared/items.parquet in bounded pieces, for extraction and for training."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class Catalogue:
    """items.parquet, read by row range."""

    def __init__(self, prepared: Path):
        """Open the file.

        Raises:
            ValueError: it is missing or broken (says to run prepare).
        """
        self.path = prepared / "items.parquet"
        try:
            self._file = pq.ParquetFile(self.path)
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"{self.path}: cannot be read ({str(error).splitlines()[0]}); run "
                f"launch/prepare.py again"
            ) from error
        self.num_rows = self._file.metadata.num_rows

    def read(self, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Return rows [start, stop); only the row groups that hold them are read."""
        groups, position, first = [], 0, None
        for group in range(self._file.num_row_groups):
            num_rows = self._file.metadata.row_group(group).num_rows
            if position < stop and position + num_rows > start:
                first = position if first is None else first
                groups.append(group)
            position += num_rows
        assert first is not None, f"rows {start} to {stop} lie in the file"
        table = self._file.read_row_groups(groups, columns=columns)
        return table.slice(start - first, stop - start)

    def column(self, name: str, rows: list[int]) -> list:
        """Return one column at ascending rows, reading one row group at a time."""
        values = []
        wanted, position = 0, 0
        for group in range(self._file.num_row_groups):
            num_rows = self._file.metadata.row_group(group).num_rows
            at = []
            while wanted < len(rows) and rows[wanted] < position + num_rows:
                at.append(rows[wanted] - position)
                wanted += 1
            if at:
                column = self._file.read_row_group(group, columns=[name]).column(0)
                values += column.take(pa.array(at)).to_pylist()
            position += num_rows
        return values
