"""Memory, traffic and estimated times of every table and every rank under a plan.

In: the planner's chosen options. Out: a Plan. Bytes of values, optimizer state and gradients are exact;
buffers and times are TorchRec's estimates. Called by recsys/sharding/search.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.types import ShardingOption

from recsys.sharding.cluster import ClusterConfig, gigabytes
from recsys.sharding.plan import (
    DATA_PARALLEL,
    HOST_MEMORY_KERNELS,
    REPLICATED,
    SSD_KERNEL,
    Communication,
    CriticalPath,
    DensePart,
    Plan,
    PlanSummary,
    RankLoad,
    ShardPlan,
    TablePlan,
)
from recsys.sharding.ssd import storage_on_ssd
from recsys.sharding.tables import TableSettings

ID_BYTES = 8
_PRECISION_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A shard, or with rank None a copy that every rank holds."""

    table: str
    sharding: str
    kernel: str
    rank: int | None
    offset: tuple[int, int]
    size: tuple[int, int]
    weight_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    buffer_bytes: int
    copy_bytes: int = 0
    cache_bytes: int = 0
    """Of the buffers, the cache of a piece on SSD."""
    host_bytes: int = 0
    """Main memory beside a piece on SSD."""
    lookup_ms: float = 0.0
    ssd_ms: float = 0.0
    communication_ms: float = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes of values, optimizer state and gradients."""
        return self.weight_bytes + self.optimizer_bytes + self.gradient_bytes

    @property
    def ssd_bytes(self) -> int:
        """Bytes of values on SSD."""
        return self.weight_bytes if self.kernel == SSD_KERNEL else 0


def forecast(
    *,
    cluster: ClusterConfig,
    tables: Mapping[str, TableSettings],
    options: Sequence[ShardingOption],
    dense: DensePart,
    host_copies: bool,
    array_bytes: int,
    batch_size_per_rank: int,
    feature_lengths: Mapping[str, float],
    communication: Communication,
) -> Plan:
    """Return the plan that the planner's choice makes.

    Args:
        tables: settings of every table; frozen ones without an option are held whole by every rank.
        options: every shard with rank, storage and perf.
        host_copies: trainable tables are copied to host memory for checkpoints; a replicated one by
            rank 0.
        array_bytes: of the data's arrays that every accelerator keeps a copy of.
        feature_lengths: ids a row of every feature.
    """
    chosen = {option.name: option for option in options}
    pieces: dict[str, list[_Piece]] = {}
    planned = []
    for name, settings in tables.items():
        option = chosen.get(name)
        if option is None:
            pieces[name] = [_copy(name, settings, batch_size_per_rank)]
        else:
            pieces[name] = _pieces(option, settings, host_copies)
        planned.append(
            _table_plan(
                name,
                settings,
                pieces[name],
                option,
                cluster,
                ids_per_row=sum(feature_lengths.get(f, 1.0) for f in settings.features),
                batch_size_per_rank=batch_size_per_rank,
                communication=communication,
            )
        )
    everything = [piece for held in pieces.values() for piece in held]
    ranks = _rank_loads(everything, tables, cluster, dense, array_bytes, batch_size_per_rank)
    return Plan(
        num_ranks=cluster.num_ranks,
        batch_size_per_rank=batch_size_per_rank,
        cluster=cluster,
        communication=communication,
        dense=dense,
        summary=_summary(ranks, planned, cluster),
        tables=tuple(planned),
        ranks=tuple(ranks),
        shards=tuple(map(_shard_plan, everything)),
    )


def _copy(name: str, settings: TableSettings, batch_size_per_rank: int) -> _Piece:
    """Return the copy of a frozen table that every rank holds; its buffer is the looked-up vectors."""
    size = (settings.rows, settings.width)
    return _Piece(
        table=name,
        sharding=REPLICATED,
        kernel="frozen",
        rank=None,
        offset=(0, 0),
        size=size,
        weight_bytes=settings.weight_bytes(size),
        optimizer_bytes=0,
        gradient_bytes=0,
        buffer_bytes=batch_size_per_rank * len(settings.features) * settings.width * 4,
    )


def _pieces(option: ShardingOption, settings: TableSettings, host_copies: bool) -> list[_Piece]:
    replicated = option.sharding_type == DATA_PARALLEL
    pieces = []
    for shard in option.shards[:1] if replicated else option.shards:
        perf, storage = shard.perf, shard.storage
        assert perf is not None and storage is not None, "the planner has estimated every shard"
        piece = _Piece(
            table=option.name,
            sharding=option.sharding_type,
            kernel=option.compute_kernel,
            rank=None if replicated else shard.rank,
            offset=(shard.offset[0], shard.offset[1]),
            size=(shard.size[0], shard.size[1]),
            weight_bytes=settings.weight_bytes(shard.size),
            optimizer_bytes=settings.optimizer_bytes(shard.size),
            gradient_bytes=settings.gradient_bytes(option.compute_kernel, shard.size),
            buffer_bytes=0,
            copy_bytes=settings.copy_bytes(shard.size) if host_copies else 0,
            lookup_ms=perf.fwd_compute + perf.bwd_compute + perf.prefetch_compute,
            communication_ms=perf.fwd_comms + perf.bwd_comms,
        )
        if piece.kernel == SSD_KERNEL:
            on_ssd = storage_on_ssd(settings, shard.size)
            piece = dataclasses.replace(
                piece,
                cache_bytes=on_ssd.cache_bytes,
                host_bytes=on_ssd.host_bytes,
                ssd_ms=perf.prefetch_compute,
            )
        # The rest is the exchange's buffers, and a cache where there is one.
        rest = storage.hbm + storage.ddr + storage.ssd - piece.held_bytes - piece.copy_bytes
        pieces.append(dataclasses.replace(piece, buffer_bytes=rest - piece.host_bytes))
    return pieces


def _shard_plan(piece: _Piece) -> ShardPlan:
    (row, column), (num_rows, num_columns) = piece.offset, piece.size
    return ShardPlan(
        table=piece.table,
        sharding=piece.sharding,
        kernel=piece.kernel,
        rank=piece.rank,
        rows=(row, row + num_rows),
        columns=(column, column + num_columns),
        bytes=piece.weight_bytes,
        state_bytes=piece.optimizer_bytes + piece.gradient_bytes,
    )


def _table_plan(
    name: str,
    settings: TableSettings,
    pieces: Sequence[_Piece],
    option: ShardingOption | None,
    cluster: ClusterConfig,
    *,
    ids_per_row: float,
    batch_size_per_rank: int,
    communication: Communication,
) -> TablePlan:
    """Return a table's line: sums over all ranks; a copy counts once for every rank."""
    holders = [cluster.num_ranks if piece.rank is None else 1 for piece in pieces]
    holding = {piece.rank for piece in pieces if piece.size[0] * piece.size[1]}
    kernel = pieces[0].kernel
    cached = option is not None and kernel in ("fused_uvm_caching", SSD_KERNEL)
    plan = TablePlan(
        table=name,
        frozen=settings.is_frozen,
        features=settings.features,
        ids_per_row=ids_per_row,
        rows=settings.rows,
        width=settings.width,
        dtype=settings.precision,
        optimizer=None if settings.optimizer is None else settings.optimizer.name,
        sharding=pieces[0].sharding,
        kernel=kernel,
        cache_load_factor=settings.cached_share if cached else None,
        weight_bytes=sum(p.weight_bytes * n for p, n in zip(pieces, holders, strict=True)),
        optimizer_bytes=sum(p.optimizer_bytes * n for p, n in zip(pieces, holders, strict=True)),
        gradient_bytes=sum(p.gradient_bytes * n for p, n in zip(pieces, holders, strict=True)),
        buffer_bytes=sum(p.buffer_bytes * n for p, n in zip(pieces, holders, strict=True)),
        lookup_ms=sum(p.lookup_ms * n for p, n in zip(pieces, holders, strict=True)),
        communication_ms=sum(p.communication_ms * n for p, n in zip(pieces, holders, strict=True)),
        num_ranks=cluster.num_ranks if None in holding else len(holding),
        input_bytes_per_step=0,
        output_bytes_per_step=0,
        cache_bytes=sum(p.cache_bytes for p in pieces),
        host_bytes=sum(p.host_bytes for p in pieces),
        ssd_bytes=sum(p.ssd_bytes for p in pieces),
    )
    ids, vectors = _traffic(plan, len(pieces), cluster, batch_size_per_rank, communication)
    return dataclasses.replace(plan, input_bytes_per_step=ids, output_bytes_per_step=vectors)


