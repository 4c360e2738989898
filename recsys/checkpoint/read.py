"""Reading of checkpoints: each rank takes from the stored chunks whatever its own shards cover.

In: the folder of a checkpoint (its files: write.py) and a ShardedRanker, of any number of ranks
and any plan. Out: the loop state; weights, optimizer and random state are loaded in place.
Called by launch/train.py and launch/evaluate.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from recsys.checkpoint.state import CHECKPOINT_VERSION, ID_MAPS, TrainState, stored_state
from recsys.errors import UserError
from recsys.files import reading
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import Env
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.shards import TableShard

_COPY_BACK = "put back a copy of the checkpoint, or go on training, which skips a damaged one"


@sharing_errors()
def load_checkpoint(
    path: Path, *, sharded: ShardedRanker, env: Env, with_optimizer: bool = True
) -> TrainState:
    """Load weights, and for training the optimizer and random state too; return the loop state.

    All ranks call this. Their number and the sharding plan may differ from those that saved it. Random
    state is restored where the number of ranks is the same.

    Raises:
        UserError: the checkpoint is incomplete, or belongs to another model or table optimizer; on every
            rank.
    """
    index = _read_index(path)
    shards = sharded.table_shards()
    reader = _ChunkReader(path, index["chunks"])
    for shard in shards:
        reader.read_weight(shard)
    if with_optimizer:
        _check_optimizers(path, index["optimizers"], sharded)
        for shard in shards:
            for slot, values in shard.slots.items():
                reader.read_slot(shard, slot, values)
        sharded.load_step_counts(index["step_counts"])
    if sharded.id_maps:
        with reading(path / ID_MAPS, _COPY_BACK):
            sharded.id_maps.load_state(load_file(path / ID_MAPS), is_first_rank=env.is_first)
    with reading(path / "dense.safetensors", _COPY_BACK):
        dense = load_file(path / "dense.safetensors")
    try:
        sharded.load_dense_state(dense)
    except RuntimeError as error:
        raise UserError(
            f"{path / 'dense.safetensors'}: belongs to another model ({error}); use the model= "
            f"section the run was trained with, or another run.name"
        ) from error
    if with_optimizer:
        file = path / "dense-optimizer.pt"
        with reading(file, _COPY_BACK):
            optimizer_state = torch.load(file, weights_only=True, map_location="cpu")
        sharded.dense_optimizer.load_state_dict(optimizer_state)
        if index["world_size"] == env.world_size:
            file = path / f"random-rank{env.rank:05d}.pt"
            with reading(file, _COPY_BACK):
                random = torch.load(file, weights_only=True)
            _set_random_state(random, env)
    return stored_state(index["state"])


class StoredTables:
    """Weights of a checkpoint, read without a model: tables by ranges of ids, the dense half whole.

    A table with a fixed capacity is read through its id map, as if every id of the vocabulary had a row
    of its own: an id without one has the values of row 0.
    """

    def __init__(self, path: Path):
        """Read the index of a checkpoint, of any number of ranks and any plan.

        Raises:
            UserError: the index is missing or broken.
        """
        index = _read_index(path)
        self.path = path
        self.state: TrainState = stored_state(index["state"])
        self._reader = _ChunkReader(path, index["chunks"])
        self._table_rows: dict[str, torch.Tensor] = {}
        if (path / ID_MAPS).is_file():
            with reading(path / ID_MAPS, _COPY_BACK):
                maps = load_file(path / ID_MAPS)
            self._table_rows = {
                name.removesuffix("/table_row"): rows.long()
                for name, rows in maps.items()
                if name.endswith("/table_row")
            }

    def shape(self, table: str) -> tuple[int, int]:
        """Return (ids, columns) of a table; (0, 0) where the checkpoint has none of this name."""
        num_rows, num_columns = self._reader.extent(table)
        return len(self._table_rows[table]) if table in self._table_rows else num_rows, num_columns

    def read(self, table: str, start: int, stop: int) -> torch.Tensor:
        """Return the rows of ids [start, stop) as float32 [stop - start, columns].

        Raises:
            UserError: the chunks do not cover the rows, or a file is damaged.
        """
        if table in self._table_rows:
            return self._reader.read_rows(table, self._table_rows[table][start:stop])
        num_rows, num_columns = self.shape(table)
        rows = TableShard(
            table=table,
            weight=torch.empty(stop - start, num_columns),
            row=start,
            column=0,
            num_rows_of_table=num_rows,
            num_columns_of_table=num_columns,
            replicated=False,
        )
        self._reader.read_weight(rows)
        return rows.weight

    def read_dense(self) -> dict[str, torch.Tensor]:
        """Return the state of the dense half by name."""
        with reading(self.path / "dense.safetensors", _COPY_BACK):
            return load_file(self.path / "dense.safetensors")


class _ChunkReader:
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

    def read_rows(self, table: str, rows_K: torch.Tensor) -> torch.Tensor:
        """Return any rows of a table as float32 [K, columns]; pages that hold none are not read.

        Raises:
            UserError: the chunks do not cover the rows.
        """
        values_KD = torch.empty(len(rows_K), self.extent(table)[1])
        covered = 0
        for chunk in (c for c in self.chunks if c["table"] == table):
            row, column = chunk["row"], chunk["column"]
            is_here_K = (rows_K >= row) & (rows_K < row + chunk["num_rows"])
            found = self._file(chunk).get_tensor(f"{chunk['name']}/weight")[rows_K[is_here_K] - row]
            values_KD[is_here_K, column : column + chunk["num_columns"]] = found.float()
            covered += found.numel()
        if covered != values_KD.numel():
            raise UserError(
                f"{self.path}: table {table!r} lacks rows that its id map names; {_COPY_BACK}"
            )
        return values_KD

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
        with reading(self.path / chunk["file"], _COPY_BACK):
            return self._file(chunk).get_slice(f"{chunk['name']}/{part}")

    def _file(self, chunk: dict[str, Any]) -> Any:
        file = chunk["file"]
        with reading(self.path / file, _COPY_BACK):
            if file not in self.files:
                self.files[file] = safe_open(self.path / file, framework="pt")
            return self.files[file]

    def extent(self, table: str) -> tuple[int, int]:
        """Return (rows, columns) that the chunks of a table reach to; (0, 0) without any."""
        chunks = [c for c in self.chunks if c["table"] == table]
        return (
            max((c["row"] + c["num_rows"] for c in chunks), default=0),
            max((c["column"] + c["num_columns"] for c in chunks), default=0),
        )


def _rectangle(
    row: int, row_end: int, column: int, column_end: int, row_origin: int, column_origin: int
) -> tuple[slice, slice]:
    return (
        slice(row - row_origin, row_end - row_origin),
        slice(column - column_origin, column_end - column_origin),
    )


def _read_index(path: Path) -> dict[str, Any]:
    file = path / "index.json"
    with reading(file, _COPY_BACK):
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


def _check_optimizers(path: Path, stored: dict[str, str], sharded: ShardedRanker) -> None:
    changed = [
        f"{table} from {stored.get(table)} to {chosen.name}"
        for table, chosen in sharded.table_optimizers.items()
        if stored.get(table) != chosen.name
    ]
    if changed:
        raise UserError(
            f"{path}: the table optimizer changed ({'; '.join(changed)}) and its state cannot be "
            f"carried over; keep optim.table as it was, or train under another run.name"
        )


def _set_random_state(state: dict[str, torch.Tensor], env: Env) -> None:
    torch.set_rng_state(state["cpu"])
    if env.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], env.device)
