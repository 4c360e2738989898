"""Which rank holds which part of which table: constraints, the plan, and what it makes a rank hold.

What enters: a ranker with tables on the meta device, the table optimizers, a cluster. What leaves: a
plan as plain content (the content of plan.json), made without process group, GPU or data; and from
it, on any rank, the ShardingPlan that shard.py applies. A plan that was saved and one made a moment
ago take the same way, so the plan shown is the plan trained.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.modules.embedding_configs import DataType

from recsys.errors import UserError
from recsys.model.modality import TABLE_PREFIX
from recsys.model.ranker import Ranker
from recsys.runtime.collectives import share
from recsys.runtime.env import Env
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.estimate import forecast
from recsys.sharding.optimizers import TableOptimizer
from recsys.sharding.search import (
    COLUMN_TYPES,
    DENSE_KERNEL,
    HOST_MEMORY_KERNELS,
    HOST_TYPES,
    KERNELS,
    PRECISIONS,
    SEARCHES,
    SHARDING_TYPES,
    TableFacts,
    search_tables,
    table_sharder,
)

PLAN_VERSION = 1
TABLES_PATH = "scorer.inputs.embeddings"
"""Where the trainable EmbeddingBagCollection sits in a Ranker."""
MODALITY_PATH = "scorer.inputs.modality.tables"
"""Where the frozen one sits."""
_VALUE_BYTES = {DataType.FP32: 4, DataType.FP16: 2}
_DTYPES = {DataType.FP32: "fp32", DataType.FP16: "fp16"}
_NARROW = 32
"""Columns below which a table is cut by columns only where the configuration says so."""
_PLACED_ALONE = ("table_wise", "column_wise")
"""Sharding types whose pieces may lie on any ranks, so that ranks can be pinned."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What the planner may do; `plan=auto` or `plan=path/to/plan.json` is short for plan.file."""

    SHORT_FORM = "file"

    file: str = "auto"
    """`auto`: plan for this world; else a plan.json of launch/plan.py or of a run, taken as it is."""
    sharding: dict[str, Any] = field(default_factory=dict)
    """Sharding type of single tables, or a list of them, by table name; tables not named are free."""
    kernels: dict[str, str] = field(default_factory=dict)
    """`fused`, or on GPU `fused_uvm` (the table in main memory) and `fused_uvm_caching`, by table."""
    cache_load_factor: dict[str, float] = field(default_factory=dict)
    """Share of a `fused_uvm_caching` table's rows cached on the accelerator, by table; else 0.2."""
    ranks: dict[str, list[int]] = field(default_factory=dict)
    """Ranks that hold a table_wise or column_wise table, by table name."""
    feature_lengths: dict[str, float] = field(default_factory=dict)
    """Mean ids a row of single features; else 1, 4 for a list, a history's stored maximum."""
    replicate_modality_bytes: int = 1 << 30
    """Frozen tables up to this size in all are held whole by every rank (no exchange); 0: never."""
    min_partition: int | None = None
    """Columns of a column shard, at least; null: half a table's width, where 4 divides that."""
    forward_communication: str = "fp32"
    """Precision in which looked-up vectors travel: `fp32`, `fp16` or `bf16` (fp16 on CPU)."""
    backward_communication: str = "fp32"
    """Precision in which their gradients travel: `fp32`, `fp16` or `bf16` (fp16 on CPU)."""
    search: str = "auto"
    """`full`, `fast` (few proposals, small tables uncut), or `auto`: fast for very many shards."""

    def sharding_types(self) -> dict[str, list[str]]:
        """Return the sharding types asked for, always as lists."""
        return {t: [k] if isinstance(k, str) else list(k) for t, k in self.sharding.items()}

    def anywhere(self, device_type: str) -> "PlanConfig":
        """Return what of the constraints holds on any number of ranks.

        A saved plan and pinned ranks belong to the world they were made for, and kernels that keep
        a table in main memory to GPUs.
        """
        on_gpu = device_type == "cuda"
        return dataclasses.replace(
            self,
            file="auto",
            ranks={},
            kernels=self.kernels if on_gpu else {},
            cache_load_factor=self.cache_load_factor if on_gpu else {},
        )


