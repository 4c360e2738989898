"""The reason why no plan holds all tables: which table, which memory, and by how many bytes.

In: the sharding options that TorchRec's planner had, and the memory it could use. Out:
DoesNotFitError. Called by recsys/sharding/search.py.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from torchrec.distributed.planner.types import Shard, ShardingOption, Storage

from recsys.errors import UserError
from recsys.sharding.cluster import ClusterConfig, gigabytes
from recsys.sharding.tables import TableSettings


class DoesNotFitError(UserError):
    """No plan holds all tables: carries the sentence, the table it names, and which memory is short.

    Ranks that learn of it from another rank know the sentence only.
    """

    def __init__(self, sentence: str, table: str | None = None, *, of_host_memory: bool = False):
        super().__init__(sentence)
        self.table = table
        self.of_host_memory = of_host_memory


def find_shortage(
    options: Sequence[ShardingOption],
    free: Storage,
    cluster: ClusterConfig,
    pinned: Collection[str],
) -> DoesNotFitError:
    """Return the reason, the table and by how much.

    Args:
        options: all options of every table, each shard with its storage.
        free: memory of one rank that tables may take.
        pinned: tables whose ranks the configuration names.
    """
    by_table: dict[str, list[ShardingOption]] = {}
    for option in options:
        by_table.setdefault(option.name, []).append(option)
    return (
        _one_table(by_table, free, cluster)
        or _all_tables(by_table, free, cluster)
        or _beside(by_table, free.ddr, cluster, "main memory", lambda storage: int(storage.ddr))
        or _beside(by_table, free.ssd, cluster, "SSD", lambda storage: int(storage.ssd))
        or _no_layout(by_table, free, cluster, pinned)
    )


def with_copies(
    reason: DoesNotFitError,
    options: Sequence[ShardingOption],
    tables: Mapping[str, TableSettings],
    cluster: ClusterConfig,
) -> DoesNotFitError:
    """Return a shortage of host memory with the part that copies for checkpoints have in it."""
    sizes = {option.name: option.tensor.shape for option in options}
    copied = sum(tables[table].copy_bytes(size) for table, size in sizes.items())
    remedy = "train.save_in_background=false does without, and training waits for every save"
    if cluster.device == "cuda":
        remedy = "more of it is cluster.host_memory_gib"
    return DoesNotFitError(
        f"{reason}. Of host memory, {gigabytes(copied)} of all ranks are for the copies that "
        f"checkpoints are written from: {remedy}",
        reason.table,
        of_host_memory=True,
    )


def _rank_bytes(free: Storage, cluster: ClusterConfig) -> int:
    """Return the bytes of one rank that tables may take, in the memory that holds them."""
    return max(0, free.hbm if cluster.device == "cuda" else free.ddr)


def _held(free: Storage, cluster: ClusterConfig) -> str:
    free_bytes = gigabytes(_rank_bytes(free, cluster))
    return f"{free_bytes} of a rank's {gigabytes(cluster.table_memory_bytes)}"


def _needs(cluster: ClusterConfig) -> Callable[[Shard], int]:
    """Return a function from a shard to its bytes in the memory that holds the tables."""

    def needs(shard: Shard) -> int:
        assert shard.storage is not None, "TorchRec's estimator has filled it"
        return int(shard.storage.hbm if cluster.device == "cuda" else shard.storage.ddr)

    return needs


def _least(
    by_table: Mapping[str, Sequence[ShardingOption]], measure: Callable[[ShardingOption], int]
) -> dict[str, int]:
    """Return the least of a measure over every table's options."""
    return {table: min(map(measure, options)) for table, options in by_table.items()}


def _totals(
    by_table: Mapping[str, Sequence[ShardingOption]], cluster: ClusterConfig
) -> tuple[dict[str, int], str]:
    """Return the bytes of every table over all ranks, and the table with the most."""
    needs = _needs(cluster)
    total = _least(by_table, lambda option: sum(map(needs, option.shards)))
    return total, max(total, key=lambda table: total[table])


