"""Rows of a window in partitions, on many processes or machines: what an append with `engine=ray` adds.

In: the opened new files, and prepared data. Out: the same files as window.WholeWindow writes, byte for
byte. Workers read files of the prepared data: once for its last items, and with drawn negatives for
what the window's users had. Steps are in ray_window_steps.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recsys.data.prepare import ray_window_steps as steps
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.numbering import SplitCounts
from recsys.data.prepare.ray_cluster import Cluster, RayConfig, Task
from recsys.data.prepare.ray_files import batches_of, last_user_rows, stored_batches
from recsys.data.prepare.ray_partitions import MOST_PARTITIONS, partitions_of, transposed
from recsys.data.prepare.ray_rows import PartitionedLog, cluster_for
from recsys.data.prepare.ray_steps import select_part
from recsys.data.prepare.sequences import read_sequences
from recsys.data.prepare.window import Earlier, LateRows, one_split_sql
from recsys.data.prepare.window_history import (
    AddedItems,
    AddedWindow,
    LastItems,
    split_files,
    stored_last_items,
    write_last_items,
    write_window,
    written_lists,
)
from recsys.data.recipe import Recipe
from recsys.schema import HistorySpec


class PartitionedWindow(PartitionedLog):
    """The rows of a window in partitions; see window.WindowRows."""

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        inputs: Inputs,
        earlier: Earlier,
        cluster: Cluster,
        num_partitions: int | None,
    ):
        """Args: num_partitions: None: as RayConfig.partitions says."""
        super().__init__(
            engine,
            recipe,
            inputs,
            cluster,
            num_partitions,
            first_row_id=earlier.first_row_id,
            names=(earlier.window,),
        )
        self._earlier = earlier
        self._items: Table
        self._ids: dict[str, str] = {}
        """SQL of the different ids of the window (id, n), by side."""

    def leave_out(self, until: int | None) -> tuple[int, int]:
        """Leave out the rows before a second."""
        if until is None:
            found = self._parts.run_parts("count", steps.count_log, 0, "log")
            return 0, sum(done.summary for done in found)
        done = self._parts.run_parts("since", steps.leave_out_rows, 1, "log", until=until)
        self._parts.keep("log", done)
        num_before, num_rows = (sum(d.summary[which] for d in done) for which in (0, 1))
        return num_before - num_rows, num_rows

    def late(self, end: int) -> LateRows:
        """Return the rows that are earlier than a second."""
        done = self._parts.run_parts("describe", steps.late_part, 0, "log", end=end)
        found: list[LateRows] = [d.summary for d in done if d.summary.num_rows]
        return LateRows(
            sum(late.num_rows for late in found),
            min((late.row_id for late in found if late.row_id is not None), default=None),
            min((late.earliest for late in found if late.earliest is not None), default=None),
        )

    def split(self) -> None:
        """Make the splits of every partition."""
        query = one_split_sql(self._log.rows)
        self._parts.keep(
            "splits", self._parts.run_parts("split", select_part, 1, "log", query=query)
        )

    def trained(self, side: str) -> str:
        """SQL of the ids of the window, and their rows (id, n)."""
        self._ids[side] = super().trained(side)
        return self._ids[side]

    def _needed(self, side: str, vocabulary: Table) -> str:
        """SQL of the ids (id, row) of the window's users or items alone: others are of earlier data."""
        needed = super()._needed(side, vocabulary)
        if side not in self._ids:
            return needed
        return f"{needed} WHERE id IN (SELECT id FROM ({self._ids[side]}))"

    def place(self, users: Table, items: Table) -> dict[int, SplitCounts]:
        """Make the placed rows of every partition."""
        self._items = items
        return super().place(users, items)

    def _earlier_positives(self) -> Sequence[str]:
        """Gather the earlier positives of the users of every partition."""
        parts = self._parts
        users = parts.run_parts(
            "users", steps.users_of_part, 1, "placed", num_parts=parts.num_parts
        )
        given = {"users": [done.tables[0] for done in users]}
        shared = {"recipe": self._recipe, "num_parts": parts.num_parts}
        tasks = [Task(given, shared | {"files": files}) for files in self._file_groups()]
        found = parts.run("earlier positives", steps.earlier_of_files, tasks, parts.num_parts)
        parts.state["earlier"] = transposed(found)
        items = parts.spread(f"SELECT id, row FROM {self._items}")
        parts.state["items"] = [items] * parts.num_parts
        return "earlier", "items"

    def _file_groups(self) -> list[list[tuple[int, Path]]]:
        """Return the files of the earlier splits in groups, each for one task."""
        files = split_files(self._earlier.manifest, self._earlier.folder)
        size = -(-len(files) // MOST_PARTITIONS)
        return [files[start : start + size] for start in range(0, len(files), size)]

    def write_histories(
        self, history: HistorySpec, num_user_rows: int, prepared: Path
    ) -> dict[str, int]:
        """Write the window's sequences; return the number of its items of each."""
        parts, last, names = self._parts, self._last_items(history), history.sequences
        end = None if last["history"].end is None else self._counts[0].timestamp_max
        done = parts.run_parts(
            "histories",
            steps.window_histories_part,
            2 + len(names) * (1 + parts.num_parts),
            "placed",
            history=history,
            last=last,
            end=end,
            last_rows=last_user_rows(self._engine, self._users, parts.num_parts),
        )
        parts.keep("ends", done)
        items = {}
        for index, name in enumerate(names):
            first = 2 + index * (1 + parts.num_parts)
            pieces = [[d.tables[first + 1 + part] for d in done] for part in range(parts.num_parts)]
            folder = written_lists(self._engine, stored_batches(parts, pieces), num_user_rows)
            tied = batches_of(parts, [d.tables[first] for d in done])
            items[name] = AddedItems(sequences=read_sequences(folder), tied=tied)
        users = batches_of(parts, (d.tables[1] for d in done))
        added = AddedWindow(users=users, end=end, items=items)
        window = self._earlier.window
        write_window(self._engine, history, window, last, added, num_user_rows, prepared)
        return {name: sum(d.summary[name] for d in done) for name in names}

    def _last_items(self, history: HistorySpec) -> dict[str, LastItems]:
        """Return the last items of every user of the prepared data, by sequence."""
        last = stored_last_items(self._earlier.manifest, self._earlier.folder)
        return last or {name: self._last_items_of(name) for name in history.sequences}

    def _last_items_of(self, name: str) -> LastItems:
        """Return the last items of a sequence, read from all rows of the prepared data."""
        before, parts = self._earlier, self._parts
        # Of all earlier rows, which may be many more than the window's.
        num_rows = sum(split.num_rows for split in before.manifest.splits.values())
        num_ranges = max(parts.num_parts, partitions_of(num_rows, parts.cluster.num_cores))
        shared = {
            "recipe": self._recipe,
            "name": name,
            "last_rows": last_user_rows(self._engine, self._users, num_ranges),
        }
        tasks = [Task({}, shared | {"files": files}) for files in self._file_groups()]
        found = parts.run("earlier items", steps.items_of_files, tasks, num_ranges)
        tasks = [Task({"items": own}, {"end": before.end}) for own in transposed(found)]
        ranges = parts.run("sort items", steps.sort_items, tasks, 2)
        return write_last_items(
            self._engine,
            batches_of(parts, (done.tables[0] for done in ranges)),
            batches_of(parts, (done.tables[1] for done in ranges)),
            before.manifest.num_user_rows,
            before.end,
        )


@contextmanager
def partitioned_window(
    engine: Engine,
    recipe: Recipe,
    inputs: Inputs,
    earlier: Earlier,
    *,
    ray: RayConfig,
    memory_limit: str,
    threads: int,
) -> Iterator[PartitionedWindow]:
    """Hold the rows of a window in partitions; arguments as of `started_cluster`."""
    with cluster_for(engine, ray, memory_limit=memory_limit, threads=threads) as cluster:
        yield PartitionedWindow(engine, recipe, inputs, earlier, cluster, ray.partitions)
