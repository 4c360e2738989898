"""Warm start: weights and optimizer state of another run's checkpoint, taken where they match.

In: the best checkpoint of a run, which rows of its tables are rows of this run's, and a ShardedRanker,
freshly initialised, of any number of ranks and any plan. Out: matched weights and optimizer state are
those of the checkpoint, everything else is as it was; a sentence for each part that was not taken.
Called by recsys/run/training.py. Shapes: R rows of this run's table.
"""

from collections.abc import Collection, Mapping
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

_NO_TABLE = "the run has no such table"
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
        matches: by table, its rows there, or why it has none; a table that is left out has none.
            Those of a table of fixed capacity are rows of the vocabulary, and its map says the rest.

    Returns a sentence for every table and dense weight that was not taken, the same on every rank.

    Raises:
        UserError: the checkpoint is incomplete; on every rank.
    """
    fresh_maps = sharded.id_maps.state()
    with sharing_errors():
        return _take(path, sharded, tables, matches, fresh_maps, is_first_rank)


def _take(
    path: Path,
    sharded: ShardedRanker,
    tables: Mapping[str, TablePlan],
    matches: Mapping[str, RowMatch | str],
    fresh_maps: Mapping[str, torch.Tensor],
    is_first_rank: bool,
) -> list[str]:
    """Take what `take_weights` says; `fresh_maps`: id maps [N] without ids, by table and part."""
    index = read_index(path)
    reader = ChunkReader(path, index["chunks"])
    maps = _read_maps(path)
    capacities = {
        name: tables[name].rows - 1 for name in sharded.id_maps.rows_by_table() if name in tables
    }
    taken, left_out = _matching(reader, tables, matches, capacities, set(maps))
    with_state = set()
    for name in taken:
        before, now = index["optimizers"].get(name), sharded.table_optimizers[name].name
        if before == now:
            with_state.add(name)
        else:
            left_out.append(
                f"optimizer state of table {name} starts anew: {before} there, {now} here"
            )
    if fresh_maps:
        loaded = _maps_of(fresh_maps, maps, taken)
        sharded.id_maps.load_state(loaded, is_first_rank=is_first_rank)
    taken |= {n: RowMatch(num_rows=tables[n].rows) for n in capacities if n in taken}
    for shard in sharded.table_shards():
        if shard.table in taken:
            _take_rows(reader, shard, taken[shard.table], with_state=shard.table in with_state)
    counts = index["step_counts"]
    sharded.load_step_counts({name: counts[name] for name in with_state if name in counts})
    return left_out + _take_dense(path, sharded, index.get("dense_parameters"))


def _matching(
    reader: ChunkReader,
    tables: Mapping[str, TablePlan],
    matches: Mapping[str, RowMatch | str],
    capacities: Mapping[str, int],
    maps: Collection[str],
) -> tuple[dict[str, RowMatch], list[str]]:
    """Return the tables that are taken, and a sentence for every other one.

    Args:
        capacities: of the model's tables that have a fixed one.
        maps: names of the parts of the stored id maps.
    """
    left_out: list[str] = []
    taken: dict[str, RowMatch] = {}
    for name, table in tables.items():
        match = matches.get(name, _NO_TABLE)
        num_rows, width = reader.extent(name)
        before = num_rows - 1 if f"{name}/table_row" in maps else None
        if isinstance(match, str) or not num_rows:
            reason = match if isinstance(match, str) else _NO_TABLE
        elif width != table.width:
            reason = f"{width} columns there, {table.width} here"
        elif before != capacities.get(name):
            reason = f"{_rows_text(before)} there, {_rows_text(capacities.get(name))} here"
        else:
            taken[name] = match
            continue
        left_out.append(f"table {name} starts anew: {reason}")
    for name in sorted({chunk["table"] for chunk in reader.chunks} - set(tables)):
        left_out.append(f"table {name} of the run is not used: the model reads no such table")
    return taken, left_out


def _rows_text(capacity: int | None) -> str:
    return (
        "a row for every id" if capacity is None else f"{capacity:,} rows for ids that come and go"
    )


def _read_maps(path: Path) -> dict[str, torch.Tensor]:
    """Return the id maps of a checkpoint, arrays [N] by table and part; empty without any."""
    if not (path / ID_MAPS).is_file():
        return {}
    with reading(path / ID_MAPS, COPY_BACK):
        return load_file(path / ID_MAPS)


def _maps_of(
    fresh: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.Tensor],
    taken: Mapping[str, RowMatch],
) -> dict[str, torch.Tensor]:
    """Return id maps [N] in which ids have the rows that they had, by table and part.

    Args:
        fresh: maps without ids, of this run's vocabularies.
    """
    maps = dict(fresh)
    for key, values in stored.items():
        table, _, part = key.rpartition("/")
        if table not in taken or key not in fresh:
            continue
        source_R = taken[table].source_R
        if source_R is None or part == "totals":
            maps[key] = values
        elif part in ("table_row", "count", "last"):
            is_known = torch.from_numpy(source_R >= 0)
            maps[key] = fresh[key].clone()
            maps[key][is_known] = values[torch.from_numpy(source_R[source_R >= 0])]
    return maps


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
