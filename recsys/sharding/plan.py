"""The sharding plan: its records, its file (plan.json), and its form for TorchRec.

A Plan says which rank holds which part of which table, and what that makes every rank hold and do.
It is made by recsys/sharding/search.py without process group, GPU or data, or read from a file; both
are applied in the same way, so the plan shown is the plan trained. Bytes are exact but for buffers;
times are TorchRec's estimates for one step, forward and backward, in milliseconds.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)

from recsys.errors import UserError
from recsys.files import write_json
from recsys.model.modality import TABLE_PREFIX
from recsys.sharding.cluster import ClusterConfig

PLAN_VERSION = 1
TABLES_PATH = "scorer.inputs.embeddings"
"""Path of the trainable EmbeddingBagCollection in a Ranker."""
MODALITY_PATH = "scorer.inputs.modality.tables"
"""Path of the frozen one."""
DATA_PARALLEL = "data_parallel"
REPLICATED = "replicated"
"""Sharding type of frozen tables that every rank holds whole; trainable ones are data_parallel."""
ShardingType = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
SHARDING_TYPES: tuple[str, ...] = typing.get_args(ShardingType)
HOST_TYPES = ("table_row_wise", "table_column_wise", "grid_shard")
"""Sharding types that place a table by hosts; on a single host they say nothing new."""
CODED_KERNEL = "customized_kernel"
"""Kernel, in TorchRec's terms, of tables of codes."""
DENSE_KERNEL = "dense"
"""Kernel of replicated trainable tables."""
HOST_MEMORY_KERNELS = ("fused_uvm", "fused_uvm_caching")
"""Kernels whose table is in main memory: read over the bus, or cached on the accelerator."""
SSD_KERNEL = "key_value"
"""Kernel whose table is on SSD, cached on the accelerator: planned, and not trained (docs/ids.md)."""
Precision = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How all tables are planned; `plan=auto` or `plan=path/to/plan.json` is short for plan.file."""

    SHORT_FORM = "file"
    REMOVED: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "sharding": ({}, "tables.<table>.sharding does its job"),
        "kernels": ({}, "tables.<table>.kernel does its job"),
        "cache_load_factor": ({}, "tables.<table>.cache_load_factor does its job"),
        "ranks": ({}, "tables.<table>.ranks does its job"),
    }
    """Keys of earlier versions: off value, and what does their job now (recsys.config)."""

    file: str = "auto"
    """`auto`: plan for this world; else a plan.json of launch/plan.py or of a run, taken as it is."""
    feature_lengths: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    """Mean ids a row of single features; else 1, 4 for a list, a history's stored maximum."""
    replicate_modality_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Frozen tables up to this size in all are held whole by every rank (no exchange); 0: never."""
    min_partition: Annotated[int, Field(ge=4, multiple_of=4)] | None = None
    """Columns of a column shard, at least; null: half a table's width, of a frozen one its share of a
    host, where 4 divides that."""
    forward_communication: Precision = "auto"
    """Precision in which looked-up vectors travel: `fp32`, `fp16`, `bf16` (fp16 on CPU), or `auto`: fp16
    between several GPUs, else fp32; a run that is resumed keeps that of its start."""
    backward_communication: Precision = "auto"
    """Precision in which their gradients travel: `fp32`, `fp16`, `bf16` (fp16 on CPU), or `auto`: bf16
    between several GPUs, else fp32; a run that is resumed keeps that of its start."""
    search: Literal["auto", "full", "fast"] = "auto"
    """`full`, `fast` (few proposals, small tables uncut), or `auto`: fast for very many shards."""

    def with_exchange(self, *, device_type: str, num_ranks: int) -> "PlanConfig":
        """Return the same with precisions of the exchange in place of `auto`.

        Half precision between several GPUs: fp16 for vectors, which keeps more digits, and bf16 for their
        gradients, which has the range of fp32. Elsewhere fp32, which is exact.
        """
        is_half = device_type == "cuda" and num_ranks > 1
        return self.with_precisions("fp16" if is_half else "fp32", "bf16" if is_half else "fp32")

    def with_precisions(self, forward: "Precision", backward: "Precision") -> "PlanConfig":
        """Return the same with these precisions of the exchange in place of `auto`."""
        given = (self.forward_communication, self.backward_communication)
        return dataclasses.replace(
            self,
            forward_communication=forward if given[0] == "auto" else given[0],
            backward_communication=backward if given[1] == "auto" else given[1],
        )


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """One table of a plan; bytes and times are sums over all ranks."""

    table: str
    frozen: bool
    features: tuple[str, ...]
    """Features that look it up."""
    ids_per_row: float
    """Mean ids that a row of a batch looks up."""
    rows: int
    width: int
    """Columns, as stored."""
    dtype: str
    """`fp32` or `fp16`; of a frozen table of codes `2 bits` or `4 bits`."""
    optimizer: str | None
    """None: frozen."""
    sharding: str
    """One of SHARDING_TYPES, or REPLICATED."""
    kernel: str
    cache_load_factor: float | None
    """Share of the rows cached on the accelerator; None: no cache."""
    weight_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    buffer_bytes: int
    """Buffers of the exchange, and the cache."""
    lookup_ms: float
    communication_ms: float
    num_ranks: int
    """Ranks that hold a part of it."""
    input_bytes_per_step: int
    """Ids sent."""
    output_bytes_per_step: int
    """Vectors and gradients sent."""
    cache_bytes: int = 0
    """Of the buffers, the cache on the accelerators; of a table on SSD."""
    host_bytes: int = 0
    """Main memory beside a table on SSD: rows on their way there."""
    ssd_bytes: int = 0
    """Of the values, those on SSD."""

    @property
    def is_coded(self) -> bool:
        """True for a table of codes (recsys/sharding/coded.py)."""
        return self.dtype.endswith("bits")


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """Memory and work of one rank."""

    rank: int
    host: int
    num_tables: int
    """Pieces of tables that are not empty."""
    weight_bytes: int
    """Trainable values."""
    frozen_bytes: int
    """Frozen values."""
    optimizer_bytes: int
    gradient_bytes: int
    buffer_bytes: int
    copy_bytes: int
    """Copies in host memory that checkpoints are written from."""
    dense_bytes: int
    """The dense part: weights, gradients, optimizer state."""
    reserved_bytes: int
    """Kept free (cluster.reserved_share)."""
    hbm_bytes: int
    """Used of the accelerator's memory."""
    ddr_bytes: int
    """Used of main memory."""
    hbm_capacity_bytes: int
    ddr_capacity_bytes: int
    lookup_ms: float
    communication_ms: float
    dense_ms: float
    headroom_bytes: int
    """Free beside what is used and reserved, of the memory that holds the tables."""
    array_bytes: int = 0
    """Arrays of the data that the accelerator keeps a copy of (train.arrays_on_gpu_bytes)."""
    ssd_bytes: int = 0
    """Used of the rank's share of its machine's SSDs."""
    ssd_ms: float = 0.0
    """Of `lookup_ms`, the wait for rows that are read from SSD and written to it."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One rectangle of one table on one rank, or on every rank."""

    table: str
    sharding: str
    kernel: str
    rank: int | None
    """None: every rank holds a copy."""
    rows: tuple[int, int]
    """First row, and one past the last."""
    columns: tuple[int, int]
    bytes: int
    """Values."""
    state_bytes: int
    """Optimizer state and gradients."""


