"""Tables on SSD: what TorchRec's kernel `key_value` takes of every memory, and how long a step waits.

In: the settings of a table and the size of a shard. Out: bytes, and milliseconds. Called by planner.py,
estimate.py, and the jobs that take no table on SSD.

The kernel keeps the values in RocksDB and looks up a cache of rows on the accelerator, into which every
step first reads the rows that it misses. TorchRec's own estimates (1.8) leave that out: they count
no cache, the index of the cache as if it were on SSD, and nothing in main memory; and they price every
byte of a lookup, found in the cache or not, at the bandwidth of the SSD, but a row that is read as if an
SSD could read less than a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.errors import UserError
from recsys.sharding.plan import SSD_KERNEL
from recsys.sharding.tables import TableSettings

_SLOTS_OF_A_SET = 32
"""Rows of a set of the cache; the kernel allocates whole sets."""
_INDEX_BYTES = 16
"""Of a slot, on the accelerator: the row it holds, and when that was last looked up (two int64)."""
_EVICTED_BYTES = 12
"""Of a slot of an eviction buffer beside the row: its number (int64) and its slot (int32)."""
_MEMTABLE_BYTES = 4 << 31
"""RocksDB's write buffers in main memory: four of 2 GiB, the kernel's default."""
_BLOCK_BYTES = 4096
"""Least bytes of a read: a block of RocksDB, which the kernel has read without a cache of blocks."""
_BYTES_PER_MS = 1_000_000
"""Of one GB a second."""


@dataclass(frozen=True, kw_only=True)
class SsdStorage:
    """Bytes of a shard on SSD, beside its optimizer state, which is on the accelerator."""

    cache_bytes: int
    """On the accelerator: the cached rows and their index."""
    host_bytes: int
    """In main memory: two buffers of evicted rows, as large as the cache, and RocksDB's memtables."""
    ssd_bytes: int
    """The values."""


def storage_on_ssd(settings: TableSettings, size: Sequence[int]) -> SsdStorage:
    """Return what a shard takes of every memory.

    With S = max(1, floor(cache_load_factor * rows / 32)) sets of 32 rows of b bytes:
    cache 32 S (b + 16), main memory 2 * 32 S (b + 12) + 8 GiB, SSD rows * b. Free space for RocksDB's
    compaction and the rows of a single step on their way to the accelerator are left out.

    Args:
        size: [rows, columns] of the shard.
    """
    row_bytes = settings.weight_bytes([1, size[1]])
    num_sets = max(1, int(settings.cached_share * size[0] / _SLOTS_OF_A_SET))
    num_slots = num_sets * _SLOTS_OF_A_SET
    return SsdStorage(
        cache_bytes=num_slots * (row_bytes + _INDEX_BYTES),
        host_bytes=2 * num_slots * (row_bytes + _EVICTED_BYTES) + _MEMTABLE_BYTES,
        ssd_bytes=settings.weight_bytes(size),
    )


def miss_ms(
    settings: TableSettings, size: Sequence[int], num_lookups: float, gb_per_second: float
) -> float:
    """Return the milliseconds in which a step's cache misses are read and evicted rows written.

    num_lookups * (1 - cache_load_factor) * (max(b, 4096) + b) / bandwidth, for rows of b bytes: as
    TorchRec does for a cache of rows in main memory, it takes the share of lookups that are cached for
    that of the rows. Lookups of popular ids miss less often; writes of RocksDB's compaction come on top.

    Args:
        size: [rows, columns] of the shard.
        num_lookups: ids of a step that the shard gets.
        gb_per_second: of the rank's share of the SSDs, for reads of 4 KiB.
    """
    row_bytes = settings.weight_bytes([1, size[1]])
    num_misses = num_lookups * (1 - settings.cached_share)
    num_bytes = num_misses * (max(row_bytes, _BLOCK_BYTES) + row_bytes)
    return num_bytes / (gb_per_second * _BYTES_PER_MS)


def check_trainable(tables: Mapping[str, TableSettings]) -> None:
    """Raise UserError for tables on SSD, which no job but launch/plan.py takes.

    Raises:
        UserError: names the tables and their key.
    """
    names = [name for name, settings in tables.items() if settings.is_on_ssd]
    if names:
        raise UserError(
            f"tables.{names[0]}.kernel={SSD_KERNEL}: tables on SSD are planned (launch/plan.py) and not "
            f"trained, for the reasons in docs/ids.md; use fused_uvm_caching, which keeps "
            f"{', '.join(names)} in main memory"
        )
