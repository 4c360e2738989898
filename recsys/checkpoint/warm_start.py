"""Warm start: weights and optimizer state of another run's checkpoint, taken where they match.

In: the best checkpoint of a run, which rows of its tables are rows of this run's, and a ShardedRanker,
freshly initialised, of any number of ranks and any plan. Out: matched weights and optimizer state are
those of the checkpoint, everything else is as it was; a sentence for each part that was not taken.
Called by recsys/run/training.py. Shapes: R rows of this run's table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from recsys.checkpoint.chunks import COPY_BACK, ChunkReader, part_of, read_index
from recsys.checkpoint.snapshot import dense_names
from recsys.checkpoint.state import ID_MAPS
from recsys.files import reading
from recsys.runtime.collectives import sharing_errors
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.plan import TablePlan
from recsys.sharding.shards import TableShard

_BLOCK_ROWS = 65_536
"""Rows of a stored table that are read at a time where rows are matched one by one."""


@dataclass(frozen=True, kw_only=True)
class RowMatch:
    """Rows of a stored table that are rows of this run's table."""

    num_rows: int
    """Leading rows that both have at the same place; those above are new. Not read with `source_R`."""
    source_R: NDArray[np.int64] | None = None
    """Stored row of every row [R], -1 for a new one; None: the same place."""

    @property
    def num_matched(self) -> int:
        """Rows that are taken."""
        return self.num_rows if self.source_R is None else int((self.source_R >= 0).sum())


@sharing_errors()
def take_weights(
    path: Path,
    *,
    sharded: ShardedRanker,
    tables: Mapping[str, TablePlan],
    matches: Mapping[str, RowMatch | str],
    is_first_rank: bool = True,
) -> list[str]:
    """Take a checkpoint's weights and optimizer state where they match; all ranks call this.

    Args:
        tables: trainable tables of the model by name, with their rows and width.
        matches: by table, its rows there, or why it has none; a table that is left out has none. Of a
            table of fixed capacity they are rows of the vocabulary, and its map says the rest.

    Returns a sentence for every table and dense weight that was not taken, the same on every rank.

    Raises:
        UserError: the checkpoint is incomplete; on every rank.
    """
    index = read_index(path)
    reader = ChunkReader(path, index["chunks"])
    left_out: list[str] = []
    taken: dict[str, RowMatch] = {}
    maps = _read_maps(path)
    for name, table in tables.items():
        match = matches.get(name, "the run has no such table")
        stored_rows, stored_width = reader.extent(name)
        if not isinstance(match, str) and not stored_rows:
            match = "the run has no such table"
        if not isinstance(match, str) and stored_width != table.width:
            match = f"{stored_width} columns there, {table.width} here"
        capacity = None if sharded.id_maps.rows_of(name) is None else table.rows - 1
        capacity_there = stored_rows - 1 if f"{name}/table_row" in maps else None
        if not isinstance(match, str) and capacity != capacity_there:
            match = f"{_capacity_text(capacity_there)} there, {_capacity_text(capacity)} here"
        if isinstance(match, str):
            left_out.append(f"table {name} starts anew: {match}")
        else:
            taken[name] = match
    unread = sorted({chunk["table"] for chunk in index["chunks"]} - set(tables))
    left_out += [
        f"table {name} of the run is not used: the model reads no such table" for name in unread
    ]
    with_state = set()
    for name in taken:
        before, now = index["optimizers"].get(name), sharded.table_optimizers[name].name
        if before == now:
            with_state.add(name)
        else:
            left_out.append(
                f"optimizer state of table {name} starts anew: {before} there, {now} here"
            )
    _take_maps(sharded, maps, taken, is_first_rank=is_first_rank)
    for name in taken:
        if sharded.id_maps.rows_of(name) is not None:
            taken[name] = RowMatch(num_rows=tables[name].rows)
    for shard in sharded.table_shards():
        if shard.table in taken:
            _take_rows(reader, shard, taken[shard.table], with_state=shard.table in with_state)
    counts = index["step_counts"]
    sharded.load_step_counts({name: counts[name] for name in with_state if name in counts})
    return left_out + _take_dense(path, sharded, index.get("dense_parameters"))


def _capacity_text(capacity: int | None) -> str:
    return (
        "a row for every id" if capacity is None else f"{capacity:,} rows for ids that come and go"
    )


def _read_maps(path: Path) -> dict[str, torch.Tensor]:
    """Return the id maps of a checkpoint by table and part; empty without a table of fixed capacity."""
    if not (path / ID_MAPS).is_file():
        return {}
    with reading(path / ID_MAPS, COPY_BACK):
        return load_file(path / ID_MAPS)


