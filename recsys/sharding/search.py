"""Search for the best plan: constraints, TorchRec's planner, and what the plan makes every rank hold.

In: a ranker on the meta device, the settings of its tables, a cluster that need not exist. Out: a
Plan, or DoesNotFitError. Needs no process group, no GPU, no data and no storage for the tables.
"""

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    PlannerError,
    ShardEstimator,
    ShardingOption,
)

from recsys.model.ranker import Ranker
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.constraints import constrain
from recsys.sharding.estimate import ID_BYTES, forecast
from recsys.sharding.plan import DATA_PARALLEL, Communication, DensePart, Plan, PlanConfig
from recsys.sharding.planner import (
    Enumerator,
    Partitioner,
    PerfEstimator,
    Recorder,
    Reservation,
    StorageEstimator,
    proposers,
    table_sharder,
)
from recsys.sharding.shortage import find_shortage, with_copies
from recsys.sharding.tables import TableSettings

_FULL_UP_TO = 100
"""Tables x ranks up to which `auto` searches in full; 6 tables on 64 ranks took 33 s against 0.4 s, for
the same plan (LOG.md, 2026-11-26)."""
_SMALL_SHARE = 0.01
"""Fast search: a table below this share of a rank's memory is not cut."""
_MIDDLE_SHARE = 0.1
"""Fast search: a table below this share is not cut over all ranks (a shard for each of them)."""


def plan_tables(
    *,
    model: Ranker,
    cluster: ClusterConfig,
    tables: Mapping[str, TableSettings],
    config: PlanConfig,
    feature_lengths: Mapping[str, float],
    global_batch_size: int,
    host_copies: bool,
    array_bytes: int = 0,
) -> Plan:
    """Return the best plan for a cluster.

    Args:
        feature_lengths: ids a row of every feature.
        host_copies: count the copies of trainable tables in host memory that checkpoints are written
            from.
        array_bytes: of the data's arrays that every accelerator keeps a copy of.

    Raises:
        UserError: constraints that do not fit the tables or the cluster.
        DoesNotFitError: no plan holds all tables.
    """
    config = config.with_exchange(device_type=cluster.device, num_ranks=cluster.num_ranks)
    constraints = constrain(
        tables=tables, config=config, cluster=cluster, feature_lengths=feature_lengths
    )
    batch_size = cluster.batch_size(global_batch_size)
    replicated = [name for name, settings in tables.items() if settings.is_frozen]
    frozen_bytes = sum(tables[name].num_bytes for name in replicated)
    if frozen_bytes > config.replicate_modality_bytes:
        replicated, frozen_bytes = [], 0
    num_dense = sum(p.numel() for p in model.dense.parameters())
    # Weights, gradients and Adam's two averages, fp32.
    dense = DensePart(parameters=num_dense, bytes_per_rank=16 * num_dense)
    options = search_tables(
        module=_skeleton(model, with_frozen=not replicated),
        cluster=cluster,
        constraints={t: c for t, c in constraints.items() if t not in replicated},
        tables=tables,
        config=config,
        batch_size_per_rank=batch_size,
        unsharded_bytes=dense.bytes_per_rank + frozen_bytes + array_bytes,
        host_copies=host_copies,
    )
    return forecast(
        cluster=cluster,
        tables=tables,
        options=options,
        dense=dense,
        host_copies=host_copies,
        array_bytes=array_bytes,
        batch_size_per_rank=batch_size,
        feature_lengths=feature_lengths,
        communication=_communication(config),
    )


def _communication(config: PlanConfig) -> Communication:
    return Communication(
        forward=config.forward_communication, backward=config.backward_communication
    )


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