def check_plan(config: PlanConfig) -> None:
    """Raise UserError for a value outside its choices; tables are checked by `constrain`.

    Raises:
        UserError: lists every offending key.
    """
    problems = []
    for key in ("forward_communication", "backward_communication"):
        if getattr(config, key) not in PRECISIONS:
            problems.append(
                f"plan.{key}={getattr(config, key)!r}: expected one of {', '.join(PRECISIONS)}"
            )
    if config.search not in SEARCHES:
        problems.append(f"plan.search={config.search!r}: expected one of {', '.join(SEARCHES)}")
    if config.min_partition is not None and (config.min_partition < 4 or config.min_partition % 4):
        problems.append(f"plan.min_partition={config.min_partition}: expected a multiple of 4")
    if config.replicate_modality_bytes < 0:
        problems.append(
            f"plan.replicate_modality_bytes={config.replicate_modality_bytes}: expected 0 or more"
        )
    problems += [
        f"plan.feature_lengths.{name}={length}: expected 0 or more"
        for name, length in config.feature_lengths.items()
        if length < 0
    ]
    problems += [
        f"plan.cache_load_factor.{name}={share}: expected more than 0, up to 1"
        for name, share in config.cache_load_factor.items()
        if not 0 < share <= 1
    ]
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def constrain(
    *,
    model: Ranker,
    optimizers: Mapping[str, TableOptimizer],
    config: PlanConfig,
    cluster: ClusterConfig,
    feature_lengths: Mapping[str, float],
) -> dict[str, ParameterConstraints]:
    """Return planner constraints per table.

    A table with an L2 penalty is replicated. Dense Adam needs a replicated table on CPU; row-wise
    Adagrad and SGD are fused into backward and want model-parallel tables; frozen and half-precision
    tables must be model-parallel (a replicated one would become fp32 and, if frozen, trainable).

    Args:
        feature_lengths: ids a row of every feature.

    Raises:
        UserError: lists every key that names an unknown table, type, kernel or rank, or asks for
            what does not go together.
    """
    tables = _table_configs(model)
    problems = _constraint_problems(config, tables, optimizers, cluster)
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
    sharding = config.sharding_types()
    constraints = {}
    for table, table_config in tables.items():
        frozen, half = table not in optimizers, table_config.data_type == DataType.FP16
        adam = not frozen and optimizers[table].name == "adam"
        if not frozen and optimizers[table].l2:
            # A penalty on every row is kept where every rank holds and steps every row.
            kinds = ["data_parallel"]
        elif table in sharding:
            kinds = sharding[table]
        elif table in config.ranks:
            kinds = ["table_wise"] if len(config.ranks[table]) == 1 else ["column_wise"]
        elif adam and cluster.device == "cpu":
            kinds = ["data_parallel"]
        else:
            several_hosts = cluster.hosts > 1
            kinds = [
                kind
                for kind in SHARDING_TYPES
                if kind != "grid_shard"
                and (several_hosts or kind not in HOST_TYPES)
                and (kind not in COLUMN_TYPES or _column_width(config, table_config) >= _NARROW)
                and (kind != "data_parallel" or (adam and not half))
            ]
            if cluster.num_ranks == 1:
                # One rank holds whole tables in any case; the other kinds sort ids into one bucket and
                # exchange them with nobody.
                kinds = [kind for kind in kinds if kind in ("table_wise", "data_parallel")]
        kernel = config.kernels.get(table, "fused")
        kernels = {DENSE_KERNEL if kind == "data_parallel" else kernel for kind in kinds}
        cache = None
        if kernel == "fused_uvm_caching":
            cache = CacheParams(load_factor=config.cache_load_factor.get(table, 0.2))
        constraints[table] = ParameterConstraints(
            sharding_types=sorted(kinds),
            compute_kernels=sorted(kernels),
            min_partition=_column_width(config, table_config),
            pooling_factors=[feature_lengths.get(f, 1.0) for f in table_config.feature_names],
            cache_params=cache,
            # FBGEMM's lookups return fp32 whatever they read; TorchRec would count fp16.
            output_dtype=DataType.FP32 if half else None,
        )
    return constraints