def _take_maps(
    sharded: ShardedRanker,
    maps: Mapping[str, torch.Tensor],
    taken: Mapping[str, RowMatch],
    *,
    is_first_rank: bool,
) -> None:
    """Let ids have the rows that they had; those of a vocabulary with other rows are looked up by id."""
    if not sharded.id_maps:
        return
    fresh = sharded.id_maps.state()
    loaded = dict(fresh)
    for key, values in maps.items():
        table, _, part = key.rpartition("/")
        if table not in taken or key not in fresh:
            continue
        source_R = taken[table].source_R
        if source_R is None:
            loaded[key] = values
        elif part in ("table_row", "count", "last"):
            is_known = torch.from_numpy(source_R >= 0)
            loaded[key] = fresh[key].clone()
            loaded[key][is_known] = values[torch.from_numpy(source_R[source_R >= 0])]
        elif part == "totals":
            loaded[key] = values
    sharded.id_maps.load_state(loaded, is_first_rank=is_first_rank)


def _take_rows(
    reader: ChunkReader, shard: TableShard, match: RowMatch, *, with_state: bool
) -> None:
    """Fill the matched rows of a shard."""
    stored_rows, _ = reader.extent(shard.table)
    if match.source_R is None:
        num_rows = min(max(match.num_rows - shard.row, 0), len(shard.weight))
        _read(reader, part_of(shard, 0, num_rows, stored_rows), with_state=with_state)
        return
    source = match.source_R[shard.row : shard.row + len(shard.weight)]
    for start in range(0, stored_rows, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, stored_rows)
        places = np.flatnonzero((source >= start) & (source < stop))
        if not places.size:
            continue
        block = part_of(shard, 0, 0, stored_rows)
        block.row = start
        block.weight = shard.weight.new_empty(stop - start, shard.weight.shape[1])
        block.slots = {
            slot: values.new_empty(stop - start, values.shape[1])
            for slot, values in shard.slots.items()
        }
        _read(reader, block, with_state=with_state)
        from_block = torch.from_numpy(source[places] - start).to(shard.weight.device)
        to_shard = torch.from_numpy(places).to(shard.weight.device)
        shard.weight[to_shard] = block.weight[from_block]
        if with_state:
            for slot, values in shard.slots.items():
                values[to_shard] = block.slots[slot][from_block]


def _read(reader: ChunkReader, shard: TableShard, *, with_state: bool) -> None:
    reader.read_weight(shard)
    if with_state:
        for slot, values in shard.slots.items():
            reader.read_slot(shard, slot, values)


def _take_dense(path: Path, sharded: ShardedRanker, names: list[str] | None) -> list[str]:
    """Take the dense weights whose name and shape match, and their optimizer state.

    Args:
        names: of the stored optimizer's parameters, in its order; None: the checkpoint, of an earlier
            version, does not say.

    Returns a sentence for every weight that was not taken.
    """
    with reading(path / "dense.safetensors", COPY_BACK):
        stored = load_file(path / "dense.safetensors")
    own = sharded.dense_state()
    left_out, taken = [], {}
    for name, values in own.items():
        if name not in stored:
            left_out.append(f"dense weight {name} starts anew: the run has none of this name")
        elif stored[name].shape != values.shape:
            shapes = f"{list(stored[name].shape)} there, {list(values.shape)} here"
            left_out.append(f"dense weight {name} starts anew: {shapes}")
        else:
            taken[name] = stored[name]
    unread = sorted(set(stored) - set(own))
    left_out += [
        f"dense weight {name} of the run is not used: the model has none" for name in unread
    ]
    sharded.load_dense_state({**own, **taken})
    own_names = dense_names(sharded)
    if names is None and left_out:
        return [
            *left_out,
            "optimizer state of the dense part starts anew: the run does not name it",
        ]
    _take_dense_state(path, sharded, own_names if names is None else names, set(taken))
    return left_out


def _take_dense_state(
    path: Path, sharded: ShardedRanker, names: list[str], taken: set[str]
) -> None:
    """Load the dense optimizer's state of the weights that were taken; its settings stay this run's."""
    with reading(path / "dense-optimizer.pt", COPY_BACK):
        stored: dict[str, Any] = torch.load(
            path / "dense-optimizer.pt", weights_only=True, map_location="cpu"
        )
    by_name = {names[place]: values for place, values in stored["state"].items()}
    state = {
        place: by_name[name]
        for place, name in enumerate(dense_names(sharded))
        if name in taken and name in by_name
    }
    groups = sharded.dense_optimizer.state_dict()["param_groups"]
    sharded.dense_optimizer.load_state_dict({"state": state, "param_groups": groups})
