"""TorchRec's planner with what it leaves open settled: order, bytes, frozen tables, pinned ranks.

What enters: tables, constraints, a cluster. What leaves: the sharding options of the best plan, each
with its shards' bytes, estimated times and ranks; or DoesNotFitError, which says what stands in the way.
Needs no process group, no GPU and no storage for the tables. Called by recsys/sharding/plan.py.

Six corrections of torchrec 1.8. Options come in one order, the simplest first (TorchRec iterates over
sets of strings, whose order changes from process to process, and with it which of two equal plans
wins). Optimizer state and the gradients of replicated tables are counted byte for byte, and so are the
copies of tables in host memory that checkpoints are written from. Frozen tables have no backward pass.
The time in which ids travel counts (TorchRec estimates it and leaves it out of the sum, so that it likes
to cut a table into columns four wide). What is not a table (dense part, replicated frozen tables) is
taken from a rank's memory before tables are placed, on CPU as on GPU.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.proposers import (
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    PlannerError,
    Shard,
    ShardingOption,
    Stats,
    Storage,
)
from torchrec.distributed.types import CommOp

from recsys.errors import UserError
from recsys.sharding.cluster import ClusterConfig

SHARDING_TYPES = (
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
HOST_TYPES = ("table_row_wise", "table_column_wise", "grid_shard")
"""Sharding types that place a table by hosts; on a single host they say nothing new."""
COLUMN_TYPES = ("column_wise", "table_column_wise", "grid_shard")
"""Sharding types that cut columns."""
DENSE_KERNEL = EmbeddingComputeKernel.DENSE.value
HOST_MEMORY_KERNELS = ("fused_uvm", "fused_uvm_caching")
"""Kernels whose table lies in main memory: read over the bus, or cached on the accelerator."""
KERNELS = ("fused", *HOST_MEMORY_KERNELS)
PRECISIONS = ("fp32", "fp16", "bf16")
SEARCHES = ("auto", "full", "fast")

_FULL_UP_TO = 100
"""Tables x ranks up to which `auto` searches in full; 6 tables on 64 ranks took 33 s against 0.4 s, for
the same plan (LOG.md, 2026-11-26)."""
_SMALL_SHARE = 0.01
"""Fast search: a table below this share of a rank's memory is not cut."""
_MIDDLE_SHARE = 0.1
"""Fast search: a table below this share is not cut over all ranks (a shard for each of them)."""
_PATIENCE = 20
"""Fast search: plans in a row that are no quicker, after which a proposer gives up."""


class TableSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every sharding type offered on CPU too.

    TorchRec leaves the row-wise kinds out of its CPU list only; such plans run there.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types we plan with, whatever the device."""
        return list(SHARDING_TYPES)


def table_sharder(forward: str, backward: str, device: torch.device) -> TableSharder:
    """Return the sharder whose exchanges travel in the given precisions.

    Args:
        forward: of looked-up vectors, `fp32`, `fp16` or `bf16`.
        backward: of their gradients.
        device: torch device; gloo knows no bf16, and fp16 travels there.
    """
    if device.type == "cpu":
        forward, backward = ("fp16" if p == "bf16" else p for p in (forward, backward))
    config = QCommsConfig(
        forward_precision=CommType(forward), backward_precision=CommType(backward)
    )
    operations = [CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER]
    return TableSharder(qcomm_codecs_registry=get_qcomm_codecs_registry(config, operations, device))


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """What the planner does not know of a table."""

    optimizer: str | None
    """`adam`, `rowwise_adagrad`, `sgd`; None: frozen."""
    value_bytes: int
    """Bytes of a stored value."""


def weight_bytes(facts: TableFacts, size: Sequence[int]) -> int:
    """Return the bytes of a shard's values; `size` is [rows, columns]."""
    return size[0] * size[1] * facts.value_bytes


def optimizer_bytes(facts: TableFacts, size: Sequence[int]) -> int:
    """Return the bytes of a shard's optimizer state, which is fp32 whatever the table is."""
    if facts.optimizer == "adam":
        return 2 * 4 * size[0] * size[1]
    return 4 * size[0] if facts.optimizer == "rowwise_adagrad" else 0


def gradient_bytes(facts: TableFacts, kernel: str, size: Sequence[int]) -> int:
    """Return the bytes of the gradient that a replicated trainable table keeps; fused ones do not."""
    replicated = kernel == DENSE_KERNEL and facts.optimizer is not None
    return size[0] * size[1] * facts.value_bytes if replicated else 0


