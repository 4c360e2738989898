"""What a plan makes every table and every rank hold and do: bytes, traffic, estimated times.

What enters: the planner's chosen options. What leaves: the content of plan.json. Bytes of values,
optimizer state and gradients are exact; buffers and times are TorchRec's estimates. Times are in
milliseconds, forward and backward together. Called by recsys/sharding/plan.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torchrec.distributed.planner.types import ShardingOption

from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.search import (
    HOST_MEMORY_KERNELS,
    TableFacts,
    copy_bytes,
    gigabytes,
    gradient_bytes,
    optimizer_bytes,
    weight_bytes,
)

REPLICATED = "replicated"
"""Sharding type of frozen tables that every rank holds whole."""
ID_BYTES = 8
_PRECISION_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_AMOUNTS = ("weight_bytes", "optimizer_bytes", "gradient_bytes", "buffer_bytes")
_TIMES = ("lookup_ms", "communication_ms")


def forecast(
    *,
    cluster: ClusterConfig,
    configs: Mapping[str, Any],
    dtypes: Mapping[str, str],
    facts: Mapping[str, TableFacts],
    options: Sequence[ShardingOption],
    replicated: Sequence[str],
    num_dense: int,
    dense_bytes: int,
    host_copies: bool,
    batch_size_per_rank: int,
    feature_lengths: Mapping[str, float],
    communication: tuple[str, str],
) -> dict[str, Any]:
    """Return the content of plan.json, as far as a plan determines it.

    Args:
        configs: EmbeddingBagConfig by table name.
        options: the planner's choice, every shard with rank, storage and perf.
        replicated: frozen tables held whole by every rank.
        num_dense: weights of the dense part; `dense_bytes` with gradients and optimizer state.
        host_copies: trainable tables are copied to host memory for checkpoints; a replicated one by
            rank 0.
        feature_lengths: ids a row of every feature.
        communication: precision of looked-up vectors and of their gradients.
    """
    ranks = [_empty_rank(rank, cluster, dense_bytes) for rank in range(cluster.num_ranks)]
    tables, shards = [], []
    chosen = {option.name: option for option in options}
    for name, config in configs.items():
        table: dict[str, Any] = {
            "table": name,
            "frozen": facts[name].optimizer is None,
            "features": list(config.feature_names),
            "ids_per_row": sum(feature_lengths.get(f, 1.0) for f in config.feature_names),
            "rows": config.num_embeddings,
            "width": config.embedding_dim,
            "dtype": dtypes[name],
            "optimizer": facts[name].optimizer,
            "sharding": REPLICATED,
            "kernel": "frozen",
            "cache_load_factor": None,
        }
        if name in replicated:
            size = [config.num_embeddings, config.embedding_dim]
            output = batch_size_per_rank * len(config.feature_names) * config.embedding_dim * 4
            pieces = [_Piece(rank=None, offset=[0, 0], size=size, buffer_bytes=output)]
        else:
            option = chosen[name]
            table |= {"sharding": option.sharding_type, "kernel": option.compute_kernel}
            if option.compute_kernel == "fused_uvm_caching":
                table["cache_load_factor"] = option.cache_load_factor
            pieces = _pieces(option, facts[name], host_copies)
        table |= dict.fromkeys(_AMOUNTS, 0) | dict.fromkeys(_TIMES, 0.0)
        for piece in pieces:
            held = _held_bytes(facts[name], table["kernel"], piece.size)
            amounts = held | {
                "buffer_bytes": piece.buffer_bytes,
                "lookup_ms": piece.lookup_ms,
                "communication_ms": piece.communication_ms,
            }
            shards.append({
                "table": name,
                "sharding": table["sharding"],
                "kernel": table["kernel"],
                "rank": piece.rank,
                "rows": [piece.offset[0], piece.offset[0] + piece.size[0]],
                "columns": [piece.offset[1], piece.offset[1] + piece.size[1]],
                "bytes": held["weight_bytes"],
                "state_bytes": held["optimizer_bytes"] + held["gradient_bytes"],
            })
            holders = ranks if piece.rank is None else [ranks[piece.rank]]
            for holder in holders:
                _hold(holder, table, amounts, cluster)
            for key, amount in amounts.items():
                table[key] += amount * len(holders)
            saving = ranks[piece.rank or 0]
            saving["copy_bytes"] += piece.copy_bytes
            saving["ddr_bytes"] += piece.copy_bytes
        holding = {piece.rank for piece in pieces if piece.size[0] * piece.size[1]}
        table["num_ranks"] = cluster.num_ranks if None in holding else len(holding)
        table |= _traffic(table, len(pieces), cluster, batch_size_per_rank, communication)
        tables.append(table)
    dense_ms = 6e3 * num_dense * batch_size_per_rank / (cluster.dense_tflops * 1e12)
    exchange_ms = _all_reduce_ms(4 * num_dense, cluster)
    for line in ranks:
        line["dense_ms"] = dense_ms
        line["communication_ms"] += exchange_ms
        used = line["hbm_bytes"] if cluster.device == "cuda" else line["ddr_bytes"]
        line["headroom_bytes"] = cluster.table_memory_bytes - line["reserved_bytes"] - used
    return {
        "num_ranks": cluster.num_ranks,
        "batch_size_per_rank": batch_size_per_rank,
        "cluster": dataclasses.asdict(cluster),
        "communication": {"forward": communication[0], "backward": communication[1]},
        "dense": {"parameters": num_dense, "bytes_per_rank": dense_bytes},
        "summary": _summary(ranks, tables, cluster),
        "tables": tables,
        "ranks": ranks,
        "shards": shards,
    }


@dataclasses.dataclass(kw_only=True)
class _Piece:
    """A shard, or with rank None a copy that every rank holds."""

    rank: int | None
    offset: list[int]
    size: list[int]
    buffer_bytes: int
    copy_bytes: int = 0
    lookup_ms: float = 0.0
    communication_ms: float = 0.0


def _held_bytes(facts: TableFacts, kernel: str, size: Sequence[int]) -> dict[str, int]:
    return {
        "weight_bytes": weight_bytes(facts, size),
        "optimizer_bytes": optimizer_bytes(facts, size),
        "gradient_bytes": gradient_bytes(facts, kernel, size),
    }


def _pieces(option: ShardingOption, facts: TableFacts, host_copies: bool) -> list[_Piece]:
    data_parallel = option.sharding_type == "data_parallel"
    pieces = []
    for shard in option.shards[:1] if data_parallel else option.shards:
        perf, storage = shard.perf, shard.storage
        assert perf is not None and storage is not None, "the planner has estimated every shard"
        held = sum(_held_bytes(facts, option.compute_kernel, shard.size).values())
        copied = copy_bytes(facts, shard.size) if host_copies else 0
        pieces.append(
            _Piece(
                rank=None if data_parallel else shard.rank,
                offset=list(shard.offset),
                size=list(shard.size),
                # What is left is the exchange's buffers, and a cache where there is one.
                buffer_bytes=storage.hbm + storage.ddr - held - copied,
                copy_bytes=copied,
                lookup_ms=perf.fwd_compute + perf.bwd_compute + perf.prefetch_compute,
                communication_ms=perf.fwd_comms + perf.bwd_comms,
            )
        )
    return pieces


def _empty_rank(rank: int, cluster: ClusterConfig, dense_bytes: int) -> dict[str, Any]:
    on_accelerator = cluster.device == "cuda"
    return {
        "rank": rank,
        "host": rank // cluster.accelerators_per_host,
        "num_tables": 0,
        "weight_bytes": 0,
        "frozen_bytes": 0,
        "optimizer_bytes": 0,
        "gradient_bytes": 0,
        "buffer_bytes": 0,
        "copy_bytes": 0,
        "dense_bytes": dense_bytes,
        "reserved_bytes": int(cluster.reserved_share * cluster.table_memory_bytes),
        "hbm_bytes": dense_bytes if on_accelerator else 0,
        "ddr_bytes": 0 if on_accelerator else dense_bytes,
        "hbm_capacity_bytes": cluster.accelerator_bytes,
        "ddr_capacity_bytes": cluster.host_bytes_per_rank,
        "lookup_ms": 0.0,
        "communication_ms": 0.0,
    }


def _hold(
    rank: dict[str, Any],
    table: Mapping[str, Any],
    amounts: Mapping[str, float],
    cluster: ClusterConfig,
) -> None:
    """Add a piece of a table to what a rank holds and does."""
    held = amounts["weight_bytes"] + amounts["optimizer_bytes"] + amounts["gradient_bytes"]
    rank["num_tables"] += 1 if held else 0
    rank["frozen_bytes" if table["frozen"] else "weight_bytes"] += amounts["weight_bytes"]
    for key in ("optimizer_bytes", "gradient_bytes", "buffer_bytes", *_TIMES):
        rank[key] += amounts[key]
    on_accelerator = cluster.device == "cuda"
    main_memory = not on_accelerator or table["kernel"] in HOST_MEMORY_KERNELS
    rank["ddr_bytes" if main_memory else "hbm_bytes"] += held
    rank["hbm_bytes" if on_accelerator else "ddr_bytes"] += amounts["buffer_bytes"]


def _traffic(
    table: Mapping[str, Any],
    num_pieces: int,
    cluster: ClusterConfig,
    batch_size_per_rank: int,
    communication: tuple[str, str],
) -> dict[str, int]:
    """Return the bytes that all ranks together send in a step for a table: ids, and vectors.

    Vectors go forward, and for a trainable table their gradients go back. A piece of columns needs
    every id; a piece of rows yields a partial sum for every row of the batch, which is reduced
    over the ranks that hold one.
    """
    sharding, ranks = table["sharding"], cluster.num_ranks
    if ranks == 1 or sharding == REPLICATED:
        return {"input_bytes_per_step": 0, "output_bytes_per_step": 0}
    if sharding == "data_parallel":
        gradient = 4 * table["rows"] * table["width"]
        return {"input_bytes_per_step": 0, "output_bytes_per_step": 2 * (ranks - 1) * gradient}
    ways = _PRECISION_BYTES[communication[0]]
    ways += 0 if table["frozen"] else _PRECISION_BYTES[communication[1]]
    rows = batch_size_per_rank * ranks
    column_pieces = {"column_wise": num_pieces, "table_column_wise": num_pieces}.get(sharding, 1)
    row_pieces = {"row_wise": ranks, "table_row_wise": cluster.accelerators_per_host}
    if sharding == "grid_shard":
        row_pieces["grid_shard"] = cluster.accelerators_per_host
        column_pieces = num_pieces // cluster.accelerators_per_host
    vectors = rows * len(table["features"]) * table["width"] * row_pieces.get(sharding, 1)
    return {
        "input_bytes_per_step": int(ID_BYTES * rows * table["ids_per_row"] * column_pieces),
        "output_bytes_per_step": vectors * ways,
    }


def _all_reduce_ms(num_bytes: int, cluster: ClusterConfig) -> float:
    ranks = cluster.num_ranks
    gigabytes_per_second = (
        cluster.intra_host_gb_per_second if cluster.hosts == 1 else cluster.inter_host_gb_per_second
    )
    return 2 * (ranks - 1) / ranks * num_bytes / (gigabytes_per_second * 1e6)


def _summary(
    ranks: Sequence[Mapping[str, Any]],
    tables: Sequence[Mapping[str, Any]],
    cluster: ClusterConfig,
) -> dict[str, Any]:
    """Return totals, imbalance (max / mean over ranks) and the critical path.

    Exchanges wait for the slowest rank, so the critical path is the slowest lookup, the slowest
    exchange and the dense part, one after the other; overlap by the pipeline is not counted.
    """
    memory = [rank["hbm_bytes"] + rank["ddr_bytes"] for rank in ranks]
    busy = [rank["lookup_ms"] + rank["communication_ms"] for rank in ranks]
    path = {
        "lookup_ms": max(rank["lookup_ms"] for rank in ranks),
        "communication_ms": max(rank["communication_ms"] for rank in ranks),
        "dense_ms": max(rank["dense_ms"] for rank in ranks),
    }
    headroom = [rank["headroom_bytes"] for rank in ranks]
    fullest = ranks[headroom.index(min(headroom))]
    used = fullest["hbm_bytes"] if cluster.device == "cuda" else fullest["ddr_bytes"]
    table_bytes = sum(t["weight_bytes"] + t["optimizer_bytes"] for t in tables)
    return {
        "fits": True,
        "verdict": f"fits {cluster.name}: tables of {gigabytes(table_bytes)} over "
        f"{cluster.num_ranks} rank(s); the fullest, rank {fullest['rank']}, holds "
        f"{gigabytes(used)} of {gigabytes(cluster.table_memory_bytes)}, with "
        f"{gigabytes(fullest['reserved_bytes'])} kept free and {gigabytes(min(headroom))} to spare",
        "table_bytes": table_bytes,
        "largest_rank_bytes": max(memory),
        "smallest_headroom_bytes": min(headroom),
        "memory_imbalance": _imbalance(memory),
        "time_imbalance": _imbalance(busy),
        "critical_path": path,
        "critical_path_ms": sum(path.values()),
        "slowest_rank": busy.index(max(busy)),
    }


def _imbalance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return max(values) / mean if mean else 1.0