def _rank_loads(
    pieces: Sequence[_Piece],
    tables: Mapping[str, TableSettings],
    cluster: ClusterConfig,
    dense: DensePart,
    array_bytes: int,
    batch_size_per_rank: int,
) -> list[RankLoad]:
    """Return the memory and the work of every rank, the dense part included."""
    of_rank: list[list[_Piece]] = [[] for _ in range(cluster.num_ranks)]
    for piece in pieces:
        for rank in range(cluster.num_ranks) if piece.rank is None else [piece.rank]:
            of_rank[rank].append(piece)
    loads = [
        _rank_load(rank, held, tables, cluster, dense, array_bytes)
        for rank, held in enumerate(of_rank)
    ]
    dense_ms = 6e3 * dense.parameters * batch_size_per_rank / (cluster.dense_tflops * 1e12)
    exchange_ms = _all_reduce_ms(4 * dense.parameters, cluster)
    return [
        dataclasses.replace(
            load, dense_ms=dense_ms, communication_ms=load.communication_ms + exchange_ms
        )
        for load in loads
    ]


def _rank_load(
    rank: int,
    pieces: Sequence[_Piece],
    tables: Mapping[str, TableSettings],
    cluster: ClusterConfig,
    dense: DensePart,
    array_bytes: int,
) -> RankLoad:
    """Return the memory and the lookups of one rank; the work of the dense part is not in it."""
    on_accelerator = cluster.device == "cuda"
    in_main_memory = [p for p in pieces if not on_accelerator or p.kernel in HOST_MEMORY_KERNELS]
    buffers = sum(p.buffer_bytes for p in pieces)
    # Of a replicated table rank 0 writes the checkpoint.
    copies = sum(p.copy_bytes for p in pieces if (p.rank or 0) == rank)
    in_ddr = sum(p.held_bytes for p in in_main_memory)
    on_ssd = sum(p.ssd_bytes for p in pieces)
    in_hbm = sum(p.held_bytes for p in pieces) - in_ddr - on_ssd
    beside_tables = buffers + dense.bytes_per_rank
    hbm = in_hbm + beside_tables + array_bytes if on_accelerator else 0
    ddr = in_ddr + copies + (0 if on_accelerator else beside_tables)
    ddr += sum(p.host_bytes for p in pieces)
    reserved = int(cluster.reserved_share * cluster.table_memory_bytes)
    used = hbm if on_accelerator else ddr
    return RankLoad(
        rank=rank,
        host=rank // cluster.accelerators_per_host,
        num_tables=sum(1 for p in pieces if p.held_bytes),
        weight_bytes=sum(p.weight_bytes for p in pieces if not tables[p.table].is_frozen),
        frozen_bytes=sum(p.weight_bytes for p in pieces if tables[p.table].is_frozen),
        optimizer_bytes=sum(p.optimizer_bytes for p in pieces),
        gradient_bytes=sum(p.gradient_bytes for p in pieces),
        buffer_bytes=buffers,
        copy_bytes=copies,
        dense_bytes=dense.bytes_per_rank,
        array_bytes=array_bytes,
        reserved_bytes=reserved,
        hbm_bytes=hbm,
        ddr_bytes=ddr,
        hbm_capacity_bytes=cluster.accelerator_bytes,
        ddr_capacity_bytes=cluster.host_bytes_per_rank,
        lookup_ms=sum((p.lookup_ms for p in pieces), 0.0),
        communication_ms=sum((p.communication_ms for p in pieces), 0.0),
        dense_ms=0.0,
        headroom_bytes=cluster.table_memory_bytes - reserved - used,
        ssd_bytes=on_ssd,
        ssd_ms=sum((p.ssd_ms for p in pieces), 0.0),
    )


