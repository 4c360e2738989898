"""Checkpoints that fit any number of ranks and any sharding plan.

A table is stored as chunks, each a rectangle of rows and columns with its optimizer state; a reader
takes from the chunks whatever its own shards cover. What enters and leaves: a ShardedRanker and a
TrainState. Called by saver.py, launch/train.py and launch/evaluate.py.

    checkpoints/step-00000042/
      index.json             chunks of every table, step counts, loop state
      tables-rank00000.safetensors   this rank's chunks
      dense.safetensors      dense weights (rank 0)
      dense-optimizer.pt     dense optimizer state (rank 0, tensors only)
      random-rank00000.pt    random state of each rank
      manifest.json          size and sha256 of every file above; written last (integrity.py)

The folder is written under a hidden name and renamed: it is complete or it does not exist.
"""

import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from recsys.checkpoint.integrity import (
    describe_file,
    point_to_best,
    prune,
    write_manifest,
)
from recsys.checkpoint.state import TrainState
from recsys.errors import StorageError, UserError
from recsys.files import reading, replace_folder, write_json
from recsys.runtime.collectives import gather, sharing_errors
from recsys.runtime.env import Env
from recsys.sharding.apply import ShardedRanker, TableShard

CHECKPOINT_VERSION = 2
COPY_BACK = "put back a copy of the checkpoint, or go on training, which skips a damaged one"


@dataclass
class Snapshot:
    """What one rank contributes to a checkpoint, in host memory."""

    tables: dict[str, torch.Tensor]
    """Chunks of this rank by name, weights and optimizer state."""
    chunks: list[dict[str, Any]]
    """Where in which table each chunk lies."""
    random: dict[str, torch.Tensor]
    """Random state of this rank."""
    dense: dict[str, torch.Tensor]
    """Dense weights; rank 0 only."""
    dense_optimizer: dict[str, Any]
    """State of the dense optimizer; rank 0 only."""
    index: dict[str, Any]
    """Everything of index.json but the chunks."""

    @property
    def num_bytes(self) -> int:
        """Size of the tables' part."""
        return sum(values.nbytes for values in self.tables.values())


def take_snapshot(
    sharded: ShardedRanker, state: TrainState, env: Env, buffers: dict[str, torch.Tensor] | None
) -> Snapshot:
    """Return this rank's state between two steps.

    Args:
        buffers: host memory by chunk name that the tables are copied into, as `host_buffers` makes
            it, so that training may go on; None: the tables themselves where they are on the host.
    """
    tables: dict[str, torch.Tensor] = {}
    chunks = []
    for shard, name, parts in _own_chunks(sharded, env):
        for part, values in parts.items():
            if buffers is None:
                tables[part] = values.contiguous().cpu()
            else:
                tables[part] = buffers[part].copy_(values, non_blocking=True)
        chunks.append({
            "table": shard.table,
            "file": _tables_file(env),
            "name": name,
            "row": shard.row,
            "column": shard.column,
            "num_rows": shard.weight.shape[0],
            "num_columns": shard.weight.shape[1],
            "slots": sorted(shard.slots),
        })
    if env.device.type == "cuda":
        torch.cuda.synchronize(env.device)
    return Snapshot(
        tables=tables,
        chunks=chunks,
        random=_random_state(env),
        dense=_on_host(dict(sharded.dense_state())) if env.is_first else {},
        dense_optimizer=_on_host(sharded.dense_optimizer.state_dict()) if env.is_first else {},
        index={
            "version": CHECKPOINT_VERSION,
            "world_size": env.world_size,
            "optimizers": {t: o.name for t, o in sharded.table_optimizers.items()},
            "step_counts": sharded.step_counts(),
            "state": dataclasses.asdict(state),
        },
    )


def stored_tensors(sharded: ShardedRanker, env: Env) -> dict[str, torch.Tensor]:
    """Return the tensors of this rank's chunks by the names they are stored under."""
    return {n: v for _, _, parts in _own_chunks(sharded, env) for n, v in parts.items()}


def host_buffers(stored: dict[str, torch.Tensor], env: Env) -> dict[str, torch.Tensor]:
    """Return host memory for `take_snapshot`, touched, and pinned where it is copied to from a GPU.

    Memory that was never touched makes a copy 30 times slower (LOG.md, 2026-11-26).
    """
    pinned = env.device.type == "cuda"
    return {
        name: torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned).fill_(0)
        for name, values in stored.items()
    }