@dataclass(frozen=True, kw_only=True)
class Communication:
    """Precisions of the exchanges: `fp32`, `fp16` or `bf16`."""

    forward: str
    """Of looked-up vectors."""
    backward: str
    """Of their gradients."""


@dataclass(frozen=True, kw_only=True)
class DensePart:
    """Size of the part of a model that is no table."""

    parameters: int
    bytes_per_rank: int
    """Weights, gradients and optimizer state."""


@dataclass(frozen=True, kw_only=True)
class CriticalPath:
    """Slowest lookup, slowest exchange and dense part of a step, one after the other."""

    lookup_ms: float
    communication_ms: float
    dense_ms: float

    @property
    def total_ms(self) -> float:
        """Milliseconds of a step."""
        return self.lookup_ms + self.communication_ms + self.dense_ms


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """Verdict and totals of a plan."""

    fits: bool
    verdict: str
    """One sentence: whether it fits, and how much is free on the fullest rank."""
    table_bytes: int
    """Values and optimizer state of all tables."""
    largest_rank_bytes: int
    smallest_headroom_bytes: int
    memory_imbalance: float
    """Maximum over mean of the ranks."""
    time_imbalance: float
    critical_path: CriticalPath
    critical_path_ms: float
    slowest_rank: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sharding plan, and the cluster it was made for."""

    num_ranks: int
    batch_size_per_rank: int
    cluster: ClusterConfig
    communication: Communication
    dense: DensePart
    summary: PlanSummary
    tables: tuple[TablePlan, ...]
    ranks: tuple[RankLoad, ...]
    shards: tuple[ShardPlan, ...]

    @property
    def examples_per_second(self) -> float:
        """Estimated rows a second of all ranks: a batch in the time of the critical path."""
        rows = self.num_ranks * self.batch_size_per_rank
        return rows / max(self.summary.critical_path_ms, 1e-9) * 1e3

    @property
    def on_ssd(self) -> list[str]:
        """Names of the tables on SSD."""
        return [table.table for table in self.tables if table.kernel == SSD_KERNEL]


def write_plan(path: Path, plan: Plan) -> None:
    """Write plan.json."""
    summary = vars(plan.summary) | {"critical_path": vars(plan.summary.critical_path)}
    # Not dataclasses.asdict, which copies deeply: ten thousand tables on 64 ranks are 640,000 shards.
    content = {"version": PLAN_VERSION} | vars(plan)
    content |= {"cluster": vars(plan.cluster), "communication": vars(plan.communication)}
    content |= {"dense": vars(plan.dense), "summary": summary}
    for name in ("tables", "ranks", "shards"):
        content[name] = [_as_before(vars(record)) for record in getattr(plan, name)]
    if not plan.cluster.ssd_gib:
        content["cluster"] = {k: v for k, v in vars(plan.cluster).items() if k not in _OF_SSD}
    write_json(path, content)


_LATER = {"array_bytes", "cache_bytes", "host_bytes", "ssd_bytes", "ssd_ms"}
_OF_SSD = {"ssd_gib", "ssd_gb_per_second"}


def _as_before(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as earlier versions wrote it, where it says nothing that they did not know."""
    return {name: value for name, value in record.items() if value or name not in _LATER}