def _traffic(
    table: TablePlan,
    num_pieces: int,
    cluster: ClusterConfig,
    batch_size_per_rank: int,
    communication: Communication,
) -> tuple[int, int]:
    """Return the bytes that all ranks together send in a step for a table: ids, and vectors.

    Vectors go forward, and for a trainable table their gradients go back. A piece of columns needs
    every id; a piece of rows yields a partial sum for every row of the batch, which is reduced
    over the ranks that hold one.
    """
    sharding, ranks = table.sharding, cluster.num_ranks
    if ranks == 1 or sharding == REPLICATED:
        return 0, 0
    if sharding == DATA_PARALLEL:
        return 0, 2 * (ranks - 1) * 4 * table.rows * table.width
    ways = _PRECISION_BYTES[communication.forward]
    ways += 0 if table.frozen else _PRECISION_BYTES[communication.backward]
    rows = batch_size_per_rank * ranks
    column_pieces = {"column_wise": num_pieces, "table_column_wise": num_pieces}.get(sharding, 1)
    row_pieces = {"row_wise": ranks, "table_row_wise": cluster.accelerators_per_host}
    if sharding == "grid_shard":
        row_pieces["grid_shard"] = cluster.accelerators_per_host
        column_pieces = num_pieces // cluster.accelerators_per_host
    vectors = rows * len(table.features) * table.width * row_pieces.get(sharding, 1)
    return int(ID_BYTES * rows * table.ids_per_row * column_pieces), vectors * ways


