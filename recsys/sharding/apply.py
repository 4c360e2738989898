"""Application of a plan: every rank gets its shards, the model its optimizers.

In: a ranker whose tables are on the meta device, its plan, the settings of its tables. Out: a
DistributedModelParallel ready for the step loop, and the optimizer that steps all of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from recsys.errors import UserError
from recsys.model.modality import TABLE_PREFIX
from recsys.model.ranker import Ranker, Scorer
from recsys.runtime.batch_norm import synchronise
from recsys.runtime.collectives import share
from recsys.runtime.env import Env
from recsys.sharding.coded import CodedTables, bases_of, codebooks_of, coded_kernels
from recsys.sharding.data_parallel import data_parallel
from recsys.sharding.id_maps import IdMaps
from recsys.sharding.optimizers import OptimConfig, TableOptimizer
from recsys.sharding.plan import (
    DATA_PARALLEL,
    HOST_TYPES,
    MODALITY_PATH,
    REPLICATED,
    TABLES_PATH,
    Plan,
    TablePlan,
    sharding_plan,
)
from recsys.sharding.planner import table_sharder
from recsys.sharding.shards import (
    STATE_NAMES,
    ReplicatedTables,
    TableShard,
    Vectors,
    as_rows,
    average_with_nobody,
    count_updates_only,
    drop_caches,
    fill_frozen,
    has_pieces,
    initialise,
    kernels_of,
    replicate,
    shards_of,
)
from recsys.sharding.ssd import check_trainable
from recsys.sharding.tables import TableSettings
from recsys.sharding.torch_optimizers import (
    ADAGRAD_EPS,
    materialise_state,
    optimizer_of_dense_part,
    replicated_optimizer,
)

_FUSED = {"adam": torch.optim.Adam, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}


@dataclass
class ShardedRanker:
    """A sharded model with its optimizers."""

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    dense_optimizer: torch.optim.Optimizer
    """The part of `optimizer` that trains the dense weights."""
    table_optimizers: dict[str, TableOptimizer]
    id_maps: IdMaps
    """Table rows of the ids of tables with a fixed capacity."""
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

    @property
    def scorer(self) -> Scorer:
        """The ranker without its loss."""
        return _without_ddp(self.model).scorer

    @property
    def dense(self) -> nn.Module:
        """The dense part."""
        return self.scorer.dense

    @property
    def sends_rows(self) -> bool:
        """Whether ranks send each other ids and vectors: not every rank holds every table whole."""
        paths = [TABLES_PATH]
        if _without_ddp(self.model).inputs.modality is not None:
            paths.append(MODALITY_PATH)
        tables = [_submodule(self.model, path) for path in paths]
        return any(
            has_pieces(collection)
            for collection in tables
            if not isinstance(collection, (ReplicatedTables, CodedTables))
        )

    def table_shards(self) -> list[TableShard]:
        """Return this rank's pieces of the trainable tables with their optimizer state."""
        shards = list(shards_of(_submodule(self.model, TABLES_PATH)))
        for shard in shards:
            if shard.replicated:
                shard.slots = _dense_slots(*self._replicated[shard.table])
        return shards

    def exchange_ids(self) -> dict[str, float]:
        """End a window of the id maps (IdMaps.exchange); all ranks call this."""
        freed, metrics = self.id_maps.exchange()
        if freed:
            self.id_maps.reset(self.table_shards(), freed)
            drop_caches(_submodule(self.model, TABLES_PATH))
        return metrics

    def dense_state(self) -> dict[str, torch.Tensor]:
        """Return the dense part's parameters and buffers by name: matrices [out, in], vectors [out]."""
        return self.dense.state_dict()

    def load_dense_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load the tensors that `dense_state` returned: matrices [out, in], vectors [out]."""
        self.dense.load_state_dict(dict(state))

    def step_counts(self) -> dict[str, int]:
        """Return Adam's step count per table (bias correction needs it)."""
        counts = {}
        for table, (parameter, dense) in self._replicated.items():
            step = dense.state.get(parameter, {}).get("step")
            if step is not None:
                counts[table] = int(step)
        for config, kernel, replicated in kernels_of(_submodule(self.model, TABLES_PATH)):
            if not replicated:
                counts |= {table.name: int(kernel.iter) for table in config.embedding_tables}
        return counts

    def load_step_counts(self, counts: Mapping[str, int]) -> None:
        """Set what `step_counts` returned."""
        for table, (parameter, dense) in self._replicated.items():
            if table in counts and "step" in dense.state[parameter]:
                dense.state[parameter]["step"].fill_(counts[table])
        for config, kernel, replicated in kernels_of(_submodule(self.model, TABLES_PATH)):
            if not replicated:
                count = max(counts.get(table.name, 0) for table in config.embedding_tables)
                kernel.set_optimizer_step(count)
                kernel.iter_cpu.fill_(count)  # its copy, which it reads only while that is 0


