"""Parts of TorchRec's planner with eight corrections (torchrec 1.8), put together by search.py.

1. Options come in one order, the simplest first (TorchRec iterates over sets of strings, whose order
   changes from process to process, and with it which of two equal plans wins).
2. Optimizer state and the gradients of replicated tables are counted byte for byte.
3. So are the copies of tables in host memory that checkpoints are written from.
4. Frozen tables have no backward pass.
5. The time in which ids travel counts (TorchRec estimates it and leaves it out of the sum, so that it
   likes to cut a table into columns four wide).
6. A piece of rows gets the ids of its rows (TorchRec lets all ids travel to each piece).
7. Everything that is no table (dense part, replicated frozen tables) is taken from a rank's memory
   before tables are placed, on CPU as on GPU.
8. Tables on SSD have a cache, buffers in main memory, and misses that are waited for (ssd.py).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.planner import Topology
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
    PlannerError,
    ShardingOption,
    Stats,
    Storage,
)
from torchrec.distributed.types import CommOp

from recsys.sharding.plan import (
    DENSE_KERNEL,
    HOST_MEMORY_KERNELS,
    SHARDING_TYPES,
    SSD_KERNEL,
    Communication,
)
from recsys.sharding.ssd import miss_ms, storage_on_ssd
from recsys.sharding.tables import TableSettings

_PATIENCE = 20
"""Fast search: plans in a row that are no quicker, after which a proposer gives up."""


class TableSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every sharding type offered on CPU too.

    TorchRec leaves the row-wise kinds out of its CPU list only; such plans run there.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types we plan with, whatever the device."""
        return list(SHARDING_TYPES)


def table_sharder(communication: Communication, device: torch.device) -> TableSharder:
    """Return the sharder whose exchanges travel in the given precisions.

    Args:
        device: torch device; gloo knows no bf16, and fp16 travels there.
    """
    forward, backward = communication.forward, communication.backward
    if device.type == "cpu":
        forward, backward = ("fp16" if p == "bf16" else p for p in (forward, backward))
    config = QCommsConfig(
        forward_precision=CommType(forward), backward_precision=CommType(backward)
    )
    operations = [CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER]
    return TableSharder(qcomm_codecs_registry=get_qcomm_codecs_registry(config, operations, device))


class Enumerator(EmbeddingEnumerator):
    """Options in one order, whatever the seed of Python's string hashes."""

    def _filter_sharding_types(self, *args: Any, **kwargs: Any) -> list[str]:
        return sorted(super()._filter_sharding_types(*args, **kwargs), key=SHARDING_TYPES.index)

    def _filter_compute_kernels(self, *args: Any, **kwargs: Any) -> list[str]:
        return sorted(super()._filter_compute_kernels(*args, **kwargs))


class StorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's bytes of values and of the exchange's buffers, plus optimizer state, gradients and the
    copies that checkpoints are written from."""

    tables: Mapping[str, TableSettings]
    copies: bool

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        """Set the bytes of every shard."""
        super().estimate(sharding_options, sharder_data_map)
        on_accelerator = self._topology.compute_device == "cuda"
        for option in sharding_options:
            settings, kernel = self.tables[option.name], option.compute_kernel
            in_main_memory = not on_accelerator or kernel in HOST_MEMORY_KERNELS
            for number, shard in enumerate(option.shards):
                more = settings.optimizer_bytes(shard.size)
                more += settings.gradient_bytes(kernel, shard.size)
                if settings.is_coded:  # TorchRec counts fp16
                    more += settings.weight_bytes(shard.size) - 2 * shard.size[0] * shard.size[1]
                # Of a replicated table rank 0 writes the checkpoint; its shard is the first.
                is_copied = self.copies and (kernel != DENSE_KERNEL or number == 0)
                copied = settings.copy_bytes(shard.size) if is_copied else 0
                assert shard.storage is not None, "TorchRec's estimator has filled it"
                if kernel == SSD_KERNEL:
                    on_ssd = storage_on_ssd(settings, shard.size)
                    shard.storage.ssd = on_ssd.ssd_bytes
                    shard.storage += Storage(hbm=on_ssd.cache_bytes, ddr=on_ssd.host_bytes)
                shard.storage += Storage(
                    hbm=0 if in_main_memory else more,
                    ddr=copied + (more if in_main_memory else 0),
                )


class PerfEstimator(EmbeddingPerfEstimator):
    """TorchRec's times with the way of the ids counted, for a piece of rows that of its own ids, no
    backward pass for frozen tables, and the misses of those on SSD."""

    tables: Mapping[str, TableSettings]
    ssd_gb_per_second: float
    """Of one rank."""

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        """Set the times of every shard."""
        super().estimate(sharding_options, sharder_data_map)
        ranks, ranks_of_host = self._topology.world_size, self._topology.local_world_size
        num_pieces = {
            "row_wise": ranks,
            "table_row_wise": ranks_of_host,
            "grid_shard": ranks_of_host,
        }
        for option in sharding_options:
            settings = self.tables[option.name]
            share_of_ids = 1 / num_pieces.get(option.sharding_type, 1)
            num_ids = option.batch_size * ranks * sum(option.input_lengths) * share_of_ids
            for shard in option.shards:
                assert shard.perf is not None, "TorchRec's estimator has filled it"
                if settings.is_frozen:
                    shard.perf.bwd_compute = shard.perf.bwd_comms = 0.0
                shard.perf.fwd_comms += shard.perf.input_dist_comms * share_of_ids
                shard.perf.input_dist_comms = 0.0
                if option.compute_kernel == SSD_KERNEL:
                    shard.perf.prefetch_compute = miss_ms(
                        settings, shard.size, num_ids, self.ssd_gb_per_second
                    )


class Reservation(FixedPercentageStorageReservation):
    """A share of the memory that holds tables, and the bytes of what is not sharded."""

    def __init__(self, share: float, unsharded_bytes: int):
        super().__init__(share)
        self._unsharded_bytes = unsharded_bytes

    def reserve(self, topology: Topology, *args: Any, **kwargs: Any) -> Topology:
        """Return the topology with the memory and the SSD that tables may take."""
        reserved = super().reserve(topology, *args, **kwargs)
        for device in reserved.devices:
            device.storage.ssd = int(device.storage.ssd * (1 - self._percentage))
            if topology.compute_device == "cuda":
                device.storage.hbm -= self._unsharded_bytes
            else:
                device.storage.ddr = int(device.storage.ddr * (1 - self._percentage))
                device.storage.ddr -= self._unsharded_bytes
        self._last_reserved_topology = reserved
        return reserved

    def free(self) -> Storage:
        """Return the memory of one rank that tables may take, once the planner has reserved."""
        reserved = self.last_reserved_topology
        assert reserved is not None, "the planner reserves before it enumerates"
        return reserved.devices[0].storage


class Partitioner(GreedyPerfPartitioner):
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
        """Give every shard a rank; PlannerError where one does not fit."""
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


class Recorder(Stats):
    """Keeps the chosen options, which TorchRec hands to its statistics only."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *args: Any, best_plan: list[ShardingOption], **kwargs: Any) -> None:
        """Keep the options of the best plan."""
        self.options = best_plan


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