def _all_reduce_ms(num_bytes: int, cluster: ClusterConfig) -> float:
    ranks = cluster.num_ranks
    gigabytes_per_second = (
        cluster.intra_host_gb_per_second if cluster.hosts == 1 else cluster.inter_host_gb_per_second
    )
    return 2 * (ranks - 1) / ranks * num_bytes / (gigabytes_per_second * 1e6)


def _summary(
    ranks: Sequence[RankLoad], tables: Sequence[TablePlan], cluster: ClusterConfig
) -> PlanSummary:
    """Return totals, imbalance (max / mean over ranks) and the critical path.

    Exchanges wait for the slowest rank, so the critical path is the slowest lookup, the slowest
    exchange and the dense part, one after the other; overlap by the pipeline is not counted.
    """
    memory = [rank.hbm_bytes + rank.ddr_bytes for rank in ranks]
    busy = [rank.lookup_ms + rank.communication_ms for rank in ranks]
    path = CriticalPath(
        lookup_ms=max(rank.lookup_ms for rank in ranks),
        communication_ms=max(rank.communication_ms for rank in ranks),
        dense_ms=max(rank.dense_ms for rank in ranks),
    )
    fullest = min(ranks, key=lambda rank: rank.headroom_bytes)
    used = fullest.hbm_bytes if cluster.device == "cuda" else fullest.ddr_bytes
    table_bytes = sum(t.weight_bytes + t.optimizer_bytes for t in tables)
    ssd_bytes = sum(t.ssd_bytes for t in tables)
    on_ssd = f", {gigabytes(ssd_bytes)} of them on SSD" if ssd_bytes else ""
    return PlanSummary(
        fits=True,
        verdict=f"fits {cluster.name}: tables of {gigabytes(table_bytes)} over "
        f"{cluster.num_ranks} rank(s){on_ssd}; the fullest, rank {fullest.rank}, holds "
        f"{gigabytes(used)} of {gigabytes(cluster.table_memory_bytes)}, with "
        f"{gigabytes(fullest.reserved_bytes)} kept free and {gigabytes(fullest.headroom_bytes)} to "
        f"spare",
        table_bytes=table_bytes,
        largest_rank_bytes=max(memory),
        smallest_headroom_bytes=fullest.headroom_bytes,
        memory_imbalance=_imbalance(memory),
        time_imbalance=_imbalance(busy),
        critical_path=path,
        critical_path_ms=path.total_ms,
        slowest_rank=busy.index(max(busy)),
    )


def _imbalance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return max(values) / mean if mean else 1.0