def search_tables(
    *,
    module: nn.Module,
    cluster: ClusterConfig,
    constraints: dict[str, ParameterConstraints],
    tables: Mapping[str, TableSettings],
    config: PlanConfig,
    batch_size_per_rank: int,
    unsharded_bytes: int,
    host_copies: bool,
) -> list[ShardingOption]:
    """Return the best plan's options: every shard with its rank, bytes and estimated times.

    Args:
        module: holds the EmbeddingBagCollections at the paths the plan shall name.
        constraints: of the tables in `module`.
        unsharded_bytes: held by every rank besides (dense part, replicated frozen tables, arrays).
        host_copies: count the copies that checkpoints are written from.

    Raises:
        DoesNotFitError: no plan holds all tables.
    """
    topology = cluster.topology()
    fast = _is_fast(config, len(constraints) * cluster.num_ranks)
    if fast:
        constraints = _pruned(constraints, tables, cluster, batch_size_per_rank)
    enumerator = Enumerator(
        topology=topology,
        batch_size=batch_size_per_rank,
        constraints=constraints,
        estimator=_estimators(cluster, constraints, tables, host_copies),
    )
    pinned = {name: tables[name].ranks or () for name in constraints if tables[name].ranks}
    reservation, recorder = Reservation(cluster.reserved_share, unsharded_bytes), Recorder()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size_per_rank,
        enumerator=enumerator,
        storage_reservation=reservation,
        proposer=proposers(fast),
        partitioner=Partitioner(pinned),
        stats=recorder,
        constraints=constraints,
        debug=False,
    )
    sharder = table_sharder(_communication(config), torch.device(cluster.device))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planner.plan(module, [sharder])
    except PlannerError as error:
        options = enumerator.enumerate(module, [sharder])
        reason = find_shortage(options, reservation.free(), cluster, pinned)
        if host_copies and reason.of_host_memory:
            reason = with_copies(reason, options, tables, cluster)
        raise reason from error
    return recorder.options


def _estimators(
    cluster: ClusterConfig,
    constraints: dict[str, ParameterConstraints],
    tables: Mapping[str, TableSettings],
    host_copies: bool,
) -> list[ShardEstimator]:
    """Return what estimates every option: its times, and its bytes."""
    topology = cluster.topology()
    storage = StorageEstimator(topology=topology, constraints=constraints)
    perf = PerfEstimator(topology=topology, constraints=constraints)
    storage.tables, storage.copies, perf.tables = tables, host_copies, tables
    perf.ssd_gb_per_second = cluster.ssd_gb_per_second / cluster.accelerators_per_host
    return [perf, storage]


def _is_fast(config: PlanConfig, num_shards: int) -> bool:
    return config.search == "fast" or (config.search == "auto" and num_shards > _FULL_UP_TO)


def _pruned(
    constraints: Mapping[str, ParameterConstraints],
    tables: Mapping[str, TableSettings],
    cluster: ClusterConfig,
    batch_size_per_rank: int,
) -> dict[str, ParameterConstraints]:
    """Leave a small table its uncut options and a middling one those of few shards."""
    shares = {t: tables[t].num_bytes / cluster.table_memory_bytes for t in constraints}
    num_small = sum(share < _SMALL_SHARE for share in shares.values())
    # More small tables than ranks are shared out evenly, and each burdens a rank by that much less.
    relief = min(1.0, cluster.num_ranks / max(num_small, 1))
    pruned = {}
    for table, constraint in constraints.items():
        kinds = constraint.sharding_types or []
        if "table_wise" in kinds and shares[table] < _MIDDLE_SHARE:
            kept = [kind for kind in kinds if kind not in ("row_wise", DATA_PARALLEL)]
            if shares[table] < _SMALL_SHARE:
                kept = ["table_wise"]
                is_cheap = _reduced_bytes(tables[table]) < relief * _sent_bytes(
                    tables[table], constraint, batch_size_per_rank * cluster.num_ranks
                )
                kept += [DATA_PARALLEL] * (DATA_PARALLEL in kinds and is_cheap)
            constraint = copy.copy(constraint)
            constraint.sharding_types = kept
        pruned[table] = constraint
    return pruned


def _reduced_bytes(settings: TableSettings) -> int:
    """Return what a rank sends to reduce the gradient of a replicated table: every value twice."""
    return 2 * 4 * settings.rows * settings.width


def _sent_bytes(
    settings: TableSettings, constraint: ParameterConstraints, rows_of_step: int
) -> float:
    """Return what the rank of an uncut table receives and sends: ids, vectors and their gradients."""
    ids_per_row = sum(constraint.pooling_factors or ())
    vectors = 2 * 4 * len(settings.features) * settings.width
    return rows_of_step * (ID_BYTES * ids_per_row + vectors)
