"""Shards: one rank's pieces of the tables, found in a sharded model, initialised and filled.

In: sharded collections. Out: TableShard records whose tensors are views into the kernels' memory.
Called by recsys/sharding/apply.py; recsys/checkpoint/ writes and reads shards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.sharding.dp_sharding import DpPooledEmbeddingSharding
from torchrec.modules.embedding_configs import EmbeddingBagConfig, data_type_to_sparse_type
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from embedding.features.codes import Codebooks
from recsys.model.modality import TABLE_PREFIX
from recsys.sharding.coded import CodedTables, coded_rows

STATE_NAMES = ("sum", "exp_avg", "exp_avg_sq")
"""Optimizer state that a checkpoint keeps; torch and FBGEMM name it alike."""
_INIT_BLOCK_ROWS = 65_536
_FILL_BLOCK_ROWS = 65_536


class Vectors(Protocol):
    """A feature table of the feature store: [num_rows, dim] vectors, read by ranges of rows."""

    dim: int
    num_rows: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return float16 [N, dim], N = stop - start; a masked row is all zero."""
        ...


@dataclass
class TableShard:
    """One rank's piece of a table, with its optimizer state."""

    table: str
    weight: torch.Tensor
    """[rows, columns] view into the kernel's memory."""
    row: int
    """First row of the piece."""
    column: int
    """First column of the piece."""
    num_rows_of_table: int
    num_columns_of_table: int
    replicated: bool
    """True where every rank holds the same whole table."""
    slots: dict[str, torch.Tensor] = field(default_factory=dict)
    """Optimizer state: [rows, columns], or [rows, 1] for one value a row."""


class ReplicatedTables(nn.Module):
    """Frozen tables held whole by a rank, in their own precision, looked up by one FBGEMM kernel.

    TorchRec's unsharded fused collection would do, but keeps fp16 tables in fp32 (torchrec 1.6 to
    1.8), so that they take, and a lookup reads, twice the bytes.
    """

    def __init__(
        self, configs: Sequence[EmbeddingBagConfig], device: torch.device, *, in_bf16: bool
    ):
        """Args: configs: of SUM pooling and one precision; device: of the tables.
        in_bf16: a dense part of bf16 reads what is looked up; sums are of fp32.
        """
        super().__init__()
        self._configs = list(configs)
        (precision,) = {config.data_type for config in self._configs}
        on_gpu = device.type == "cuda"
        location = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
        compute = ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU
        self._features = [name for config in self._configs for name in config.feature_names]
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(c.num_embeddings, c.embedding_dim, location, compute) for c in self._configs],
            feature_table_map=[
                number for number, c in enumerate(self._configs) for _ in c.feature_names
            ],
            weights_precision=data_type_to_sparse_type(precision),
            output_dtype=SparseType.BF16 if in_bf16 and on_gpu else SparseType.FP32,
            pooling_mode=PoolingMode.SUM,
            # Never stepped: SGD keeps no state.
            optimizer=EmbOptimType.EXACT_SGD,
            learning_rate=0.0,
            device=device,
        )
        self._names = [
            name for names in get_embedding_names_by_table(self._configs) for name in names
        ]
        self._widths = [c.embedding_dim for c in self._configs for _ in c.feature_names]
        # In a list, which registers nothing: its memory is registered once, as one weight a table.
        self._kernels = [kernel]
        self.embedding_bags = nn.ModuleDict()
        for config, weight in zip(self._configs, kernel.split_embedding_weights(), strict=True):
            bag = nn.Module()
            # Without a gradient DistributedDataParallel leaves the tables alone.
            bag.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
            self.embedding_bags[config.name] = bag

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables' configurations, in their order."""
        return self._configs

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return the pooled vectors [B, sum of widths]."""
        ids, lengths = _side_by_side(features, self._features)
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
        return KeyedTensor(
            keys=self._names,
            length_per_key=self._widths,
            values=self._kernels[0](ids.int(), offsets.int()),
        )


def _side_by_side(
    features: KeyedJaggedTensor, names: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of features one after the other, and the lengths of all their lists.

    KeyedJaggedTensor.to_dict makes offsets of every list besides, in one block of a GPU a feature.
    """
    keys = features.keys()
    ids = dict(zip(keys, features.values().split(features.length_per_key()), strict=True))
    lengths = dict(zip(keys, features.lengths().reshape(len(keys), -1), strict=True))
    return torch.cat([ids[name] for name in names]), torch.cat([lengths[name] for name in names])


