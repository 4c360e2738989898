"""Rows of the log in partitions, on many processes or machines: what `engine=ray` prepares.

In: the opened inputs. Out: the same files as rows.WholeLog writes, byte for byte. A row's partition
follows from the hash of its user, so that splits, negatives and histories are made within one; ranges of
user rows and of the order hash put histories and files in order. The driver's database holds what grows
with ids, not with rows: catalogues, vocabularies and counts. Steps are in ray_steps.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from recsys.data.prepare import ray_steps as steps
from recsys.data.prepare.checks import Problems, Scan, joined_scans
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.history import stored_splits, write_stored
from recsys.data.prepare.ids import listed_ids
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.log import UNKNOWN_ITEM, Log, compare_log_ids, say_odd_times
from recsys.data.prepare.log_rows import log_rows_sql
from recsys.data.prepare.negatives import pool_sql
from recsys.data.prepare.numbering import SplitCounts, training_ids
from recsys.data.prepare.ray_cluster import Cluster, Done, RayConfig, Ref, Task, started_cluster
from recsys.data.prepare.ray_files import last_user_rows, stored_batches, write_splits
from recsys.data.prepare.ray_partitions import PARTITION_ROWS, Partitions, partitions_of, transposed
from recsys.data.prepare.rows import Columns, say_undrawn
from recsys.data.prepare.sources import Piece, Source
from recsys.data.prepare.split import time_bounds
from recsys.data.prepare.writing import ROW_GROUP_ROWS
from recsys.data.recipe import SPLITS, Recipe
from recsys.job import say
from recsys.schema import HistorySpec, SplitSpec

SKEWED_SHARE = 0.05
"""Share of the log from which on a user is reported: all of its rows are in one partition."""


class PartitionedLog:
    """The rows of the log in partitions; see rows.Rows."""

    placed: Table

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        inputs: Inputs,
        cluster: Cluster,
        num_partitions: int | None,
        *,
        first_row_id: int = 0,
        names: Sequence[str] = SPLITS,
    ):
        """Args: num_partitions: None: as RayConfig.partitions says; names: of the splits."""
        self._engine = engine
        self._recipe = recipe
        self._inputs = inputs
        self._parts = Partitions(engine, cluster, num_partitions)
        self._first_row_id = first_row_id
        self._names = names
        self._piece_rows: dict[str, list[int]] = {}
        """Rows of the pieces of a source, by its view."""
        self._log: Log
        self._users: Table
        self._counts: dict[int, SplitCounts]

    # Reading

    def scan(self, problems: Problems) -> Scan:
        """Return the scan of files by the workers."""

        def scan(source: Source, query: str, tables: Sequence[Table]) -> tuple | None:
            given = {str(table): self._parts.spread(f"SELECT * FROM {table}") for table in tables}
            tasks = [
                Task(given, {"source": source, "piece": piece, "query": query})
                for piece in self._pieces(source)
            ]
            found = [done.summary for done in self._parts.run("check", steps.scan_piece, tasks, 0)]
            damages = [damage for _, damage in found if damage]
            if damages:
                problems.found.append(damages[0])
                return None
            rows = [row for row, _ in found]
            self._piece_rows[source.view] = [row[0] for row in rows]
            return joined_scans(rows)

        return scan

    def _pieces(self, source: Source) -> list[Piece]:
        """Return the pieces of a source, enough for all workers."""
        num_rows = sum(piece.stop or 0 for piece in source.pieces(2**62))
        most_rows = min(PARTITION_ROWS, -(-num_rows // (2 * self._parts.cluster.num_cores)))
        return source.pieces(max(most_rows, ROW_GROUP_ROWS))

    def read(self) -> Log:
        """Read the files into partitions, by the hash of the user."""
        inputs, log = self._inputs, self._recipe.interactions
        total = sum(map(sum, self._piece_rows.values()))
        self._parts.num_parts = self._parts.num_parts or partitions_of(
            total, self._parts.cluster.num_cores
        )
        self._read_pieces()
        ids = {
            side: self._parts.counted(f"SELECT {side}_id FROM log", "log")
            for side, column in (("user", log.user_id), ("item", log.item_id))
            if column
        }
        if "user" in ids:
            self._say_skew(ids["user"], total)
        compare_log_ids(self._engine, self._recipe, inputs, ids)
        dropped = self._drop_items(ids["item"]) if "item" in ids else {}
        if inputs.times:
            found = self._parts.run_parts("describe", steps.describe_log, 0, "log")
            seconds = (done.summary[0] for done in found if done.summary[0] is not None)
            latest = max(seconds, default=None)
            say_odd_times(inputs.times, latest, sum(done.summary[1] for done in found))
        self._engine.drop(*ids.values())
        rows = Table("log", self._log_columns())
        end = self._first_row_id + total
        self._log = Log(rows=rows, num_rows_in=total, next_row_id=end, num_dropped=dropped)
        return self._log

    def _read_pieces(self) -> None:
        total = sum(map(sum, self._piece_rows.values()))
        shared = {
            "recipe": self._recipe,
            "times": self._inputs.times,
            "key": self._key,
            "num_parts": self._parts.num_parts,
            "most_rows": max(-(-total // self._parts.num_parts), ROW_GROUP_ROWS),
        }
        tasks = []
        first_row_id = self._first_row_id
        for source, given in self._inputs.logs:
            counts = self._piece_rows[source.view]
            for piece, num_rows in zip(self._pieces(source), counts, strict=True):
                own = {"source": source, "piece": piece, "split": given}
                tasks.append(Task({}, shared | own | {"first_row_id": first_row_id}))
                first_row_id += num_rows
        read = self._parts.cluster.stream("read", steps.read_piece, tasks)
        self._parts.state["log"] = [
            [piece for pieces in read for piece in pieces[part :: self._parts.num_parts]]
            for part in range(self._parts.num_parts)
        ]

    @property
    def _key(self) -> str:
        """Column whose hash is a row's partition."""
        return "user_id" if self._recipe.interactions.user_id else "row_id"

    def _log_columns(self) -> tuple[str, ...]:
        source, given = self._inputs.logs[0]
        query = log_rows_sql(
            self._recipe.interactions, source, self._inputs.times, first_row_id=0, split=given
        )
        return self._engine.handle(f"({query})").columns

    def _say_skew(self, users: Table, total: int) -> None:
        """Warn of users with a large share of the log, whose rows one worker holds."""
        skewed = self._engine.rows(
            f"SELECT user_id, n FROM {users} WHERE n >= {SKEWED_SHARE} * {total} ORDER BY n DESC, user_id"
        )
        for user, count in skewed:
            say(
                f"warning: user {user!r} has {count / total:.1%} of the log ({count:,} of {total:,} "
                f"rows); a user's rows are in one partition, and its worker takes longer and more memory"
            )

    def _drop_items(self, items: Table) -> dict[str, int]:
        """Leave out the rows of unlisted items, where the recipe says so; return how many."""
        log = self._recipe.interactions
        if not (self._recipe.items and log.unknown_items == "drop"):
            return {}
        listed = listed_ids(self._engine, self._inputs, "item")
        if listed is None:
            return {}
        unknown = self._engine.create(
            "dropped",
            f"SELECT item_id, n FROM {items} WHERE item_id NOT IN (SELECT id FROM {listed})",
        )
        (count,) = self._engine.one(f"SELECT coalesce(sum(n), 0) FROM {unknown}")
        if count:
            given = {"dropped": self._parts.spread(f"SELECT item_id FROM {unknown}")}
            done = self._parts.run_parts("drop", steps.drop_items, 1, "log", given=given)
            self._parts.keep("log", done)
        self._engine.drop(listed, unknown)
        return {UNKNOWN_ITEM: int(count)} if count else {}

    # Splits, rows of tables, negatives

    def split(self) -> None:
        """Make the splits of every partition."""
        bounds = time_bounds(
            self._engine,
            self._log.rows,
            self._recipe.split,
            lambda query: self._parts.count(query, "log"),
        )
        done = self._parts.run_parts(
            "split", steps.split_part, 1, "log", recipe=self._recipe, bounds=bounds
        )
        self._parts.keep("splits", done)

    def trained(self, side: str) -> str:
        """SQL of the ids of the training rows, and their rows (id, n)."""
        ids = training_ids(self._log.rows, Table("splits", ("row_id", "split")), side)
        return self._parts.count(ids, "log", "splits")

    def place(self, users: Table, items: Table) -> dict[int, SplitCounts]:
        """Make the placed rows of every partition; drop the log and its splits."""
        self._users = users
        self._parts.state["users"] = self._parts.spread_by_hash(self._needed("user", users), "id")
        given = {"items": self._parts.spread(self._needed("item", items))}
        names = ("log", "splits", "users")
        done = self._parts.run_parts(
            "place", steps.place_part, 1, *names, given=given, recipe=self._recipe
        )
        for name in names:
            del self._parts.state[name]
        self._parts.keep("placed", done)
        self.placed = Table("placed", done[0].summary[1])
        self._counts = steps.total_counts(d.summary[0] for d in done)
        return self._counts

    def _needed(self, side: str, vocabulary: Table) -> str:
        """SQL of the ids (id, row) of users or items of which the log may have some."""
        return f"SELECT id, row FROM {vocabulary}"

    def draw(self, items: Table) -> tuple[int, dict[int, SplitCounts]]:
        """Add negatives to the placed rows of every partition."""
        negatives = self._recipe.interactions.negatives
        if negatives is None:
            return 0, self._counts
        num_positives = sum(split.num_rows for split in self._counts.values())
        num_rows = self._log.next_row_id - self._first_row_id
        earlier = self._earlier_positives()
        drawn = self._parts.run_parts(
            "draw negatives",
            steps.draw_part,
            1 + self._parts.num_parts,
            "placed",
            *earlier,
            given=self._pools(items),
            recipe=self._recipe,
            first_row_id=self._first_row_id,
            rows_per_part=-(-num_rows // self._parts.num_parts),
            num_parts=self._parts.num_parts,
        )
        for name in earlier:
            del self._parts.state[name]
        self._parts.state["drawn"] = [done.tables[:1] for done in drawn]
        self._parts.state["numbers"] = self._number(drawn)
        added = self._parts.run_parts(
            "add negatives", steps.add_part, 1, "placed", "drawn", "numbers"
        )
        self._parts.keep("placed", added)
        del self._parts.state["drawn"], self._parts.state["numbers"]
        num_drawn = sum(sum(done.summary) for done in drawn)
        say_undrawn(negatives, num_positives, num_drawn)
        self._counts = steps.total_counts(done.summary for done in added)
        return num_drawn, self._counts

    def _earlier_positives(self) -> Sequence[str]:
        """Return the names of the tables with positives before the log."""
        return ()

    def _pools(self, items: Table) -> dict[str, list[Ref]]:
        """Return the items that the negatives of each split are drawn from, by name of the pool."""
        negatives = self._recipe.interactions.negatives
        assert negatives is not None, "asked for only where there are some"
        if negatives.strategy == "uniform":
            rows = self._parts.counted("SELECT item_id, item_row, split FROM placed", "placed")
        else:
            query = "SELECT row_id, item_id, item_row, split FROM placed"
            done = self._parts.run_parts("pool", steps.select_part, 1, "placed", query=query)
            rows = self._parts.collected([d.tables[0] for d in done])
        pools = {
            f"pool_{split}": self._parts.spread(pool_sql(negatives, rows, items, split))
            for split in range(len(self._names))
        }
        self._engine.drop(rows)
        return pools

    def _number(self, drawn: Sequence[Done]) -> list[list[Ref]]:
        """Return the numbers of drawn negatives by partition; keys are numbered by ranges of row ids."""
        counts_PR = np.array([done.summary for done in drawn])
        firsts_R = self._log.next_row_id + np.cumsum(counts_PR.sum(axis=0)) - counts_PR.sum(axis=0)
        tasks = [
            Task(
                {"keys": [done.tables[1 + index] for done in drawn]},
                {"first_row_id": int(first), "num_rows": counts_PR[:, index].tolist()},
            )
            for index, first in enumerate(firsts_R)
        ]
        numbered = self._parts.run("number", steps.number_part, tasks, self._parts.num_parts)
        return transposed(numbered)

    def count(self, query: str) -> str:
        """SQL of the different rows of SQL over `placed` (..., n)."""
        return self._parts.count(query, "placed")

    # Histories and files

    def write_histories(
        self, history: HistorySpec, num_user_rows: int, prepared: Path
    ) -> dict[str, int]:
        """Write the stored sequences by ranges of user rows, and keep the ends of the rows' histories."""
        stored = [(split, name) for split in stored_splits(history) for name in history.sequences]
        done = self._parts.run_parts(
            "histories",
            steps.histories_part,
            1 + len(stored) * self._parts.num_parts,
            "placed",
            history=history,
            last_rows=last_user_rows(self._engine, self._users, self._parts.num_parts),
        )
        self._parts.state["ends"] = [d.tables[:1] for d in done]
        num_stored = dict.fromkeys(history.sequences, 0)
        for index, (split, name) in enumerate(stored):
            first = 1 + index * self._parts.num_parts
            pieces = [
                [d.tables[first + part] for d in done] for part in range(self._parts.num_parts)
            ]
            num_values = write_stored(
                stored_batches(self._parts, pieces),
                prepared / history.folder(split, name),
                num_user_rows,
            )
            num_stored[name] = max(num_stored[name], num_values)
        return num_stored

    def write_interactions(
        self, features: Columns, prepared: Path
    ) -> tuple[dict[str, SplitSpec], dict[str, int]]:
        """Write the splits by ranges of the order hash: every file by one worker."""
        return write_splits(
            self._parts, self._recipe, self._counts, features, prepared, self._names
        )


@contextmanager
def partitioned_log(
    engine: Engine,
    recipe: Recipe,
    inputs: Inputs,
    *,
    ray: RayConfig,
    memory_limit: str,
    threads: int,
) -> Iterator[PartitionedLog]:
    """Hold the rows of the log in partitions; arguments as of `started_cluster`."""
    with cluster_for(engine, ray, memory_limit=memory_limit, threads=threads) as cluster:
        yield PartitionedLog(engine, recipe, inputs, cluster, ray.partitions)


@contextmanager
def cluster_for(
    engine: Engine, ray: RayConfig, *, memory_limit: str, threads: int
) -> Iterator[Cluster]:
    """Start the workers, or connect to them, and say how many there are."""
    with started_cluster(
        address=ray.address, memory_limit=memory_limit, threads=threads, scratch=engine.scratch
    ) as cluster:
        say(f"Ray: workers on {cluster.num_cores} cores of {ray.address or 'this machine'}")
        yield cluster
