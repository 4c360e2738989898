"""Snapshots: what one rank contributes to a checkpoint, copied to host memory between two steps.

In: the sharded model and the loop's state. Out: a Snapshot, which write.py stores while
training goes on. Called by saver.py.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from recsys.checkpoint.state import CHECKPOINT_VERSION, TrainState
from recsys.runtime.env import Env
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.shards import TableShard


@dataclass
class Snapshot:
    """One rank's part of a checkpoint, in host memory."""

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
    id_maps: dict[str, torch.Tensor]
    """Id maps of tables with a fixed capacity; rank 0 only, empty without such a table."""
    index: dict[str, Any]
    """Everything of index.json but the chunks."""

    @property
    def num_bytes(self) -> int:
        """Size of the tables' part."""
        return sum(values.nbytes for values in self.tables.values())


def take_snapshot(
    sharded: ShardedRanker, state: TrainState, env: Env, buffers: dict[str, torch.Tensor] | None
) -> Snapshot:
    """Return this rank's state between two steps; all ranks call this.

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
            "file": tables_file(env),
            "name": name,
            "row": shard.row,
            "column": shard.column,
            "num_rows": shard.weight.shape[0],
            "num_columns": shard.weight.shape[1],
            "slots": sorted(shard.slots),
        })
    id_maps = sharded.id_maps.state()
    if env.device.type == "cuda":
        torch.cuda.synchronize(env.device)
    return Snapshot(
        tables=tables,
        chunks=chunks,
        random=_random_state(env),
        dense=_on_host(dict(sharded.dense_state())) if env.is_first else {},
        dense_optimizer=_on_host(sharded.dense_optimizer.state_dict()) if env.is_first else {},
        id_maps=id_maps if env.is_first else {},
        index={
            "version": CHECKPOINT_VERSION,
            "world_size": env.world_size,
            "optimizers": {t: o.name for t, o in sharded.table_optimizers.items()},
            "step_counts": sharded.step_counts(),
            "dense_parameters": dense_names(sharded),
            "state": dataclasses.asdict(state),
        },
    )


def dense_names(sharded: ShardedRanker) -> list[str]:
    """Return the dense parameters' names of `dense_state`, in the order of the dense optimizer."""
    names = {id(p): name for name, p in sharded.model.named_parameters()}
    groups = sharded.dense_optimizer.param_groups
    parameters = [names[id(p)] for group in groups for p in group["params"]]
    return [name.partition("dense.")[2] for name in parameters]


def stored_tensors(sharded: ShardedRanker, env: Env) -> dict[str, torch.Tensor]:
    """Return the tensors of this rank's chunks [rows, columns] by their stored names."""
    return {n: v for _, _, parts in _own_chunks(sharded, env) for n, v in parts.items()}


def host_buffers(stored: dict[str, torch.Tensor], env: Env) -> dict[str, torch.Tensor]:
    """Return host memory [rows, columns] for `take_snapshot`, touched; pinned for copies from a GPU.

    Memory that was never touched makes a copy 30 times slower (LOG.md, 2026-11-26).
    """
    pinned = env.device.type == "cuda"
    return {
        name: torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned).fill_(0)
        for name, values in stored.items()
    }


def _own_chunks(
    sharded: ShardedRanker, env: Env
) -> Iterator[tuple[TableShard, str, dict[str, torch.Tensor]]]:
    """Yield this rank's (shard, chunk name, tensors [rows, columns]).

    A replicated table is yielded by rank 0 alone.
    """
    for shard in sharded.table_shards():
        if shard.replicated and not env.is_first:
            continue
        name = f"{shard.table}/{shard.row}-{shard.column}"
        parts = {f"{name}/weight": shard.weight}
        yield shard, name, parts | {f"{name}/{slot}": v for slot, v in shard.slots.items()}


def tables_file(env: Env) -> str:
    """Return the name of the file that holds a rank's chunks."""
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


def _random_state(env: Env) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if env.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(env.device)
    return state