def _column_width(config: PlanConfig, table: Any) -> int:
    """Return the columns of a column shard.

    Every shard gets all ids of its table, and row-wise Adagrad keeps one value a row for each, so
    many narrow shards cost more than they bring: halves, where 4 divides them.
    """
    if config.min_partition is not None:
        return config.min_partition
    width = table.embedding_dim
    proper = [w for w in range(4, width, 4) if width % w == 0]
    return max(proper, default=width)


def _constraint_problems(
    config: PlanConfig,
    tables: Mapping[str, Any],
    optimizers: Mapping[str, TableOptimizer],
    cluster: ClusterConfig,
) -> list[str]:
    problems = []
    for key in ("sharding", "kernels", "cache_load_factor", "ranks"):
        problems += [
            f"plan.{key}.{table}: no such table; the model has {', '.join(sorted(tables))}"
            for table in getattr(config, key)
            if table not in tables
        ]
    sharding = config.sharding_types()
    for table, kinds in sharding.items():
        unknown = [kind for kind in kinds if kind not in SHARDING_TYPES]
        if unknown or not kinds:
            shown = repr(unknown[0] if unknown else config.sharding[table])
            problems.append(
                f"plan.sharding.{table}={shown}: expected one of {', '.join(SHARDING_TYPES)}"
            )
        if table not in tables or "data_parallel" not in kinds:
            continue
        if table not in optimizers:
            problems.append(
                f"plan.sharding.{table}=data_parallel: frozen modality tables are replicated by "
                f"plan.replicate_modality_bytes, not by data_parallel"
            )
        elif tables[table].data_type == DataType.FP16:
            problems.append(
                f"plan.sharding.{table}=data_parallel: {table} is in model.half_tables, and a "
                f"replicated table is held in fp32; take it out of one of the two"
            )
    for table, kernel in config.kernels.items():
        if kernel not in KERNELS:
            problems.append(
                f"plan.kernels.{table}={kernel!r}: expected one of {', '.join(KERNELS)}"
            )
        elif kernel in HOST_MEMORY_KERNELS and cluster.device == "cpu":
            problems.append(
                f"plan.kernels.{table}={kernel}: runs on GPU only, and {cluster.name!r} is a CPU "
                f"cluster, whose tables lie in main memory anyway"
            )
    for table in config.cache_load_factor:
        if config.kernels.get(table) != "fused_uvm_caching":
            problems.append(
                f"plan.cache_load_factor.{table}: only with plan.kernels.{table}=fused_uvm_caching"
            )
    for table, ranks in config.ranks.items():
        outside = [rank for rank in ranks if not 0 <= rank < cluster.num_ranks]
        if outside or not ranks or len(set(ranks)) != len(ranks):
            problems.append(
                f"plan.ranks.{table}={list(ranks)}: expected different ranks from 0 to "
                f"{cluster.num_ranks - 1} (cluster {cluster.name!r})"
            )
        kinds = sharding.get(table, [])
        if any(kind not in _PLACED_ALONE for kind in kinds):
            problems.append(
                f"plan.ranks.{table} with plan.sharding.{table}={', '.join(kinds)}: only "
                f"{' and '.join(_PLACED_ALONE)} tables can be pinned"
            )
        if table in optimizers and optimizers[table].name == "adam" and cluster.device == "cpu":
            problems.append(
                f"plan.ranks.{table}: its optimizer is adam, which on CPU wants the table on every "
                f"rank; use optim.tables.{table}.name=rowwise_adagrad"
            )
    for table, table_config in tables.items():
        half = table in optimizers and table_config.data_type == DataType.FP16
        if half and optimizers[table].name == "adam" and cluster.device == "cpu":
            problems.append(
                f"model.half_tables names {table}: its optimizer is adam, which on CPU wants the "
                f"table on every rank in fp32; use optim.tables.{table}.name=rowwise_adagrad"
            )
    return problems


def _table_configs(model: nn.Module) -> dict[str, Any]:
    """EmbeddingBagConfig by table name, trainable ones first."""
    configs: dict[str, Any] = {}
    module: Any
    for module in model.modules():
        if hasattr(module, "embedding_bag_configs"):
            configs.update({c.name: c for c in module.embedding_bag_configs()})
    return configs


