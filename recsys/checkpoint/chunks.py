"""Chunks of a checkpoint: the rectangles of its tables, read by ranges of rows and columns.

In: the folder of a checkpoint (its files: write.py). Out: weights and optimizer state of shards of any
plan. Called by read.py and warm_start.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from recsys.checkpoint.state import CHECKPOINT_VERSION, stored_state
from recsys.errors import UserError
from recsys.files import reading
from recsys.sharding.shards import TableShard

COPY_BACK = "put back a copy of the checkpoint, or go on training, which skips a damaged one"


class ChunkReader:
    """Reads rectangles of tables out of the chunks that overlap them."""

    def __init__(self, path: Path, chunks: list[dict[str, Any]]):
        self.path = path
        self.chunks = chunks
        self.files: dict[str, Any] = {}

    def read_weight(self, shard: TableShard) -> None:
        """Fill a shard's weights.

        Raises:
            UserError: the chunks do not cover the shard exactly.
        """
        covered = 0
        for chunk, target, source in self._overlaps(shard):
            values = self._slice(chunk, "weight")[source]
            shard.weight[target].copy_(values)
            covered += values.numel()
        extent = self.extent(shard.table)
        expected = (shard.num_rows_of_table, shard.num_columns_of_table)
        if covered != shard.weight.numel() or extent != expected:
            raise UserError(
                f"{self.path}: table {shard.table!r} is stored with {extent[0]} rows x {extent[1]} "
                f"columns, the model has {expected[0]} x {expected[1]}; use the data and "
                f"model.embedding_dim the run was trained with, or another run.name"
            )

    def read_grown(self, shard: TableShard) -> None:
        """Fill a shard's weights from a table of fewer rows; rows above it get those of row 0.

        Raises:
            UserError: as `read_weight`.
        """
        num_rows, _ = self.extent(shard.table)
        if num_rows >= shard.num_rows_of_table:
            self.read_weight(shard)
            return
        num_known = min(max(num_rows - shard.row, 0), len(shard.weight))
        self.read_weight(part_of(shard, 0, num_known, num_rows))
        if num_known < len(shard.weight):
            unknown = part_of(shard, 0, 1, num_rows)
            unknown.row, unknown.weight = 0, torch.empty_like(unknown.weight)
            self.read_weight(unknown)
            shard.weight[num_known:] = unknown.weight

    def read_slot(self, shard: TableShard, slot: str, values: torch.Tensor) -> None:
        """Fill one optimizer state of a shard [rows, columns].

        A state with one value a row (row-wise Adagrad: the mean square gradient over the shard's
        columns) is the width-weighted mean over the chunks: exact when column shards are merged;
        when a row is split, each column shard starts from the whole row's value.
        """
        row_wise = values.shape[1] == 1 and shard.weight.shape[1] > 1
        if row_wise:
            values.zero_()
        for chunk, target, source in self._overlaps(shard):
            stored = self._slice(chunk, slot)
            if row_wise:
                share = (target[1].stop - target[1].start) / shard.weight.shape[1]
                rows = stored[source[0], slice(0, 1)].to(values.device)
                values[target[0]].add_(rows, alpha=share)
            else:
                values[target].copy_(stored[source])

    def _overlaps(
        self, shard: TableShard
    ) -> Iterator[tuple[dict[str, Any], tuple[slice, slice], tuple[slice, slice]]]:
        num_rows, num_columns = shard.weight.shape
        for chunk in self.chunks:
            if chunk["table"] != shard.table:
                continue
            row = max(shard.row, chunk["row"])
            row_end = min(shard.row + num_rows, chunk["row"] + chunk["num_rows"])
            column = max(shard.column, chunk["column"])
            column_end = min(shard.column + num_columns, chunk["column"] + chunk["num_columns"])
            if row < row_end and column < column_end:
                yield (
                    chunk,
                    _rectangle(row, row_end, column, column_end, shard.row, shard.column),
                    _rectangle(row, row_end, column, column_end, chunk["row"], chunk["column"]),
                )

    def _slice(self, chunk: dict[str, Any], part: str) -> Any:
        file = chunk["file"]
        with reading(self.path / file, COPY_BACK):
            if file not in self.files:
                self.files[file] = safe_open(self.path / file, framework="pt")
            return self.files[file].get_slice(f"{chunk['name']}/{part}")

    def extent(self, table: str) -> tuple[int, int]:
        """Return (rows, columns) that the chunks of a table reach to; (0, 0) without any."""
        chunks = [c for c in self.chunks if c["table"] == table]
        return (
            max((c["row"] + c["num_rows"] for c in chunks), default=0),
            max((c["column"] + c["num_columns"] for c in chunks), default=0),
        )


def part_of(shard: TableShard, start: int, stop: int, num_rows_of_table: int) -> TableShard:
    """Return rows [start, stop) of a shard, as views, of a table with another number of rows."""
    return TableShard(
        table=shard.table,
        weight=shard.weight[start:stop],
        row=shard.row + start,
        column=shard.column,
        num_rows_of_table=num_rows_of_table,
        num_columns_of_table=shard.num_columns_of_table,
        replicated=shard.replicated,
        slots={name: values[start:stop] for name, values in shard.slots.items()},
    )


def _rectangle(
    row: int, row_end: int, column: int, column_end: int, row_origin: int, column_origin: int
) -> tuple[slice, slice]:
    return (
        slice(row - row_origin, row_end - row_origin),
        slice(column - column_origin, column_end - column_origin),
    )


def read_index(path: Path) -> dict[str, Any]:
    """Return index.json of a checkpoint.

    Raises:
        UserError: it is missing, broken or of another version.
    """
    file = path / "index.json"
    with reading(file, COPY_BACK):
        index = json.loads(file.read_text(encoding="utf-8"))
        if index["version"] != CHECKPOINT_VERSION:
            raise UserError(
                f"checkpoint version {index['version']!r}, expected {CHECKPOINT_VERSION}"
            )
        for name in {chunk["file"] for chunk in index["chunks"]}:
            if Path(name).name != name:
                raise UserError(f"names {name!r}; expected files of the checkpoint's own folder")
        stored_state(index["state"])  # what it refuses is refused before anything is loaded
    return index
