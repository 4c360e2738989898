"""Partitions: tables of many pieces in Ray's object store, and the driver's own database beside them.

In: steps of ray_steps.py. Out: what they made of every partition, pieces exchanged between partitions,
and tables that the driver spreads or collects. Called by ray_rows.py. Shapes: P partitions.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recsys.data.prepare import ray_steps as steps
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.ray_cluster import Cluster, Done, Ref, Task

BLOCK_ROWS = 1_000_000
"""Rows of a table that the driver puts into the object store at a time."""
PARTITION_ROWS = 4_000_000
"""Rows of a partition, at most, where the key `ray.partitions` is null."""
MOST_PARTITIONS = 512
"""Partitions, at most and rounded up by core, where the key is null: of P partitions, P x P pieces are
exchanged."""
DRIVER_ROWS = 2_000_000
"""Counted rows that the driver adds up by itself; more are added up by the workers."""


class Partitions:
    """Tables in partitions, by name."""

    def __init__(self, engine: Engine, cluster: Cluster, num_parts: int | None):
        """Args: num_parts: None: set before the first table."""
        self._engine = engine
        self.cluster = cluster
        self.num_parts = num_parts or 0
        self.state: dict[str, list[list[Ref]]] = {}
        """Pieces of each table, by partition [P]."""

    def count(self, query: str, *names: str) -> str:
        """SQL of the driver's database of what `counted` returns."""
        return f"SELECT * FROM {self.counted(query, *names)}"

    def counted(self, query: str, *names: str) -> Table:
        """Return the different rows of a query over the tables of every partition (..., n)."""
        done = self.run_parts("count", steps.count_part, 1, *names, query=query)
        found = [d.tables[0] for d in done]
        if sum(d.summary for d in done) > DRIVER_ROWS:
            tasks = [Task({"counted": [ref]}, {"num_parts": self.num_parts}) for ref in found]
            cut = self.run("count", steps.cut_counts, tasks, self.num_parts)
            tasks = [Task({"counted": pieces}, {}) for pieces in transposed(cut)]
            found = [d.tables[0] for d in self.run("count", steps.add_counts, tasks, 1)]
            return self.collected(found)
        partial = self.collected(found)
        whole = self._engine.create("counted", steps.added_sql(partial))
        self._engine.drop(partial)
        return whole

    def run(self, name: str, step: Any, tasks: Sequence[Task], num_tables: int) -> list[Done]:
        """Run a step; arguments as of Cluster.run."""
        return self.cluster.run(name, step, tasks, num_tables)

    def run_parts(
        self,
        name: str,
        step: Any,
        num_tables: int,
        *names: str,
        given: Mapping[str, Sequence[Ref]] | None = None,
        **arguments: Any,
    ) -> list[Done]:
        """Run a step on every partition.

        Args:
            names: of the partition's tables that it reads.
            given: tables that it reads whole, by name.
        """
        tasks = [
            Task({n: self.state[n][part] for n in names} | dict(given or {}), arguments)
            for part in range(self.num_parts)
        ]
        return self.run(name, step, tasks, num_tables)

    def keep(self, name: str, done: Sequence[Done]) -> None:
        """Keep the first table that a step made of each partition."""
        self.state[name] = [d.tables[:1] for d in done]

    def spread(self, query: str) -> list[Ref]:
        """Return the rows of a query of the driver's database in pieces that every worker reads."""
        reader = self._engine.batches(query)
        return [self.cluster.put(block) for block in steps.blocks(reader, BLOCK_ROWS)]

    def spread_by_hash(self, query: str, key: str) -> list[list[Ref]]:
        """Return the rows of a query in pieces by partition, the hash of a column."""
        reader = self._engine.batches(steps.part_sql(query, key, self.num_parts))
        spread: list[list[Ref]] = [[] for _ in range(self.num_parts)]
        for block in steps.blocks(reader, BLOCK_ROWS):
            for part, piece in enumerate(steps.split_by_part(block, self.num_parts)):
                spread[part].append(self.cluster.put(piece))
        return spread

    def collected(self, references: Iterable[Ref]) -> Table:
        """Return tables of the workers as one table of the driver's database."""
        whole: Table | None = None
        for reference in references:
            rows = self.cluster.get(reference)
            if whole is None:
                whole = self._engine.create_from("collected", rows)
            else:
                given = self._engine.register(self._engine.unused("given"), rows)
                self._engine.append(whole, f"SELECT * FROM {given}")
                self._engine.connection.unregister(str(given))
        assert whole is not None, "there is a partition"
        return whole


def transposed(done: Sequence[Done]) -> list[list[Ref]]:
    """Return the tables of all results by their number in a result."""
    return [list(pieces) for pieces in zip(*(d.tables for d in done), strict=True)]


def partitions_of(num_rows: int, num_cores: int) -> int:
    """Return the number of partitions of a log, a multiple of the cores: no core waits for the last."""
    wanted = min(-(-num_rows // PARTITION_ROWS), MOST_PARTITIONS)
    return max(-(-wanted // num_cores), 1) * num_cores