def read_plan(path: str | Path) -> Plan:
    """Return the plan of a plan.json.

    Raises:
        UserError: no such file, not JSON, not a plan, a plan of another version, or one that does
            not fit its cluster.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no plan here; expected a plan.json of launch/plan.py or of a run, or plan=auto"
        )
    text = path.read_bytes()
    try:
        content = json.loads(text)
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{path}: not valid JSON ({error}); make it with launch/plan.py") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != PLAN_VERSION:
        raise UserError(
            f"{path}: plan version {version!r}, expected {PLAN_VERSION}; make it anew with "
            f"launch/plan.py"
        )
    try:
        plan = TypeAdapter(Plan).validate_json(text, strict=True)
        sharding_plan(plan)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _not_whole(path, f"{place}: {first['msg']}") from error
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _not_whole(path, f"{type(error).__name__}: {error}") from error
    if not plan.summary.fits:
        raise UserError(f"{path}: this plan does not fit its cluster ({plan.summary.verdict})")
    return plan


def _not_whole(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: not a whole plan ({reason}); make it anew with launch/plan.py")


def sharding_plan(plan: Plan) -> ShardingPlan:
    """Return the plan in TorchRec's terms; replicated frozen tables are no part of it."""
    shards: dict[str, list[ShardPlan]] = {}
    for shard in plan.shards:
        shards.setdefault(shard.table, []).append(shard)
    modules: dict[str, EmbeddingModuleShardingPlan] = {}
    for table in plan.tables:
        if table.sharding == REPLICATED:
            continue
        mine = shards[table.table]
        spec, ranks = None, list(range(plan.num_ranks))
        if table.sharding != DATA_PARALLEL:
            spec = EnumerableShardingSpec([_metadata(shard, plan.cluster) for shard in mine])
            ranks = [_rank(shard) for shard in mine]
        cache = table.cache_load_factor
        path = MODALITY_PATH if table.table.startswith(TABLE_PREFIX) else TABLES_PATH
        modules.setdefault(path, EmbeddingModuleShardingPlan())[table.table] = ParameterSharding(
            sharding_type=table.sharding,
            compute_kernel=CODED_KERNEL if table.is_coded else table.kernel,
            ranks=ranks,
            sharding_spec=spec,
            cache_params=None if cache is None else CacheParams(load_factor=cache),
        )
    return ShardingPlan(dict(modules))


def _rank(shard: ShardPlan) -> int:
    if shard.rank is None:
        raise ValueError(f"a {shard.sharding} shard of table {shard.table!r} has no rank")
    return shard.rank


def _metadata(shard: ShardPlan, cluster: ClusterConfig) -> ShardMetadata:
    return ShardMetadata(
        shard_offsets=[shard.rows[0], shard.columns[0]],
        shard_sizes=[shard.rows[1] - shard.rows[0], shard.columns[1] - shard.columns[0]],
        placement=placement(cluster.device, _rank(shard), cluster.accelerators_per_host),
    )