def copy_bytes(facts: TableFacts, size: Sequence[int]) -> int:
    """Return the bytes of a shard in a checkpoint, as they are copied to host memory to be written."""
    frozen = facts.optimizer is None
    return 0 if frozen else weight_bytes(facts, size) + optimizer_bytes(facts, size)


class DoesNotFitError(UserError):
    """No plan holds all tables: carries the sentence, the table it names, and which memory is short."""

    def __init__(self, sentence: str, table: str | None, *, of_host_memory: bool):
        super().__init__(sentence)
        self.table = table
        self.of_host_memory = of_host_memory


class _Enumerator(EmbeddingEnumerator):
    """Options in one order, whatever the seed of Python's string hashes."""

    def _filter_sharding_types(self, *args: Any, **kwargs: Any) -> list[str]:
        return sorted(super()._filter_sharding_types(*args, **kwargs), key=SHARDING_TYPES.index)

    def _filter_compute_kernels(self, *args: Any, **kwargs: Any) -> list[str]:
        return sorted(super()._filter_compute_kernels(*args, **kwargs))


class _StorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's bytes of values and of the exchange's buffers, plus optimizer state, gradients and the
    copies that checkpoints are written from."""

    facts: Mapping[str, TableFacts]
    copies: bool

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        super().estimate(sharding_options, sharder_data_map)
        on_accelerator = self._topology.compute_device == "cuda"
        for option in sharding_options:
            facts, kernel = self.facts[option.name], option.compute_kernel
            in_main_memory = not on_accelerator or kernel in HOST_MEMORY_KERNELS
            for number, shard in enumerate(option.shards):
                more = optimizer_bytes(facts, shard.size)
                more += gradient_bytes(facts, kernel, shard.size)
                # Of a replicated table rank 0 writes the checkpoint; its shard is the first.
                is_copied = self.copies and (kernel != DENSE_KERNEL or number == 0)
                copied = copy_bytes(facts, shard.size) if is_copied else 0
                assert shard.storage is not None, "TorchRec's estimator has filled it"
                shard.storage += Storage(
                    hbm=0 if in_main_memory else more,
                    ddr=copied + (more if in_main_memory else 0),
                )


class _PerfEstimator(EmbeddingPerfEstimator):
    """TorchRec's times with the way of the ids counted, and no backward pass for frozen tables."""

    facts: Mapping[str, TableFacts]

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            frozen = self.facts[option.name].optimizer is None
            for shard in option.shards:
                assert shard.perf is not None, "TorchRec's estimator has filled it"
                if frozen:
                    shard.perf.bwd_compute = shard.perf.bwd_comms = 0.0
                shard.perf.fwd_comms += shard.perf.input_dist_comms
                shard.perf.input_dist_comms = 0.0


class _Reservation(FixedPercentageStorageReservation):
    """A share of the memory that holds tables, and the bytes of what is not sharded."""

    def __init__(self, share: float, unsharded_bytes: int):
        super().__init__(share)
        self._unsharded_bytes = unsharded_bytes

    def reserve(self, topology: Topology, *args: Any, **kwargs: Any) -> Topology:
        reserved = super().reserve(topology, *args, **kwargs)
        for device in reserved.devices:
            if topology.compute_device == "cuda":
                device.storage.hbm -= self._unsharded_bytes
            else:
                device.storage.ddr = int(device.storage.ddr * (1 - self._percentage))
                device.storage.ddr -= self._unsharded_bytes
        self._last_reserved_topology = reserved
        return reserved


class _Partitioner(GreedyPerfPartitioner):
    """Places the tables with pinned ranks first, the others around them."""

    def __init__(self, pinned: Mapping[str, Sequence[int]]):
        super().__init__()
        self._pinned = pinned

    def partition(
        self,
        proposal: list[ShardingOption],
        storage_constraint: Topology,
        hbm_per_device: int | None = None,
    ) -> list[ShardingOption]:
        mine = [option for option in proposal if option.name in self._pinned]
        if not mine:
            return super().partition(proposal, storage_constraint, hbm_per_device)
        remaining = copy.deepcopy(storage_constraint)
        for option in mine:
            ranks = self._pinned[option.name]
            for index, shard in enumerate(option.shards):
                device = remaining.devices[ranks[index % len(ranks)]]
                assert shard.storage is not None and shard.perf is not None, "estimated before"
                if not shard.storage.fits_in(device.storage):
                    raise PlannerError(
                        f"table {option.name} does not fit on pinned rank {device.rank}"
                    )
                shard.rank = device.rank
                device.storage -= shard.storage
                device.perf += shard.perf
        others = [option for option in proposal if option.name not in self._pinned]
        super().partition(others, remaining, hbm_per_device)
        return proposal