def write_checkpoint(
    folder: Path,
    snapshot: Snapshot,
    *,
    env: Env,
    keep_last: int,
    best: bool,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write a checkpoint below `folder` and return its path; all ranks call this.

    Args:
        folder: the run's checkpoints/ folder.
        keep_last: newest checkpoints kept; the best one is kept besides.
        best: this step has the best validation so far; `best.json` will name it.
        group: of all ranks, where a thread beside the main one calls this.

    Raises:
        StorageError: a file could not be written, on whichever rank; raised on every rank. Nothing of
            this checkpoint is left, and those before it are as they were; so after any other error.
        RankError: another rank failed in another way.
    """
    state = snapshot.index["state"]
    final = folder / f"step-{state['step']:08d}"
    beside = folder / f".{final.name}"

    def written() -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        with _naming_space(beside, snapshot):
            return snapshot.chunks, _write_part(beside, snapshot, env)

    try:
        parts = gather(written, group)
        with sharing_errors(group), _naming_space(beside, snapshot):
            if env.is_first:
                chunks = [chunk for part, _ in parts for chunk in part]
                write_json(beside / "index.json", {**snapshot.index, "chunks": chunks})
                files = {"index.json": describe_file(beside / "index.json")}
                write_manifest(beside, files | {n: f for _, p in parts for n, f in p.items()})
                replace_folder(beside, final)
                if best:
                    point_to_best(folder, final.name, state["best_metric"])
                prune(folder, final, keep_last)
    finally:
        if env.is_first:
            shutil.rmtree(beside, ignore_errors=True)
    return final


def save_checkpoint(
    folder: Path, *, sharded: ShardedRanker, state: TrainState, env: Env, keep_last: int, best: bool
) -> Path:
    """Write a checkpoint of `state.step` below `folder` at once; all ranks call this."""
    snapshot = take_snapshot(sharded, state, env, None)
    return write_checkpoint(folder, snapshot, env=env, keep_last=keep_last, best=best)


def load_checkpoint(
    path: Path, *, sharded: ShardedRanker, env: Env, with_optimizer: bool = True
) -> TrainState:
    """Load weights, and for training the optimizer and random state too; return the loop state.

    The number of ranks and the sharding plan may differ from those that saved it. Random state is
    restored where the number of ranks is the same.

    Raises:
        UserError: the checkpoint is incomplete, or belongs to another model or table optimizer.
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
    with reading(path / "dense.safetensors", COPY_BACK):
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
        with reading(file, COPY_BACK):
            optimizer_state = torch.load(file, weights_only=True, map_location="cpu")
        sharded.dense_optimizer.load_state_dict(optimizer_state)
        if index["world_size"] == env.world_size:
            file = path / f"random-rank{env.rank:05d}.pt"
            with reading(file, COPY_BACK):
                random = torch.load(file, weights_only=True)
            _set_random_state(random, env)
    return TrainState(**index["state"])


def _own_chunks(
    sharded: ShardedRanker, env: Env
) -> Iterator[tuple[TableShard, str, dict[str, torch.Tensor]]]:
    """Yield this rank's (shard, chunk name, tensors); a replicated table is rank 0's alone."""
    for shard in sharded.table_shards():
        if shard.replicated and not env.is_first:
            continue
        name = f"{shard.table}/{shard.row}-{shard.column}"
        parts = {f"{name}/weight": shard.weight}
        yield shard, name, parts | {f"{name}/{slot}": v for slot, v in shard.slots.items()}


def _tables_file(env: Env) -> str:
    return f"tables-rank{env.rank:05d}.safetensors"


def _on_host(values: Any) -> Any:
    """Copy a tree of dicts, lists and tensors: nothing in it changes with the next step."""
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", copy=True).contiguous()
    if isinstance(values, dict):
        return {key: _on_host(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_on_host(value) for value in values]
    return values


def _write_part(folder: Path, snapshot: Snapshot, env: Env) -> dict[str, dict[str, Any]]:
    """Write this rank's files and return their manifest entries.

    Raises:
        StorageError: a file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {f"random-rank{env.rank:05d}.pt": _pickled(snapshot.random)}
    if env.is_first:
        contents["dense.safetensors"] = save(snapshot.dense)
        contents["dense-optimizer.pt"] = _pickled(snapshot.dense_optimizer)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    try:
        save_file(snapshot.tables, folder / _tables_file(env))
    except SafetensorError as error:
        raise StorageError(f"{_tables_file(env)}: {error}") from error
    return {name: describe_file(folder / name) for name in [*contents, _tables_file(env)]}


def _pickled(values: Any) -> bytes:
    """What torch.save writes, of tensors and plain values only (read with weights_only)."""
    stream = io.BytesIO()
    torch.save(values, stream)
    return stream.getvalue()


@contextmanager
def _naming_space(folder: Path, snapshot: Snapshot) -> Iterator[None]:
    """Say of a refused write how much space is needed and free.

    Raises:
        StorageError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        raise StorageError(
            f"{folder.parent}: the checkpoint of step {snapshot.index['state']['step']:,} cannot be "
            f"written ({error}); the tables of this rank take {snapshot.num_bytes:,} bytes, "
            f"{shutil.disk_usage(there).free:,} are free there. The checkpoints before it are whole: "
            f"free some space, lower train.keep_last, or move the workspace (workspace=), and start "
            f"the same command again"
        ) from error


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
        extent = self._extent(shard.table)
        expected = (shard.num_rows_of_table, shard.num_columns_of_table)
        if covered != shard.weight.numel() or extent != expected:
            raise UserError(
                f"{self.path}: table {shard.table!r} is stored with {extent[0]} rows x {extent[1]} "
                f"columns, the model has {expected[0]} x {expected[1]}; use the data and "
                f"model.embedding_dim the run was trained with, or another run.name"
            )

    def read_slot(self, shard: TableShard, slot: str, values: torch.Tensor) -> None:
        """Fill one optimizer state of a shard.

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

    def _extent(self, table: str) -> tuple[int, int]:
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
    with reading(file, COPY_BACK):
        index = json.loads(file.read_text(encoding="utf-8"))
        if index["version"] != CHECKPOINT_VERSION:
            raise UserError(
                f"checkpoint version {index['version']!r}, expected {CHECKPOINT_VERSION}"
            )
        for name in {chunk["file"] for chunk in index["chunks"]}:
            if Path(name).name != name:
                raise UserError(f"names {name!r}; expected files of the checkpoint's own folder")
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


def _random_state(env: Env) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if env.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(env.device)
    return state


def _set_random_state(state: dict[str, torch.Tensor], env: Env) -> None:
    torch.set_rng_state(state["cpu"])
    if env.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], env.device)