def plan_tables(
    *,
    model: Ranker,
    cluster: ClusterConfig,
    optimizers: Mapping[str, TableOptimizer],
    config: PlanConfig,
    feature_lengths: Mapping[str, float],
    global_batch_size: int,
    host_copies: bool,
) -> dict[str, Any]:
    """Return the best plan for a cluster, with what it makes every rank hold and do, as plain content.

    Keys: version, num_ranks, batch_size_per_rank, cluster, communication, tables (one entry each),
    shards (one each; rank null: every rank), ranks, summary.

    Args:
        host_copies: count the copies of trainable tables in host memory that checkpoints are written
            from.

    Raises:
        UserError: constraints that do not fit the tables or the cluster.
        DoesNotFitError: no plan holds all tables.
    """
    constraints = constrain(
        model=model,
        optimizers=optimizers,
        config=config,
        cluster=cluster,
        feature_lengths=feature_lengths,
    )
    batch_size = cluster.batch_size(global_batch_size)
    configs = _table_configs(model)
    facts = {
        name: TableFacts(
            optimizer=optimizers[name].name if name in optimizers else None,
            value_bytes=_VALUE_BYTES[c.data_type],
        )
        for name, c in configs.items()
    }
    replicated = [name for name in configs if name not in optimizers]
    frozen_bytes = sum(
        configs[n].num_embeddings * configs[n].embedding_dim * facts[n].value_bytes
        for n in replicated
    )
    if frozen_bytes > config.replicate_modality_bytes:
        replicated, frozen_bytes = [], 0
    num_dense = sum(p.numel() for p in model.dense.parameters())
    # Weights, gradients and Adam's two averages, fp32.
    dense_bytes = 16 * num_dense
    options = search_tables(
        module=_skeleton(model, with_frozen=not replicated),
        cluster=cluster,
        constraints={t: c for t, c in constraints.items() if t not in replicated},
        facts=facts,
        pinned=config.ranks,
        batch_size_per_rank=batch_size,
        unsharded_bytes=dense_bytes + frozen_bytes,
        host_copies=host_copies,
        sharder=table_sharder(
            config.forward_communication,
            config.backward_communication,
            torch.device(cluster.device),
        ),
        search=config.search,
    )
    content = forecast(
        cluster=cluster,
        configs=configs,
        dtypes={name: _DTYPES[c.data_type] for name, c in configs.items()},
        facts=facts,
        options=options,
        replicated=replicated,
        num_dense=num_dense,
        dense_bytes=dense_bytes,
        host_copies=host_copies,
        batch_size_per_rank=batch_size,
        feature_lengths=feature_lengths,
        communication=(config.forward_communication, config.backward_communication),
    )
    return {"version": PLAN_VERSION, **content}


def _skeleton(model: Ranker, with_frozen: bool) -> nn.Module:
    """Return a module that holds the ranker's collections at their paths, and nothing else."""
    root, scorer, inputs = nn.Module(), nn.Module(), nn.Module()
    root.scorer, scorer.inputs = scorer, inputs
    inputs.embeddings = model.inputs.embeddings
    if with_frozen and model.inputs.modality is not None:
        modality = nn.Module()
        modality.tables = model.inputs.modality.tables
        inputs.modality = modality
    return root


def share_plan(
    *,
    env: Env,
    make: Callable[[], dict[str, Any]],
    model: Ranker,
    optimizers: Mapping[str, TableOptimizer],
    source: str,
) -> dict[str, Any]:
    """Return on every rank the plan that `make` returns on rank 0, checked against model and world.

    Args:
        make: called on rank 0 only.
        source: where the plan comes from, for messages.

    Raises:
        UserError: on every rank, with rank 0's sentence, when planning failed there.
    """

    def made() -> dict[str, Any]:
        content = make()
        check_matches(content, model=model, optimizers=optimizers, env=env, source=source)
        return content

    return share(made)