class _Recorder(Stats):
    """Keeps the chosen options, which TorchRec hands to its statistics only."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *args: Any, best_plan: list[ShardingOption], **kwargs: Any) -> None:
        self.options = best_plan


def search_tables(
    *,
    module: nn.Module,
    cluster: ClusterConfig,
    constraints: Mapping[str, ParameterConstraints],
    facts: Mapping[str, TableFacts],
    pinned: Mapping[str, Sequence[int]],
    batch_size_per_rank: int,
    unsharded_bytes: int,
    host_copies: bool,
    sharder: TableSharder,
    search: str,
) -> list[ShardingOption]:
    """Return the best plan's options: every shard with its rank, bytes and estimated times.

    Args:
        module: holds the EmbeddingBagCollections at the paths the plan shall name.
        unsharded_bytes: what every rank holds besides (dense part, replicated frozen tables).
        host_copies: count the copies of trainable tables in host memory that checkpoints are written
            from.
        search: `full` (TorchRec's four proposers), `fast` (see `proposers`) or `auto`.

    Raises:
        DoesNotFitError: no plan holds all tables.
    """
    topology = cluster.topology()
    constraints = dict(constraints)
    fast = search == "fast" or (
        search == "auto" and len(constraints) * cluster.num_ranks > _FULL_UP_TO
    )
    if fast:
        constraints = _pruned(constraints, module, facts, cluster)
    storage = _StorageEstimator(topology=topology, constraints=constraints)
    storage.facts, storage.copies = facts, host_copies
    perf = _PerfEstimator(topology=topology, constraints=constraints)
    perf.facts = facts
    enumerator = _Enumerator(
        topology=topology,
        batch_size=batch_size_per_rank,
        constraints=constraints,
        estimator=[perf, storage],
    )
    reservation = _Reservation(cluster.reserved_share, unsharded_bytes)
    recorder = _Recorder()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size_per_rank,
        enumerator=enumerator,
        storage_reservation=reservation,
        proposer=proposers(fast),
        partitioner=_Partitioner(pinned),
        stats=recorder,
        constraints=constraints,
        debug=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planner.plan(module, [sharder])
    except PlannerError as error:
        options = enumerator.enumerate(module, [sharder])
        reason = _what_stands_in_the_way(options, reservation, cluster, pinned)
        if host_copies and reason.of_host_memory:
            sizes = {option.name: option.tensor.shape for option in options}
            copied = sum(copy_bytes(facts[table], size) for table, size in sizes.items())
            reason = DoesNotFitError(
                f"{reason}. Of host memory, {gigabytes(copied)} of all ranks are for the copies that "
                f"checkpoints are written from: {_without_copies(cluster)}",
                reason.table,
                of_host_memory=True,
            )
        raise reason from error
    return recorder.options


def proposers(fast: bool) -> list[Any]:
    """Return TorchRec's proposers in the order they are asked.

    Fast: two greedy ones that begin with each table's quickest option, give way by size and stop
    where nothing gets quicker. The full search goes on to the end (as many proposals as all tables
    have options, each of them a placement of all tables: quadratic), and adds every combination of
    up to 10,000, and all tables alike.
    """
    if fast:
        return [GreedyProposer(threshold=_PATIENCE), GreedyProposer(False, threshold=_PATIENCE)]
    greedy = [GreedyProposer(), GreedyProposer(use_depth=False)]
    return [GridSearchProposer(), *greedy, UniformProposer()]


def _pruned(
    constraints: Mapping[str, ParameterConstraints],
    module: nn.Module,
    facts: Mapping[str, TableFacts],
    cluster: ClusterConfig,
) -> dict[str, ParameterConstraints]:
    """Leave a small table its uncut option and a middling one those of few shards."""
    sizes: dict[str, tuple[int, int]] = {}
    child: Any
    for child in module.modules():
        if hasattr(child, "embedding_bag_configs"):
            sizes |= {
                c.name: (c.num_embeddings, c.embedding_dim) for c in child.embedding_bag_configs()
            }
    pruned = {}
    for table, constraint in constraints.items():
        share = weight_bytes(facts[table], sizes[table]) / cluster.table_memory_bytes
        kinds = constraint.sharding_types or []
        if "table_wise" in kinds and share < _MIDDLE_SHARE:
            everywhere = ("row_wise", "data_parallel")
            few = [kind for kind in kinds if kind not in everywhere]
            constraint = copy.copy(constraint)
            constraint.sharding_types = ["table_wise"] if share < _SMALL_SHARE else few
        pruned[table] = constraint
    return pruned


def _what_stands_in_the_way(
    options: Sequence[ShardingOption],
    reservation: _Reservation,
    cluster: ClusterConfig,
    pinned: Mapping[str, Sequence[int]],
) -> DoesNotFitError:
    """Return the reason, the table and by how much."""
    capacity = reservation.last_reserved_topology
    assert capacity is not None, "the planner reserves before it enumerates"
    free = capacity.devices[0].storage
    on_cpu = cluster.device != "cuda"
    field = "ddr" if on_cpu else "hbm"
    rank_bytes = max(0, getattr(free, field))
    held = f"{gigabytes(rank_bytes)} of a rank's {gigabytes(cluster.table_memory_bytes)}"

    def needs(shard: Shard) -> int:
        return int(getattr(shard.storage, field))

    by_table: dict[str, list[ShardingOption]] = {}
    for option in options:
        by_table.setdefault(option.name, []).append(option)
    largest_piece = {
        table: min(max(needs(s) for s in option.shards) for option in given)
        for table, given in by_table.items()
    }
    total = {
        table: min(sum(needs(s) for s in option.shards) for option in given)
        for table, given in by_table.items()
    }
    alone = max(largest_piece, key=lambda table: largest_piece[table])
    if largest_piece[alone] > rank_bytes:
        kinds = ", ".join(sorted({option.sharding_type for option in by_table[alone]}))
        return DoesNotFitError(
            f"table {alone!r} does not fit: cut as fine as {kinds} allows on {cluster.num_ranks} "
            f"rank(s), its largest piece takes {gigabytes(largest_piece[alone])}, and {held} are "
            f"free for tables: {gigabytes(largest_piece[alone] - rank_bytes)} too much",
            alone,
            of_host_memory=on_cpu,
        )
    heaviest = max(total, key=lambda table: total[table])
    everything, room = sum(total.values()), rank_bytes * cluster.num_ranks
    if everything > room:
        return DoesNotFitError(
            f"the tables take {gigabytes(everything)} and {cluster.num_ranks} rank(s) have "
            f"{gigabytes(room)} free for tables ({held}): {gigabytes(everything - room)} too much; "
            f"the largest is table {heaviest!r} with {gigabytes(total[heaviest])}",
            heaviest,
            of_host_memory=on_cpu,
        )
    on_host = {
        table: min(sum(s.storage.ddr for s in option.shards if s.storage) for option in given)
        for table, given in by_table.items()
    }
    in_main_memory = max(on_host, key=lambda table: on_host[table])
    if not on_cpu and sum(on_host.values()) > free.ddr * cluster.num_ranks:
        return DoesNotFitError(
            f"the tables do not fit in main memory: they take {gigabytes(sum(on_host.values()))} of "
            f"it, and {cluster.num_ranks} rank(s) have {gigabytes(free.ddr)} each; the largest is "
            f"table {in_main_memory!r} with {gigabytes(on_host[in_main_memory])}",
            in_main_memory,
            of_host_memory=True,
        )
    where = f" (pinned: {', '.join(sorted(pinned))})" if pinned else ""
    return DoesNotFitError(
        f"the tables take {gigabytes(everything)} of {gigabytes(room)} and no way was found to lay "
        f"their pieces out over {cluster.num_ranks} rank(s){where}; the largest is table "
        f"{heaviest!r} with {gigabytes(total[heaviest])}",
        heaviest,
        of_host_memory=on_cpu,
    )


def _without_copies(cluster: ClusterConfig) -> str:
    if cluster.device == "cuda":
        return "more of it is cluster.host_memory_gib"
    return "train.save_in_background=false does without, and training waits for every save"


def gigabytes(num_bytes: float) -> str:
    """Return bytes for people, in GB (10^9), or MB below one."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