def share_plan(
    *,
    env: Env,
    make: Callable[[], Plan],
    tables: Mapping[str, TableSettings],
    source: str,
) -> Plan:
    """Return on every rank the plan that `make` returns on rank 0, checked against model and world.

    Args:
        make: called on rank 0 only.
        tables: of the model.
        source: file of the plan, for messages.

    Raises:
        UserError: on every rank, with rank 0's sentence, when planning failed there.
    """

    def made() -> Plan:
        check_trainable(tables)
        plan = make()
        check_matches(plan, tables=tables, env=env, source=source)
        return plan

    return share(made)


def check_matches(
    plan: Plan, *, tables: Mapping[str, TableSettings], env: Env, source: str
) -> None:
    """Raise UserError where a plan was made for another model or world.

    Raises:
        UserError: lists the differences.
    """
    different = []
    if plan.num_ranks != env.world_size:
        different.append(f"it is for {plan.num_ranks} ranks, this job has {env.world_size}")
    here = env.local_world_size
    planned_local = plan.cluster.accelerators_per_host
    by_host = any(shard.sharding in HOST_TYPES for shard in plan.shards)
    if by_host and planned_local != here:
        different.append(
            f"it places tables by hosts of {planned_local} ranks, this job has {here} on a host"
        )
    if plan.cluster.device != env.device.type:
        different.append(
            f"it is for device {plan.cluster.device}, this job runs on {env.device.type}"
        )
    planned = {table.table: table for table in plan.tables}
    different += [f"table {t!r} is not in the plan" for t in tables if t not in planned]
    different += [f"table {t!r} is not in the model" for t in planned if t not in tables]
    different += [
        f"it has table {t!r} on SSD, which is planned and not trained" for t in plan.on_ssd
    ]
    for name, settings in tables.items():
        if name in planned:
            different += _differences(settings, planned[name])
    if different:
        raise UserError(
            f"{source} does not match this job: " + "; ".join(different) + ". Plan again with "
            "launch/plan.py and the keys of this job, or use plan=auto"
        )


def _differences(settings: TableSettings, planned: TablePlan) -> list[str]:
    """Return a text for everything in which a table differs from its plan."""
    optimizer, table = settings.optimizer, planned.table
    now_and_planned = {
        "rows": (settings.rows, planned.rows),
        "width": (settings.width, planned.width),
        "dtype": (settings.precision, planned.dtype),
        "optimizer": (None if optimizer is None else optimizer.name, planned.optimizer),
    }
    different = [
        f"table {table!r} has {key} {now} and the plan says {then}"
        for key, (now, then) in now_and_planned.items()
        if now != then
    ]
    if optimizer is not None and optimizer.l2 and planned.sharding != DATA_PARALLEL:
        different.append(
            f"table {table!r} ({settings.rows:,} rows) has an L2 penalty of {optimizer.l2}, which "
            f"wants data_parallel, and the plan says {planned.sharding} "
            f"(tables.{table}.optimizer.l2=0 takes the penalty off)"
        )
    return different