def check_matches(
    content: Mapping[str, Any],
    *,
    model: Ranker,
    optimizers: Mapping[str, TableOptimizer],
    env: Env,
    source: str,
) -> None:
    """Raise UserError where a plan was made for another model or world; names every difference.

    Raises:
        UserError: lists the differences.
    """
    different = []
    if content["num_ranks"] != env.world_size:
        different.append(f"it is for {content['num_ranks']} ranks, this job has {env.world_size}")
    here = env.local_world_size
    planned_local = content["cluster"]["accelerators_per_host"]
    by_host = any(line["sharding"] in HOST_TYPES for line in content["shards"])
    if by_host and planned_local != here:
        different.append(
            f"it places tables by hosts of {planned_local} ranks, this job has {here} on a host"
        )
    if content["cluster"]["device"] != env.device.type:
        different.append(
            f"it is for device {content['cluster']['device']}, this job runs on {env.device.type}"
        )
    configs = _table_configs(model)
    planned = {line["table"]: line for line in content["tables"]}
    different += [f"table {t!r} is not in the plan" for t in configs if t not in planned]
    different += [f"table {t!r} is not in the model" for t in planned if t not in configs]
    for table, config in configs.items():
        line = planned.get(table)
        if line is None:
            continue
        optimizer = optimizers[table].name if table in optimizers else None
        now = {
            "rows": config.num_embeddings,
            "width": config.embedding_dim,
            "dtype": _DTYPES[config.data_type],
            "optimizer": optimizer,
        }
        different += [
            f"table {table!r} has {key} {value} and the plan says {line[key]}"
            for key, value in now.items()
            if line[key] != value
        ]
        l2 = optimizers[table].l2 if table in optimizers else 0.0
        if l2 and line["sharding"] != "data_parallel":
            different.append(
                f"table {table!r} ({config.num_embeddings:,} rows) has an L2 penalty of {l2}, which "
                f"wants data_parallel, and the plan says {line['sharding']} "
                f"(optim.tables.{table}.l2=0 takes the penalty off)"
            )
    if different:
        raise UserError(
            f"{source} does not match this job: " + "; ".join(different) + ". Plan again with "
            "launch/plan.py and the keys of this job, or use plan=auto"
        )


def read_plan(path: str | Path) -> dict[str, Any]:
    """Return the content of a plan.json.

    Raises:
        UserError: no such file, not JSON, not a plan, or a plan of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no plan here; expected a plan.json of launch/plan.py or of a run, or plan=auto"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{path}: not valid JSON ({error}); make it with launch/plan.py") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != PLAN_VERSION:
        raise UserError(
            f"{path}: plan version {version!r}, expected {PLAN_VERSION}; make it anew with "
            f"launch/plan.py"
        )
    try:
        sharding_plan(content)
        fits, verdict = content["summary"]["fits"], content["summary"]["verdict"]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a whole plan ({type(error).__name__}: {error}); make it anew with "
            f"launch/plan.py"
        ) from error
    if not fits:
        raise UserError(f"{path}: this plan does not fit its cluster ({verdict})")
    return content


def sharding_plan(content: Mapping[str, Any]) -> ShardingPlan:
    """Return the plan in TorchRec's terms; replicated frozen tables are no part of it."""
    cluster = content["cluster"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for line in content["shards"]:
        lines.setdefault(line["table"], []).append(line)
    modules: dict[str, EmbeddingModuleShardingPlan] = {}
    for table in content["tables"]:
        if table["sharding"] == "replicated":
            continue
        shards = lines[table["table"]]
        spec = None
        ranks = list(range(content["num_ranks"]))
        if table["sharding"] != "data_parallel":
            ranks = [line["rank"] for line in shards]
            spec = EnumerableShardingSpec([
                ShardMetadata(
                    shard_offsets=[line["rows"][0], line["columns"][0]],
                    shard_sizes=[
                        line["rows"][1] - line["rows"][0],
                        line["columns"][1] - line["columns"][0],
                    ],
                    placement=placement(
                        cluster["device"], line["rank"], cluster["accelerators_per_host"]
                    ),
                )
                for line in shards
            ])
        cache = table["cache_load_factor"]
        path = MODALITY_PATH if table["table"].startswith(TABLE_PREFIX) else TABLES_PATH
        modules.setdefault(path, EmbeddingModuleShardingPlan())[table["table"]] = ParameterSharding(
            sharding_type=table["sharding"],
            compute_kernel=table["kernel"],
            ranks=ranks,
            sharding_spec=spec,
            cache_params=None if cache is None else CacheParams(load_factor=cache),
        )
    return ShardingPlan(dict(modules))
