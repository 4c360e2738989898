"""Applies a plan: gives every rank its shards, initialises them, fills the frozen ones.

What enters: a ranker whose tables are on the meta device, its plan and table optimizers. What
leaves: a DistributedModelParallel ready for the step loop, and the optimizer that steps all of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding_types import ShardingType
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.model.modality import TABLE_PREFIX
from recsys.model.ranker import Ranker
from recsys.runtime.batch_norm import synchronise
from recsys.runtime.env import Env
from recsys.sharding.optimizers import OptimConfig, TableOptimizer, dense_penalty
from recsys.sharding.plan import MODALITY_PATH, TABLES_PATH
from recsys.sharding.search import TableSharder

ADAGRAD_EPS = 1e-8
"""FBGEMM's default, given to the dense form as well so that plans do not change the training."""
_INIT_BLOCK_ROWS = 65_536
_FILL_BLOCK_ROWS = 65_536

_FUSED = {"adam": torch.optim.Adam, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
# Names of optimizer state: torch's to FBGEMM's.
_FUSED_STATE_NAMES = {"sum": "sum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


class Vectors(Protocol):
    """A feature table of the feature store, as much of it as filling needs."""

    dim: int
    num_rows: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return float16 [stop - start, dim]; a masked row is all zero."""
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


@dataclass
class ShardedRanker:
    """The sharded model and what trains it."""

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    dense_optimizer: torch.optim.Optimizer
    """The part of `optimizer` that trains the dense weights."""
    table_optimizers: dict[str, TableOptimizer]
    _replicated: dict[str, tuple[nn.Parameter, torch.optim.Optimizer]]
    _base_rates: list[float]

    def set_learning_rate_factor(self, factor: float) -> None:
        """Scale every optimizer's base learning rate by `factor`."""
        for group, base in zip(self._param_groups(), self._base_rates, strict=True):
            group["lr"] = base * factor

    def _param_groups(self) -> list[Any]:
        # Asked of the torch optimizers each time: loading their state replaces the group objects,
        # and TorchRec's wrappers would go on pointing at the old ones.
        owners = [self.dense_optimizer, *(dense for _, dense in self._replicated.values())]
        groups = [group for owner in owners for group in owner.param_groups]
        return groups + list(self.model.fused_optimizer.param_groups)

    def table_shards(self) -> list[TableShard]:
        """Return this rank's pieces of the trainable tables with their optimizer state."""
        shards = list(_shards_of(_submodule(self.model, TABLES_PATH)))
        for shard in shards:
            if shard.replicated:
                shard.slots = _dense_slots(*self._replicated[shard.table])
        return shards

    def dense_state(self) -> dict[str, torch.Tensor]:
        """Return the dense part's parameters and buffers by name."""
        return _without_ddp(self.model).dense.state_dict()

    def load_dense_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load what `dense_state` returned."""
        _without_ddp(self.model).dense.load_state_dict(dict(state))

    def step_counts(self) -> dict[str, int]:
        """Return Adam's step count per table (bias correction needs it)."""
        counts = {}
        for table, (parameter, dense) in self._replicated.items():
            step = dense.state.get(parameter, {}).get("step")
            if step is not None:
                counts[table] = int(step)
        for config, kernel, replicated in _kernels(_submodule(self.model, TABLES_PATH)):
            if not replicated:
                counts |= {table.name: int(kernel.iter) for table in config.embedding_tables}
        return counts

    def load_step_counts(self, counts: Mapping[str, int]) -> None:
        """Set what `step_counts` returned."""
        for table, (parameter, dense) in self._replicated.items():
            if table in counts and "step" in dense.state[parameter]:
                dense.state[parameter]["step"].fill_(counts[table])
        for config, kernel, replicated in _kernels(_submodule(self.model, TABLES_PATH)):
            if not replicated:
                kernel.set_optimizer_step(
                    max(counts.get(table.name, 0) for table in config.embedding_tables)
                )


def shard_ranker(
    *,
    ranker: Ranker,
    plan: ShardingPlan,
    env: Env,
    optim: OptimConfig,
    table_optimizers: Mapping[str, TableOptimizer],
    modality_vectors: Mapping[str, Vectors],
    replicate_modality: bool,
    sharder: TableSharder,
    embedding_init: float,
    seed: int,
) -> ShardedRanker:
    """Shard, initialise and fill the ranker's tables; build the optimizers.

    Order of initialisation: (1) storage for each rank's shards, (2) trainable tables from `seed`,
    the same whatever the plan, (3) frozen tables from the feature store, (4) dense weights as they
    were built (the same on every rank). A checkpoint, if any, is loaded over it by the caller.

    Args:
        ranker: built by recsys.model.build, tables on the meta device.
        plan: from recsys.sharding.plan.sharding_plan.
        modality_vectors: feature store tables by modality name.
        replicate_modality: hold the frozen tables whole on every rank.
        sharder: from recsys.sharding.search.table_sharder.
        embedding_init: half-width of the trainable tables' uniform initial values.
        seed: of the trainable tables.
    """
    sharding = _sharding_types(plan)
    _attach_fused_optimizers(ranker, sharding, table_optimizers)
    ranker.dense.to(env.device)
    synchronise(ranker.dense)
    if replicate_modality and ranker.inputs.modality is not None:
        ranker.inputs.modality.tables = _replicate(ranker.inputs.modality.tables, env)
    model = DistributedModelParallel(
        ranker,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=env.device,
        plan=plan,
        sharders=[sharder],
    )
    collection = _submodule(model, TABLES_PATH)
    for shard in _shards_of(collection):
        _initialise(shard, embedding_init, seed)
    if modality_vectors:
        for shard in _frozen_shards(_submodule(model, MODALITY_PATH)):
            _fill(shard, modality_vectors[shard.table.removeprefix(TABLE_PREFIX)])
    return _with_optimizers(model, sharding, optim, table_optimizers)


def _sharding_types(plan: ShardingPlan) -> dict[str, str]:
    """Sharding type of every trainable table."""
    module_plan: Any = plan.get_plan_for_module(TABLES_PATH)
    assert module_plan is not None, "a ranker always has trainable tables"
    return {name: sharding.sharding_type for name, sharding in module_plan.items()}


def _attach_fused_optimizers(
    ranker: Ranker, sharding: Mapping[str, str], optimizers: Mapping[str, TableOptimizer]
) -> None:
    """Mark every model-parallel table with the optimizer that FBGEMM fuses into its backward."""
    bags: Any = ranker.inputs.embeddings.embedding_bags
    for table, bag in bags.items():
        if sharding[table] == ShardingType.DATA_PARALLEL.value:
            continue
        chosen = optimizers[table]
        # FBGEMM's kernels penalise looked-up rows only, each in a way of its own.
        assert not chosen.l2, f"{table}: a table with an L2 penalty is replicated"
        kwargs: dict[str, Any] = {"lr": chosen.learning_rate}
        if chosen.name == "rowwise_adagrad":
            kwargs["eps"] = ADAGRAD_EPS
        apply_optimizer_in_backward(_FUSED[chosen.name], [bag.weight], kwargs)
    if ranker.inputs.modality is not None:
        # Never stepped (looked up without gradient); SGD keeps no state, so it costs no memory.
        bags = ranker.inputs.modality.tables.embedding_bags
        for bag in bags.values():
            apply_optimizer_in_backward(torch.optim.SGD, [bag.weight], {"lr": 0.0})


class ReplicatedTables(FusedEmbeddingBagCollection):
    """TorchRec's unsharded fused collection, fit to sit inside DistributedModelParallel.

    DistributedModelParallel reads `fused_optimizer` as a property; TorchRec defines a method here.
    """

    @property
    def fused_optimizer(self) -> KeyedOptimizer:  # type: ignore[override]
        """The (idle) optimizer of the tables."""
        return self._optim

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return the pooled vectors, as TorchRec's own forward does.

        That one ends with a concatenation of what its kernels return, which for a single kernel is a
        copy of all vectors of the batch.
        """
        (kernel,) = self._emb_modules
        # Looked up by name, never run through: the pipeline traces this method with symbols.
        by_feature = features.to_dict()
        names = [name for table in self._embedding_bag_configs for name in table.feature_names]
        values = torch.cat([by_feature[name].values() for name in names])
        lengths = torch.cat([by_feature[name].lengths() for name in names])
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
        return KeyedTensor(
            keys=self._embedding_names,
            length_per_key=self._length_per_key,
            values=kernel(values.int(), offsets.int(), None),
        )


def _replicate(tables: EmbeddingBagCollection, env: Env) -> ReplicatedTables:
    """Return the frozen collection held whole by this rank, on FBGEMM's kernel.

    Kernel and output are those of the sharded form; only the exchange falls away, which on two CPU
    ranks costs half the speed.
    """
    whole = ReplicatedTables(
        tables=tables.embedding_bag_configs(),
        optimizer_type=torch.optim.SGD,
        optimizer_kwargs={"lr": 0.0},
        device=env.device,
    )
    # Without a gradient DistributedDataParallel leaves the tables alone.
    return whole.requires_grad_(False)


def _submodule(model: DistributedModelParallel, path: str) -> nn.Module:
    return _without_ddp(model).get_submodule(path)


def _without_ddp(model: DistributedModelParallel) -> Any:
    module: Any = model.module
    return module.module if isinstance(module, DistributedDataParallel) else module


def _kernels(collection: Any) -> Iterator[tuple[Any, Any, bool]]:
    """Yield (grouped config, kernel, replicated) of every lookup group of a sharded collection."""
    for lookup in collection._lookups:
        replicated = isinstance(lookup, DistributedDataParallel)
        inner = lookup.module if replicated else lookup
        for group in inner._emb_modules:
            yield group._config, group.emb_module, replicated


def _shards_of(collection: nn.Module) -> Iterator[TableShard]:
    """Yield this rank's pieces of a sharded collection, fused optimizer state included."""
    for config, kernel, replicated in _kernels(collection):
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
                slots={n: _as_rows(v) for n, v in state.items() if n in _FUSED_STATE_NAMES},
            )


def _frozen_shards(collection: Any) -> Iterator[TableShard]:
    """Yield this rank's pieces of the frozen collection, sharded or replicated."""
    if not isinstance(collection, ReplicatedTables):
        yield from _shards_of(collection)
        return
    for config in collection.embedding_bag_configs():
        weight = collection.embedding_bags[config.name].weight
        yield TableShard(
            table=config.name,
            weight=weight.detach(),
            row=0,
            column=0,
            num_rows_of_table=config.num_embeddings,
            num_columns_of_table=config.embedding_dim,
            replicated=True,
        )


def _as_rows(state: torch.Tensor) -> torch.Tensor:
    """[rows] to [rows, 1]; [rows, columns] stays. A view, so that loading writes through."""
    return state.detach().unsqueeze(1) if state.dim() == 1 else state.detach()


def _initialise(shard: TableShard, bound: float, seed: int) -> None:
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


def _fill(shard: TableShard, vectors: Vectors) -> None:
    """Copy feature vectors into a shard of a frozen table, with the mask in column `dim`."""
    rows, columns = shard.weight.shape
    for start in range(0, rows, _FILL_BLOCK_ROWS):
        stop = min(rows, start + _FILL_BLOCK_ROWS)
        values = torch.from_numpy(np.array(vectors.read(shard.row + start, shard.row + stop)))
        stored = torch.zeros(stop - start, shard.num_columns_of_table, dtype=torch.float16)
        stored[:, : vectors.dim] = values
        stored[:, vectors.dim] = (values != 0).any(dim=1)
        shard.weight[start:stop].copy_(stored[:, shard.column : shard.column + columns])


def _dense_optimizer_for(chosen: TableOptimizer, parameter: nn.Parameter) -> torch.optim.Optimizer:
    """The optimizer of a replicated table: same rule as the fused one."""
    if chosen.name == "adam":
        return torch.optim.Adam(
            [parameter], lr=chosen.learning_rate, weight_decay=chosen.l2, fused=True
        )
    if chosen.name == "rowwise_adagrad":
        return RowWiseAdagrad(
            [parameter], lr=chosen.learning_rate, weight_decay=chosen.l2, eps=ADAGRAD_EPS
        )
    return torch.optim.SGD([parameter], lr=chosen.learning_rate, weight_decay=chosen.l2)


def _with_optimizers(
    model: DistributedModelParallel,
    sharding: Mapping[str, str],
    optim: OptimConfig,
    optimizers: Mapping[str, TableOptimizer],
) -> ShardedRanker:
    replicated: dict[str, tuple[nn.Parameter, torch.optim.Optimizer]] = {}
    dense_parameters = {}
    tables_prefix = TABLES_PATH + ".embedding_bags."
    for name, parameter in model.named_parameters():
        if name.startswith(tables_prefix):
            table = name.removeprefix(tables_prefix).removesuffix(".weight")
            if sharding[table] == ShardingType.DATA_PARALLEL.value:
                dense = _dense_optimizer_for(optimizers[table], parameter)
                _materialise_state(dense, parameter)
                replicated[table] = (parameter, dense)
        elif not name.startswith(MODALITY_PATH + "."):
            dense_parameters[name] = parameter
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in dense_parameters.items():
        l2 = dense_penalty(optim, name.removeprefix("scorer.dense."), parameter.dim())
        groups.setdefault(l2, []).append(parameter)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    dense_optimizer = kinds[optim.dense_name](
        [
            {"params": parameters, "weight_decay": optim.dense_weight_decay + l2}
            for l2, parameters in groups.items()
        ],
        lr=optim.dense_learning_rate,
        weight_decay=optim.dense_weight_decay,
        fused=True,
    )
    parts: list[Any] = [
        ("dense", KeyedOptimizerWrapper(dense_parameters, lambda _: dense_optimizer))
    ]
    for table, (parameter, dense) in replicated.items():
        wrapped = KeyedOptimizerWrapper({table: parameter}, lambda _, dense=dense: dense)
        parts.append((f"tables.{table}", wrapped))
    parts.append(("fused", model.fused_optimizer))
    sharded = ShardedRanker(
        model=model,
        optimizer=CombinedOptimizer(parts),
        dense_optimizer=dense_optimizer,
        table_optimizers=dict(optimizers),
        _replicated=replicated,
        _base_rates=[],
    )
    sharded._base_rates = [group["lr"] for group in sharded._param_groups()]
    return sharded


def _materialise_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Give Adam its state now, not at the first step, so that a checkpoint can fill it."""
    if isinstance(optimizer, torch.optim.Adam):
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def _dense_slots(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """State of a replicated table's optimizer under the names FBGEMM gives the fused one's."""
    state = optimizer.state[parameter]
    return {
        fused: _as_rows(state[name]) for name, fused in _FUSED_STATE_NAMES.items() if name in state
    }
