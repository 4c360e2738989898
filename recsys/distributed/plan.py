"""Which rank holds which part of which table: TorchRec's planner under our constraints.

What enters: a ranker with tables on the meta device and the table optimizers. What leaves: a
ShardingPlan, the same on every rank, and its rows for people and for plan.json.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, ShardingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ShardingPlan

from recsys.distributed.env import Env, first_rank_work
from recsys.train.optim import TableOptimizer

SHARDING_TYPES = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_column_wise")
TABLES_PATH = "inputs.embeddings"
"""Where the trainable EmbeddingBagCollection sits in a Ranker."""
MODALITY_PATH = "inputs.modality.tables"
"""Where the frozen one sits."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What the planner may do."""

    sharding: dict[str, str] = field(default_factory=dict)
    """Sharding type of single tables, by table name; tables not named are free."""
    replicate_modality_bytes: int = 1 << 30
    """Frozen tables up to this size in all are held whole by every rank (no exchange); 0: never."""
    min_partition: int = 4
    """Narrowest column shard, in columns."""


class TableSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with row-wise offered on CPU too.

    TorchRec leaves row-wise out of its CPU list only; a row-wise plan runs there.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types we plan with, whatever the device."""
        return list(SHARDING_TYPES)


def constrain(
    *,
    optimizers: Mapping[str, TableOptimizer],
    modality_tables: list[str],
    sharding: Mapping[str, str],
    device_type: str,
    min_partition: int,
) -> dict[str, ParameterConstraints]:
    """Return planner constraints per table.

    Dense Adam needs a replicated table on CPU; row-wise Adagrad and SGD are fused into backward and
    want model-parallel tables; frozen tables must be model-parallel (a replicated one would become
    fp32 and trainable).

    Raises:
        ValueError: `sharding` names an unknown table or type, or replicates a frozen table.
    """
    known = {*optimizers, *modality_tables}
    for table, kind in sharding.items():
        if table not in known:
            raise ValueError(
                f"plan.sharding.{table}: no such table; the model has {', '.join(sorted(known))}"
            )
        if kind not in SHARDING_TYPES:
            raise ValueError(
                f"plan.sharding.{table}={kind!r}: expected one of {', '.join(SHARDING_TYPES)}"
            )
        if table in modality_tables and kind == "data_parallel":
            raise ValueError(
                f"plan.sharding.{table}=data_parallel: frozen modality tables are replicated by "
                f"plan.replicate_modality_bytes, not by data_parallel"
            )
    constraints = {}
    for table in known:
        if table in sharding:
            kinds = [sharding[table]]
        elif table in optimizers and optimizers[table].name == "adam" and device_type == "cpu":
            kinds = ["data_parallel"]
        else:
            kinds = [kind for kind in SHARDING_TYPES if kind != "data_parallel"]
            if table in optimizers and optimizers[table].name == "adam":
                kinds = list(SHARDING_TYPES)
        kernels = sorted({
            EmbeddingComputeKernel.DENSE.value
            if kind == ShardingType.DATA_PARALLEL.value
            else EmbeddingComputeKernel.FUSED.value
            for kind in kinds
        })
        constraints[table] = ParameterConstraints(
            sharding_types=kinds, compute_kernels=kernels, min_partition=min_partition
        )
    return constraints


def make_plan(
    *,
    model: nn.Module,
    env: Env,
    constraints: dict[str, ParameterConstraints],
    batch_size_per_rank: int,
) -> ShardingPlan:
    """Plan on rank 0 and hand the plan to every rank; a planning error reaches every rank at once.

    Raises:
        ValueError: no plan fits; carries the planner's reason.
    """
    plans: list[ShardingPlan | None] = [None]
    with first_rank_work(env) as is_first:
        if is_first:
            plans[0] = _plan(model, env, constraints, batch_size_per_rank)
    if env.world_size > 1:
        dist.broadcast_object_list(plans, src=0)
    plan = plans[0]
    assert plan is not None, "rank 0 planned without an error, so there is a plan"
    return plan


def _plan(
    model: nn.Module,
    env: Env,
    constraints: dict[str, ParameterConstraints],
    batch_size_per_rank: int,
) -> ShardingPlan:
    memory: dict[str, Any] = {}
    if env.device.type == "cuda":
        memory["hbm_cap"] = torch.cuda.get_device_properties(env.device).total_memory
    memory["ddr_cap"] = psutil.virtual_memory().total // env.local_world_size
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=env.world_size,
            local_world_size=env.local_world_size,
            compute_device=env.device.type,
            **memory,
        ),
        batch_size=batch_size_per_rank,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        debug=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return planner.plan(model, [TableSharder()])
    except PlannerError as error:
        raise ValueError(
            f"no sharding plan fits {env.world_size} rank(s): {error}. Use more ranks, fewer "
            f"rows (vocabulary min_count, hashing), smaller model.embedding_dim, "
            f"or a freer plan.sharding"
        ) from error


def plan_rows(plan: ShardingPlan, model: nn.Module) -> list[dict[str, Any]]:
    """Return one dict per table and shard: table, sharding, kernel, rank, rows, columns, bytes.

    A replicated table has one line with rank null and the bytes of one copy. `model` is the ranker
    before sharding.
    """
    lines: list[dict[str, Any]] = []
    configs: dict[str, Any] = {}
    module: Any
    for module in model.modules():
        if hasattr(module, "embedding_bag_configs"):
            configs.update({c.name: c for c in module.embedding_bag_configs()})
    placed: dict[str, Any] = {}
    for module_plan in plan.plan.values():
        placed.update(module_plan)  # type: ignore[call-overload]
    for name, config in configs.items():
        sharding = placed.get(name)
        value_bytes = 2 if config.data_type.value == "FP16" else 4
        whole = {
            "table": name,
            "sharding": sharding.sharding_type if sharding else "replicated",
            "kernel": sharding.compute_kernel if sharding else "frozen",
        }
        spec = sharding.sharding_spec if sharding else None
        if spec is None:
            rows, dim = config.num_embeddings, config.embedding_dim
            lines.append(
                {**whole, "rank": None, "rows": [0, rows], "columns": [0, dim]}
                | {"bytes": rows * dim * value_bytes}
            )
            continue
        for shard in spec.shards:
            (row, column), (num_rows, num_columns) = shard.shard_offsets, shard.shard_sizes
            lines.append({
                **whole,
                "rank": shard.placement.rank(),
                "rows": [row, row + num_rows],
                "columns": [column, column + num_columns],
                "bytes": num_rows * num_columns * value_bytes,
            })
    return lines