def replicate(
    tables: EmbeddingBagCollection,
    books: Mapping[str, Codebooks],
    device: torch.device,
    in_bf16: bool = False,
) -> nn.Module:
    """Return the frozen collection held whole by this rank: on FBGEMM's kernel, or as codes.

    Kernel and output are those of the sharded form; only the exchange falls away, which on two CPU
    ranks costs half the speed.

    Args:
        in_bf16: a GPU's lookup on FBGEMM's kernel returns bf16, of which a dense part of bf16 has no cast
            left to make.
    """
    configs = tables.embedding_bag_configs()
    if books:
        return CodedTables(configs, books, device)
    return ReplicatedTables(configs, device, in_bf16=in_bf16)


def kernels_of(collection: Any) -> Iterator[tuple[Any, Any, bool]]:
    """Yield (grouped config, kernel, replicated) of every lookup group of a sharded collection."""
    shardings = collection._embedding_shardings
    for lookup, sharding in zip(collection._lookups, shardings, strict=True):
        replicated = isinstance(sharding, DpPooledEmbeddingSharding)
        inner = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
        for group in inner._emb_modules:
            yield group._config, group.emb_module, replicated


def has_pieces(collection: Any) -> bool:
    """Return whether ranks have different pieces of some tables; the answer is the same on all ranks.

    All ranks have the same shardings; a rank without a piece has no kernel to ask.
    """
    shardings = collection._embedding_shardings
    return any(not isinstance(sharding, DpPooledEmbeddingSharding) for sharding in shardings)


def average_with_nobody(collection: Any) -> None:
    """Take DistributedDataParallel off the replicated tables of a collection, for a world of one rank.

    It would copy their gradients, a whole table each, at every step, and average them with nobody's.
    """
    for number, lookup in enumerate(collection._lookups):
        if isinstance(lookup, DistributedDataParallel):
            collection._lookups[number] = lookup.module


def count_updates_only(kernel: nn.Module) -> None:
    """Let a fused kernel count only forwards that are trained on: Adam's bias correction reads the count.

    FBGEMM counts every forward, so that validations would change the training after them.
    """

    def uncount(kernel: Any, inputs: object, output: object) -> None:
        if not torch.is_grad_enabled():
            kernel.iter.sub_(1)
            kernel.iter_cpu.sub_(1)

    kernel.register_forward_hook(uncount)


def shards_of(collection: nn.Module) -> Iterator[TableShard]:
    """Yield this rank's pieces of a sharded collection, fused optimizer state included."""
    for config, kernel, replicated in kernels_of(collection):
        if not replicated:
            kernel.flush()  # rows that a cache on the accelerator holds newer than the table
        weights = kernel.split_embedding_weights()
        # A replicated table's state lives in a torch optimizer; SGD reports no state at all.
        states = [] if replicated else kernel.get_optimizer_state()
        states = states or [{}] * len(weights)
        for table, weight, state in zip(config.embedding_tables, weights, states, strict=True):
            offsets = (0, 0) if replicated else tuple(table.local_metadata.shard_offsets)
            yield TableShard(
                table=table.name,
                weight=weight.detach(),
                row=offsets[0],
                column=offsets[1],
                num_rows_of_table=table.num_embeddings,
                num_columns_of_table=table.embedding_dim,
                replicated=replicated,
                slots={n: as_rows(v) for n, v in state.items() if n in STATE_NAMES},
            )


def frozen_shards(collection: Any) -> Iterator[TableShard]:
    """Yield this rank's pieces of the frozen collection, sharded or replicated."""
    if not isinstance(collection, ReplicatedTables):
        yield from shards_of(collection)
        return
    for config in collection.embedding_bag_configs():
        weight: Any = collection.embedding_bags[config.name].weight
        yield TableShard(
            table=config.name,
            weight=weight.detach(),
            row=0,
            column=0,
            num_rows_of_table=config.num_embeddings,
            num_columns_of_table=config.embedding_dim,
            replicated=True,
        )


