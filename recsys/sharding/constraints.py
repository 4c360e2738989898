"""Constraints of the planner, per table: sharding types, kernels, column width, ids a row.

In: the settings of every table, the section `plan`, a cluster. Out: TorchRec's ParameterConstraints,
or one sentence for each key that does not fit. Called by recsys/sharding/search.py.
"""

from collections.abc import Iterator, Mapping

from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import DataType

from recsys.errors import UserError
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.plan import (
    DATA_PARALLEL,
    DENSE_KERNEL,
    HOST_MEMORY_KERNELS,
    HOST_TYPES,
    SHARDING_TYPES,
    SSD_KERNEL,
    PlanConfig,
)
from recsys.sharding.tables import TableSettings

_COLUMN_TYPES = ("column_wise", "table_column_wise", "grid_shard")
"""Sharding types that cut columns."""
_ROW_TYPES = ("row_wise", "table_row_wise", "grid_shard")
"""Sharding types that cut rows."""
_NARROW = 32
"""Columns below which a table is cut by columns only where the configuration says so."""


def constrain(
    *,
    tables: Mapping[str, TableSettings],
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
        UserError: lists every key of a table that fits neither the table nor the cluster.
    """
    problems: list[str] = []
    for table, settings in tables.items():
        problems += _sharding_problems(table, settings, cluster)
        problems += _kernel_problems(table, settings, cluster)
        problems += _rank_problems(table, settings, cluster)
        problems += _precision_problems(table, settings, cluster)
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
    constraints = {}
    for table, settings in tables.items():
        num_pieces = cluster.hosts if settings.is_frozen else 2
        width = column_width(settings.width, config.min_partition, num_pieces)
        kinds = _sharding_types(settings, cluster, column_width=width)
        kernels = {DENSE_KERNEL if kind == DATA_PARALLEL else settings.kernel for kind in kinds}
        cache = None
        if settings.kernel == "fused_uvm_caching":
            cache = CacheParams(load_factor=settings.cached_share)
        constraints[table] = ParameterConstraints(
            sharding_types=sorted(kinds),
            compute_kernels=sorted(kernels),
            min_partition=width,
            pooling_factors=[feature_lengths.get(f, 1.0) for f in settings.features],
            cache_params=cache,
            # FBGEMM's lookups return fp32 whatever they read; TorchRec would count fp16.
            output_dtype=DataType.FP32 if settings.is_half else None,
        )
    return constraints


def column_width(width: int, asked: int | None, num_pieces: int = 2) -> int:
    """Return the columns of a column shard, at least, for a table of `width` columns.

    Every shard gets all ids of its table, and row-wise Adagrad keeps one value a row for each, so
    many narrow shards cost more than they bring: halves, where 4 divides them.

    Args:
        asked: plan.min_partition.
        num_pieces: most pieces of a table; a frozen one, which keeps no state, has one for each host.
    """
    if asked is not None:
        return asked
    proper = [w for w in range(4, width, 4) if width % w == 0]
    wide = [w for w in proper if w >= max(_NARROW, width / num_pieces)]
    return min(wide, default=max(proper, default=width))


def _sharding_types(
    settings: TableSettings, cluster: ClusterConfig, *, column_width: int
) -> list[str]:
    """Return the sharding types that a table may have."""
    optimizer = settings.optimizer
    adam = optimizer is not None and optimizer.name == "adam"
    if optimizer is not None and optimizer.l2:
        # A penalty on every row is kept where every rank holds and steps every row.
        return [DATA_PARALLEL]
    if settings.sharding is not None:
        return [kind for kind in settings.sharding if not _leaves_empty(kind, settings, cluster)]
    if settings.ranks is not None:
        return ["table_wise"] if len(settings.ranks) == 1 else ["column_wise"]
    if adam and cluster.device == "cpu":
        return [DATA_PARALLEL]
    kinds = [
        kind
        for kind in SHARDING_TYPES
        if (cluster.hosts > 1 or kind not in HOST_TYPES)
        # Row-wise Adagrad keeps a value for every row of every piece: trained tables are cut both ways
        # where the configuration says so.
        and (kind != "grid_shard" or settings.is_frozen)
        and (kind not in _COLUMN_TYPES or column_width >= _NARROW)
        and (kind != DATA_PARALLEL or (adam and not settings.is_half and not settings.is_on_ssd))
        and not _leaves_empty(kind, settings, cluster)
    ]
    if cluster.num_ranks == 1:
        # One rank holds whole tables in any case; the other types sort ids into one bucket and
        # exchange them with nobody.
        kinds = [kind for kind in kinds if kind in ("table_wise", DATA_PARALLEL)]
    return kinds


def _leaves_empty(kind: str, settings: TableSettings, cluster: ClusterConfig) -> bool:
    """Return whether cutting rows gives some CPU rank none: FBGEMM's lookup fails on a table of 0 rows.

    TorchRec's pieces are of ceil(rows / pieces) rows each, and the last ones get what is left.
    """
    pieces = {"row_wise": cluster.num_ranks}.get(kind, cluster.accelerators_per_host)
    if cluster.device != "cpu" or kind not in _ROW_TYPES:
        return False
    return (pieces - 1) * -(-settings.rows // pieces) >= settings.rows


def _sharding_problems(
    table: str, settings: TableSettings, cluster: ClusterConfig
) -> Iterator[str]:
    kinds = settings.sharding or ()
    if kinds and all(_leaves_empty(kind, settings, cluster) for kind in kinds):
        yield (
            f"tables.{table}.sharding={' or '.join(kinds)}: leaves a rank none of the {settings.rows} "
            f"rows, which a CPU cannot look up; use table_wise"
        )
    if settings.is_frozen and DATA_PARALLEL in (settings.sharding or ()):
        yield (
            f"tables.{table}.sharding=data_parallel: frozen modality tables are replicated by "
            f"plan.replicate_modality_bytes, not by data_parallel"
        )


def _kernel_problems(table: str, settings: TableSettings, cluster: ClusterConfig) -> Iterator[str]:
    if settings.is_coded and settings.kernel != "fused":
        yield (
            f"tables.{table}.kernel={settings.kernel}: its vectors are codes, which only fused tables "
            f"hold; leave the key out"
        )
    given = f"tables.{table}.kernel={settings.kernel}"
    if settings.kernel in (*HOST_MEMORY_KERNELS, SSD_KERNEL) and cluster.device == "cpu":
        yield (
            f"{given}: runs on GPU only, and {cluster.name!r} is a "
            f"CPU cluster, whose tables are in main memory anyway"
        )
    elif settings.is_on_ssd and not cluster.ssd_gib:
        yield f"{given}: cluster {cluster.name!r} has no SSD; give cluster.ssd_gib, of one machine"
    elif settings.is_on_ssd and settings.is_frozen:
        yield (
            f"{given}: its vectors are frozen, and TorchRec's kernel for tables on SSD always trains; "
            f"use fused_uvm or fused_uvm_caching"
        )
    elif settings.optimizer is not None and settings.is_on_ssd:
        if settings.optimizer.name != "rowwise_adagrad":
            yield (
                f"{given}: its optimizer is {settings.optimizer.name}; TorchRec's kernel for tables on "
                f"SSD has no sgd, and keeps the two averages of adam, twice the size of the table, on "
                f"the accelerator; use tables.{table}.optimizer.name=rowwise_adagrad"
            )


def _rank_problems(table: str, settings: TableSettings, cluster: ClusterConfig) -> Iterator[str]:
    ranks = settings.ranks
    if ranks is None:
        return
    if any(rank >= cluster.num_ranks for rank in ranks):
        yield (
            f"tables.{table}.ranks={list(ranks)}: expected different ranks from 0 to "
            f"{cluster.num_ranks - 1} (cluster {cluster.name!r})"
        )
    if _is_dense_adam(settings, cluster):
        yield (
            f"tables.{table}.ranks: its optimizer is adam, which on CPU wants the table on every "
            f"rank; use tables.{table}.optimizer.name=rowwise_adagrad"
        )


def _precision_problems(
    table: str, settings: TableSettings, cluster: ClusterConfig
) -> Iterator[str]:
    if settings.is_half and _is_dense_adam(settings, cluster):
        yield (
            f"tables.{table}.precision=fp16: its optimizer is adam, which on CPU wants the "
            f"table on every rank in fp32; use tables.{table}.optimizer.name=rowwise_adagrad"
        )


def _is_dense_adam(settings: TableSettings, cluster: ClusterConfig) -> bool:
    is_adam = settings.optimizer is not None and settings.optimizer.name == "adam"
    return is_adam and cluster.device == "cpu"
