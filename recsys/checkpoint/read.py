"""Reading of checkpoints: each rank takes from the stored chunks whatever its own shards cover.

In: the folder of a checkpoint (its files: write.py) and a ShardedRanker, of any number of ranks
and any plan. Out: the loop state; weights, optimizer and random state are loaded in place.
Called by launch/train.py and launch/evaluate.py.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from recsys.checkpoint.chunks import COPY_BACK, ChunkReader, read_index
from recsys.checkpoint.state import ID_MAPS, TrainState, stored_state
from recsys.errors import UserError
from recsys.files import reading
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import Env
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.id_maps import rows_by_table
from recsys.sharding.shards import TableShard


@sharing_errors()
def load_checkpoint(
    path: Path,
    *,
    sharded: ShardedRanker,
    env: Env,
    with_optimizer: bool = True,
    is_grown: bool = False,
) -> TrainState:
    """Load weights, and for training the optimizer and random state too; return the loop state.

    All ranks call this. Their number and the sharding plan may differ from those that saved it. Random
    state is restored where the number of ranks is the same.

    Args:
        is_grown: rows were appended to the data since: ids above the stored tables are unknown, so their
            rows get the values of row 0.

    Raises:
        UserError: the checkpoint is incomplete, or belongs to another model or table optimizer; on every
            rank.
    """
    index = read_index(path)
    shards = sharded.table_shards()
    reader = ChunkReader(path, index["chunks"])
    for shard in shards:
        (reader.read_grown if is_grown else reader.read_weight)(shard)
    if with_optimizer:
        _check_optimizers(path, index["optimizers"], sharded)
        for shard in shards:
            for slot, values in shard.slots.items():
                reader.read_slot(shard, slot, values)
        sharded.load_step_counts(index["step_counts"])
    if sharded.id_maps:
        with reading(path / ID_MAPS, COPY_BACK):
            sharded.id_maps.load_state(load_file(path / ID_MAPS), is_first_rank=env.is_first)
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
    return stored_state(index["state"])


class StoredTables:
    """Weights of a checkpoint, read without a model: tables by ranges of rows, the dense half whole."""

    def __init__(self, path: Path, grown_rows: Mapping[str, int] = MappingProxyType({})):
        """Read the index of a checkpoint, of any number of ranks and any plan.

        Args:
            grown_rows: rows by table of data that was appended to since: those above the stored ones
                are read as the unknown row 0.

        Raises:
            UserError: the index is missing or broken.
        """
        index = read_index(path)
        self.path = path
        self.state: TrainState = stored_state(index["state"])
        self._reader = ChunkReader(path, index["chunks"])
        self._grown_rows = grown_rows
        self._id_maps: dict[str, NDArray[np.int32]] = {}
        if (path / ID_MAPS).is_file():
            with reading(path / ID_MAPS, COPY_BACK):
                stored = rows_by_table(load_file(path / ID_MAPS))
            for name, rows_N in stored.items():
                num_new = max(0, grown_rows.get(name, 0) - len(rows_N))
                self._id_maps[name] = np.concatenate([rows_N, np.zeros(num_new, np.int32)])

    def id_map(self, table: str) -> NDArray[np.int32] | None:
        """Return the row of every id of the vocabulary [N]; None: each has its own, of its number."""
        return self._id_maps.get(table)

    def num_ids(self, table: str) -> int:
        """Return the ids N of a table's vocabulary, the unknown one included."""
        rows_N = self.id_map(table)
        return self.shape(table)[0] if rows_N is None else len(rows_N)

    def shape(self, table: str) -> tuple[int, int]:
        """Return (rows, columns) of a table; (0, 0) where the checkpoint has none of this name."""
        num_rows, num_columns = self._reader.extent(table)
        can_grow = num_rows and table not in self._id_maps
        grown_rows = self._grown_rows.get(table, 0) if can_grow else 0
        return max(num_rows, grown_rows), num_columns

    def read(self, table: str, start: int, stop: int) -> torch.Tensor:
        """Return rows [start, stop) as float32 [stop - start, columns].

        Raises:
            UserError: the chunks do not cover the rows, or a file is damaged.
        """
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
        (self._reader.read_grown if self._grown_rows else self._reader.read_weight)(rows)
        return rows.weight

    def read_dense(self) -> dict[str, torch.Tensor]:
        """Return the state of the dense half by name: matrices [out, in], vectors [out]."""
        with reading(self.path / "dense.safetensors", COPY_BACK):
            return load_file(self.path / "dense.safetensors")


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