def shard_ranker(
    *,
    ranker: Ranker,
    plan: Plan,
    env: Env,
    optim: OptimConfig,
    tables: Mapping[str, TableSettings],
    modality_vectors: Mapping[str, Vectors],
    id_maps: IdMaps,
    embedding_init: float,
    seed: int,
) -> ShardedRanker:
    """Shard, initialise and fill the ranker's tables; build the optimizers.

    Order of initialisation: (1) storage for each rank's shards, (2) trainable tables from `seed`,
    the same whatever the plan, (3) frozen tables from the feature store, (4) dense weights as they
    were built (the same on every rank). A checkpoint, if any, is loaded over it by the caller.

    Args:
        ranker: built by recsys.model.build, tables on the meta device.
        plan: checked by `share_plan`.
        tables: from recsys.sharding.tables.resolve_tables.
        modality_vectors: feature store tables by modality name.
        id_maps: of the tables, without ids.
        embedding_init: half-width of the trainable tables' uniform initial values.
        seed: of the trainable tables.
    """
    optimizers = {t: s.optimizer for t, s in tables.items() if s.optimizer is not None}
    torchrec_plan = sharding_plan(plan)
    sharding = _sharding_types(torchrec_plan)
    _attach_fused_optimizers(ranker, sharding, optimizers)
    ranker.dense.to(env.device)
    synchronise(ranker.dense)
    replicated = any(table.sharding == REPLICATED for table in plan.tables)
    books = {TABLE_PREFIX + n: found for n, found in codebooks_of(modality_vectors).items()}
    modality = ranker.inputs.modality
    if replicated and modality is not None:
        modality.tables = replicate(modality.tables, books, env.device, ranker.scorer.use_bf16)
    with coded_kernels(books):
        model = DistributedModelParallel(
            ranker,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=env.device,
            plan=torchrec_plan,
            sharders=[table_sharder(plan.communication, env.device)],
            data_parallel_wrapper=data_parallel(env.world_size),
        )
    if env.world_size == 1:
        average_with_nobody(_submodule(model, TABLES_PATH))
    for _, kernel, is_copy in kernels_of(_submodule(model, TABLES_PATH)):
        if not is_copy:
            count_updates_only(kernel)
    for shard in shards_of(_submodule(model, TABLES_PATH)):
        initialise(shard, embedding_init, seed)
    if modality_vectors:
        fill_frozen(_submodule(model, MODALITY_PATH), modality_vectors, books)
    if modality is not None:
        modality.bases = bases_of(books, env.device)
    return _with_optimizers(model, sharding, optim, optimizers, id_maps)


def _sharding_types(plan: ShardingPlan) -> dict[str, str]:
    """Return the sharding type of every trainable table."""
    module_plan: Any = plan.get_plan_for_module(TABLES_PATH)
    assert module_plan is not None, "a ranker always has trainable tables"
    return {name: sharding.sharding_type for name, sharding in module_plan.items()}


def _attach_fused_optimizers(
    ranker: Ranker, sharding: Mapping[str, str], optimizers: Mapping[str, TableOptimizer]
) -> None:
    """Mark every model-parallel table with the optimizer that FBGEMM fuses into its backward."""
    bags: Any = ranker.inputs.embeddings.embedding_bags
    for table, bag in bags.items():
        if sharding[table] == DATA_PARALLEL:
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


def _submodule(model: DistributedModelParallel, path: str) -> nn.Module:
    return _without_ddp(model).get_submodule(path)


def _without_ddp(model: DistributedModelParallel) -> Any:
    module: Any = model.module
    return module.module if isinstance(module, DistributedDataParallel) else module


def _with_optimizers(
    model: DistributedModelParallel,
    sharding: Mapping[str, str],
    optim: OptimConfig,
    optimizers: Mapping[str, TableOptimizer],
    id_maps: IdMaps,
) -> ShardedRanker:
    """Build the optimizers of the dense part and of replicated tables beside the fused ones."""
    replicated: dict[str, tuple[nn.Parameter, torch.optim.Optimizer]] = {}
    dense_parameters = {}
    tables_prefix = TABLES_PATH + ".embedding_bags."
    for name, parameter in model.named_parameters():
        if name.startswith(tables_prefix):
            table = name.removeprefix(tables_prefix).removesuffix(".weight")
            if sharding[table] == DATA_PARALLEL:
                dense = replicated_optimizer(optimizers[table], parameter)
                materialise_state(dense, parameter)
                replicated[table] = (parameter, dense)
        elif not name.startswith(MODALITY_PATH + "."):
            dense_parameters[name] = parameter
    dense_optimizer = optimizer_of_dense_part(optim, dense_parameters)
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
        id_maps=id_maps,
        _replicated=replicated,
        _base_rates=[],
    )
    sharded._base_rates = [group["lr"] for group in sharded._param_groups()]
    return sharded


def _dense_slots(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return the optimizer state of a replicated table, each [rows, columns] or [rows, 1]."""
    state = optimizer.state[parameter]
    return {name: as_rows(state[name]) for name in STATE_NAMES if name in state}
