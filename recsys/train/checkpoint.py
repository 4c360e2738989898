"""Checkpoints that fit any number of ranks and any sharding plan.

A table is stored as chunks, each a rectangle of rows and columns with its optimizer state; a reader
takes from the chunks whatever its own shards cover. What enters and leaves: a ShardedRanker and a
TrainState. Called by the training loop and by evaluate.

    checkpoints/step-00000042/
      index.json             chunks of every table, step counts, loop state; written last
      tables-rank00000.safetensors   this rank's chunks
      dense.safetensors      dense weights (rank 0)
      dense-optimizer.pt     dense optimizer state (rank 0, tensors only)
      random-rank00000.pt    random state of each rank

The folder is written under a hidden name and renamed: it is complete or it does not exist.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recsys.distributed.env import Env, first_rank_work
from recsys.distributed.shard import ShardedRanker, TableShard
from recsys.schema import write_json
from recsys.train.state import TrainState

CHECKPOINT_VERSION = 1


def save_checkpoint(
    folder: Path, *, sharded: ShardedRanker, state: TrainState, env: Env, keep_last: int, best: bool
) -> Path:
    """Write a checkpoint of `state.step` below `folder` and return its path; all ranks call this.

    Args:
        folder: the run's checkpoints/ folder.
        keep_last: newest checkpoints kept; the best one is kept besides.
        best: this step has the best validation so far; `best.json` will name it.
    """
    final = folder / f"step-{state.step:08d}"
    beside = folder / f".{final.name}"
    with first_rank_work(env) as is_first:
        if is_first:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
    chunks = _write_tables(beside, sharded, env)
    all_chunks: list[list[dict[str, Any]]] = [chunks]
    if env.world_size > 1:
        all_chunks = [[] for _ in range(env.world_size)]
        dist.all_gather_object(all_chunks, chunks)
    torch.save(_random_state(env), beside / f"random-rank{env.rank:05d}.pt")
    _barrier(env)
    with first_rank_work(env) as is_first:
        if is_first:
            dense = {k: v.contiguous().cpu() for k, v in sharded.dense_state().items()}
            save_file(dense, beside / "dense.safetensors")
            torch.save(sharded.dense_optimizer.state_dict(), beside / "dense-optimizer.pt")
            write_json(
                beside / "index.json",
                {
                    "version": CHECKPOINT_VERSION,
                    "world_size": env.world_size,
                    "chunks": [chunk for part in all_chunks for chunk in part],
                    "optimizers": {t: o.name for t, o in sharded.table_optimizers.items()},
                    "step_counts": sharded.step_counts(),
                    "state": dataclasses.asdict(state),
                },
            )
            shutil.rmtree(final, ignore_errors=True)
            os.replace(beside, final)
            if best:
                record = {"checkpoint": final.name, "metric": state.best_metric}
                write_json(folder / "best.json", record)
            _prune(folder, keep_last)
    return final


def load_checkpoint(
    path: Path, *, sharded: ShardedRanker, env: Env, with_optimizer: bool = True
) -> TrainState:
    """Load weights, and for training the optimizer and random state too; return the loop state.

    The number of ranks and the sharding plan may differ from those that saved it. Random state is
    restored where the number of ranks is the same.

    Raises:
        ValueError: the checkpoint is incomplete, or belongs to another model or table optimizer.
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
    try:
        sharded.load_dense_state(load_file(path / "dense.safetensors"))
    except RuntimeError as error:
        raise ValueError(
            f"{path / 'dense.safetensors'}: belongs to another model ({error}); use the model= "
            f"section the run was trained with, or another run.name"
        ) from error
    if with_optimizer:
        optimizer_state = torch.load(
            path / "dense-optimizer.pt", weights_only=True, map_location="cpu"
        )
        sharded.dense_optimizer.load_state_dict(optimizer_state)
        if index["world_size"] == env.world_size:
            random_file = path / f"random-rank{env.rank:05d}.pt"
            _set_random_state(torch.load(random_file, weights_only=True), env)
    return TrainState(**index["state"])


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint below `folder`, or None."""
    complete = [p for p in folder.glob("step-*") if (p / "index.json").is_file()]
    return max(complete, default=None)


def best_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that best.json names.

    Raises:
        ValueError: there is none (says to train first).
    """
    pointer = folder / "best.json"
    if not pointer.is_file():
        raise ValueError(
            f"{pointer}: no best checkpoint here; expected a run trained with this run.name and "
            f"workspace= (launch/train.py)"
        )
    return folder / json.loads(pointer.read_text())["checkpoint"]


def _write_tables(folder: Path, sharded: ShardedRanker, env: Env) -> list[dict[str, Any]]:
    """Write this rank's chunks; a replicated table is written by rank 0 alone."""
    tensors: dict[str, torch.Tensor] = {}
    chunks = []
    file = f"tables-rank{env.rank:05d}.safetensors"
    for shard in sharded.table_shards():
        if shard.replicated and not env.is_first:
            continue
        name = f"{shard.table}/{shard.row}-{shard.column}"
        tensors[f"{name}/weight"] = shard.weight.contiguous().cpu()
        for slot, values in shard.slots.items():
            tensors[f"{name}/{slot}"] = values.contiguous().cpu()
        chunks.append({
            "table": shard.table,
            "file": file,
            "name": name,
            "row": shard.row,
            "column": shard.column,
            "num_rows": shard.weight.shape[0],
            "num_columns": shard.weight.shape[1],
            "slots": sorted(shard.slots),
        })
    save_file(tensors, folder / file)
    return chunks


class _ChunkReader:
    """Reads rectangles of tables out of the chunks that overlap them."""

    def __init__(self, path: Path, chunks: list[dict[str, Any]]):
        self.path = path
        self.chunks = chunks
        self.files: dict[str, Any] = {}

    def read_weight(self, shard: TableShard) -> None:
        """Fill a shard's weights.

        Raises:
            ValueError: the chunks do not cover the shard exactly.
        """
        covered = 0
        for chunk, target, source in self._overlaps(shard):
            values = self._slice(chunk, "weight")[source]
            shard.weight[target].copy_(values)
            covered += values.numel()
        extent = self._extent(shard.table)
        expected = (shard.num_rows_of_table, shard.num_columns_of_table)
        if covered != shard.weight.numel() or extent != expected:
            raise ValueError(
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
    if not file.is_file():
        raise ValueError(f"{file}: missing; expected a complete checkpoint of launch/train.py")
    index = json.loads(file.read_text())
    if index.get("version") != CHECKPOINT_VERSION:
        raise ValueError(
            f"{file}: checkpoint version {index.get('version')!r}, expected {CHECKPOINT_VERSION}"
        )
    return index


def _check_optimizers(path: Path, stored: dict[str, str], sharded: ShardedRanker) -> None:
    changed = [
        f"{table} from {stored.get(table)} to {chosen.name}"
        for table, chosen in sharded.table_optimizers.items()
        if stored.get(table) != chosen.name
    ]
    if changed:
        raise ValueError(
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


def _prune(folder: Path, keep_last: int) -> None:
    kept = {p.name for p in sorted(folder.glob("step-*"))[-max(1, keep_last) :]}
    pointer = folder / "best.json"
    if pointer.is_file():
        kept.add(json.loads(pointer.read_text())["checkpoint"])
    for path in folder.glob("step-*"):
        if path.name not in kept:
            shutil.rmtree(path)


def _barrier(env: Env) -> None:
    if env.world_size > 1:
        dist.barrier()