def _one_table(
    by_table: Mapping[str, Sequence[ShardingOption]], free: Storage, cluster: ClusterConfig
) -> DoesNotFitError | None:
    needs, rank_bytes = _needs(cluster), _rank_bytes(free, cluster)
    largest = _least(by_table, lambda option: max(map(needs, option.shards)))
    table = max(largest, key=lambda name: largest[name])
    if largest[table] <= rank_bytes:
        return None
    kinds = ", ".join(sorted({option.sharding_type for option in by_table[table]}))
    return DoesNotFitError(
        f"table {table!r} does not fit: cut as fine as {kinds} allows on {cluster.num_ranks} "
        f"rank(s), its largest piece takes {gigabytes(largest[table])}, and {_held(free, cluster)} "
        f"are free for tables: {gigabytes(largest[table] - rank_bytes)} too much",
        table,
        of_host_memory=cluster.device != "cuda",
    )


def _all_tables(
    by_table: Mapping[str, Sequence[ShardingOption]], free: Storage, cluster: ClusterConfig
) -> DoesNotFitError | None:
    total, heaviest = _totals(by_table, cluster)
    everything, capacity = sum(total.values()), _rank_bytes(free, cluster) * cluster.num_ranks
    if everything <= capacity:
        return None
    return DoesNotFitError(
        f"the tables take {gigabytes(everything)} and {cluster.num_ranks} rank(s) have "
        f"{gigabytes(capacity)} free for tables ({_held(free, cluster)}): "
        f"{gigabytes(everything - capacity)} too much; the largest is table {heaviest!r} with "
        f"{gigabytes(total[heaviest])}",
        heaviest,
        of_host_memory=cluster.device != "cuda",
    )


def _beside(
    by_table: Mapping[str, Sequence[ShardingOption]],
    free_bytes: int,
    cluster: ClusterConfig,
    name: str,
    needs: Callable[[Storage], int],
) -> DoesNotFitError | None:
    """Return the shortage of a memory beside that of accelerators, None where it is not short.

    Args:
        free_bytes: of one rank.
        name: of the memory.
        needs: bytes of a shard in it.
    """
    if cluster.device != "cuda":
        return None

    def pieces(option: ShardingOption) -> list[int]:
        return [needs(shard.storage) for shard in option.shards if shard.storage]

    of_table = _least(by_table, lambda option: sum(pieces(option)))
    largest = _least(by_table, lambda option: max(pieces(option)))
    everything = sum(of_table.values())
    table = max(largest, key=lambda name: largest[name])
    if everything > free_bytes * cluster.num_ranks:
        table = max(of_table, key=lambda name: of_table[name])
        too_much = (
            f"they take {gigabytes(everything)} of it, and {cluster.num_ranks} rank(s) have "
            f"{gigabytes(free_bytes)} each; the largest is table {table!r} with "
            f"{gigabytes(of_table[table])}"
        )
    elif largest[table] > free_bytes:
        too_much = (
            f"the largest piece of table {table!r} takes {gigabytes(largest[table])} of it, and a rank "
            f"has {gigabytes(free_bytes)}: {gigabytes(largest[table] - free_bytes)} too much"
        )
    else:
        return None
    return DoesNotFitError(
        f"the tables do not fit in {name}: {too_much}", table, of_host_memory=name == "main memory"
    )


def _no_layout(
    by_table: Mapping[str, Sequence[ShardingOption]],
    free: Storage,
    cluster: ClusterConfig,
    pinned: Collection[str],
) -> DoesNotFitError:
    total, heaviest = _totals(by_table, cluster)
    capacity = _rank_bytes(free, cluster) * cluster.num_ranks
    where = f" (pinned: {', '.join(sorted(pinned))})" if pinned else ""
    return DoesNotFitError(
        f"the tables take {gigabytes(sum(total.values()))} of {gigabytes(capacity)} and no way was "
        f"found to lay their pieces out over {cluster.num_ranks} rank(s){where}; the largest is "
        f"table {heaviest!r} with {gigabytes(total[heaviest])}",
        heaviest,
        of_host_memory=cluster.device != "cuda",
    )