def as_rows(state: torch.Tensor) -> torch.Tensor:
    """Return [rows] as [rows, 1], and [rows, columns] as it is: views, so that loading writes through."""
    return state.detach().unsqueeze(1) if state.dim() == 1 else state.detach()


def initialise(shard: TableShard, bound: float, seed: int) -> None:
    """Fill a shard of a trainable table with values that depend on (seed, table, row, column) only.

    Uniform in +-bound, drawn in blocks of rows with a generator of its own,
    so that any rank draws any block alone and every plan starts from the same table.
    """
    first, last = shard.row, shard.row + shard.weight.shape[0]
    for block in range(first // _INIT_BLOCK_ROWS, -(-last // _INIT_BLOCK_ROWS)):
        generator = torch.Generator().manual_seed(
            xxhash.xxh64_intdigest(f"{seed}/{shard.table}/{block}".encode()) >> 1
        )
        start = block * _INIT_BLOCK_ROWS
        values = torch.empty(_INIT_BLOCK_ROWS, shard.num_columns_of_table)
        values.uniform_(-bound, bound, generator=generator)
        low, high = max(first, start), min(last, start + _INIT_BLOCK_ROWS)
        columns = slice(shard.column, shard.column + shard.weight.shape[1])
        shard.weight[low - first : high - first].copy_(values[low - start : high - start, columns])


def reset_rows(shard: TableShard, rows_K: NDArray[np.int64], bound: float, key: int) -> None:
    """Let rows of a trainable table begin anew, as far as the shard holds them: values and state.

    Values are uniform in +-bound and depend on (key, row, column) only; optimizer state is zero.

    Args:
        rows_K: rows of the table [K].
        key: of the values, 64 bits.
    """
    own_K = rows_K[(rows_K >= shard.row) & (rows_K < shard.row + shard.weight.shape[0])]
    columns = shard.column + np.arange(shard.weight.shape[1])
    numbers = own_K[:, None] * shard.num_columns_of_table + columns
    values = torch.from_numpy((2 * _uniform(numbers, key) - 1) * np.float32(bound))
    places = torch.from_numpy(own_K - shard.row).to(shard.weight.device)
    shard.weight[places] = values.to(shard.weight)
    for state in shard.slots.values():
        state[places] = 0


def _uniform(numbers: NDArray[np.int64], key: int) -> NDArray[np.float32]:
    """Return for each number a value in [0, 1) that it and the key decide (splitmix64), same shape."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed += np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def drop_caches(collection: Any) -> None:
    """Let kernels forget the rows that they cache on an accelerator, after tables were written to."""
    for _, kernel, replicated in kernels_of(collection):
        if not replicated:
            kernel.reset_cache_states()


def fill(shard: TableShard, vectors: Vectors) -> None:
    """Copy feature vectors into a shard of a frozen table, with the mask in column `dim`."""
    rows, columns = shard.weight.shape
    for start in range(0, rows, _FILL_BLOCK_ROWS):
        stop = min(rows, start + _FILL_BLOCK_ROWS)
        values = torch.from_numpy(np.array(vectors.read(shard.row + start, shard.row + stop)))
        stored = torch.zeros(stop - start, shard.num_columns_of_table, dtype=torch.float16)
        stored[:, : vectors.dim] = values
        stored[:, vectors.dim] = (values != 0).any(dim=1)
        shard.weight[start:stop].copy_(stored[:, shard.column : shard.column + columns])


def fill_frozen(
    collection: nn.Module, vectors: Mapping[str, Any], books: Mapping[str, Codebooks]
) -> None:
    """Copy feature tables into this rank's pieces of the frozen tables: codes where they have books.

    Args:
        vectors: feature tables by modality.
        books: by name of the table.
    """
    if books:
        for rows in coded_rows(collection):
            rows.fill(vectors[rows.table.removeprefix(TABLE_PREFIX)])
        return
    for shard in frozen_shards(collection):
        fill(shard, vectors[shard.table.removeprefix(TABLE_PREFIX)])
