"""The rows of a window: what an append asks of them, wherever they are held.

`append` is one list of steps (append_steps.run_steps) for every holder of the rows: `WholeWindow` has
them in the tables of one database, ray_window.PartitionedWindow in partitions on many machines.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.interactions import write_interactions
from recsys.data.prepare.numbering import SplitCounts, count_splits
from recsys.data.prepare.rows import Columns, Rows, WholeLog, draw
from recsys.data.prepare.window_history import (
    items_sql,
    last_second,
    read_last_items,
    split_files,
    write_window_histories,
)
from recsys.data.recipe import Recipe
from recsys.schema import HistorySpec, Manifest, SplitSpec


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Prepared data, and the window that follows it."""

    folder: Path
    manifest: Manifest
    window: str
    """Name of the new split."""

    @property
    def first_row_id(self) -> int:
        """Row id of the window's first row."""
        return self.manifest.rows_in + self.manifest.rows_drawn

    @property
    def end(self) -> int | None:
        """Time of the last row; None where the log has no times."""
        return last_second(self.manifest)


class LateRows(NamedTuple):
    """Rows of a window that are earlier than a second."""

    num_rows: int
    row_id: int | None
    """Of the first of them; None: there are none."""
    earliest: int | None
    """Time of the earliest."""


class WindowRows(Rows, Protocol):
    """The rows of a window. The methods are called as those of `Rows`, these two after `read`."""

    def leave_out(self, until: int | None) -> tuple[int, int]:
        """Leave out the rows before a second; return how many, and how many there are then."""
        ...

    def late(self, end: int) -> LateRows:
        """Return the rows that are earlier than a second."""
        ...


HoldWindow = Callable[[Engine, Recipe, Inputs, Earlier], AbstractContextManager[WindowRows]]
"""Holder of the rows of a window, for the duration of a block."""


def whole_window(
    engine: Engine, recipe: Recipe, inputs: Inputs, earlier: Earlier
) -> AbstractContextManager[WindowRows]:
    """Hold the rows of a window in the engine's own database."""
    return nullcontext(WholeWindow(engine, recipe, inputs, earlier))


class WholeWindow(WholeLog):
    """The rows of a window in the tables of one database; all of them are of split 0."""

    def __init__(self, engine: Engine, recipe: Recipe, inputs: Inputs, earlier: Earlier):
        super().__init__(engine, recipe, inputs, earlier.first_row_id)
        self._earlier = earlier
        self._vocabularies: tuple[Table, Table]

    def leave_out(self, until: int | None) -> tuple[int, int]:
        """Delete the rows before a second."""
        rows, num_early = self._log.rows, 0
        if until is not None and (num_early := self._engine.count(rows, f"ts < {until}")):
            self._engine.delete(rows, f"ts < {until}")
        return num_early, self._engine.count(rows)

    def late(self, end: int) -> LateRows:
        """Return the rows that are earlier than a second."""
        return LateRows(*self._engine.one(late_sql(self._log.rows, end)))

    def split(self) -> None:
        """Make the table of splits."""
        self._splits = self._engine.create("splits", one_split_sql(self._log.rows))

    def place(self, users: Table, items: Table) -> dict[int, SplitCounts]:
        """Make the table `placed`."""
        self._vocabularies = users, items
        return super().place(users, items)

    def draw(self, items: Table) -> tuple[int, dict[int, SplitCounts]]:
        """Append negatives to `placed`, none of them an earlier positive of its user."""
        engine, before = self._engine, self._earlier
        if self._recipe.interactions.negatives is None:
            return 0, count_splits(engine, self.placed)
        # Their users alone, so that memory follows the window; the scan reads four columns of all rows.
        rows = items_sql(self._recipe, split_files(before.manifest, before.folder))
        of_window = f"SELECT user_row FROM {self.placed}"
        earlier = engine.create(
            "earlier",
            named_sql(
                f"SELECT * FROM ({rows}) WHERE user_row IN ({of_window})", *self._vocabularies
            ),
            is_temporary=True,
        )
        next_row_id = self._log.next_row_id
        num_drawn = draw(engine, self._recipe, self.placed, items, next_row_id, earlier)
        engine.drop(earlier)
        return num_drawn, count_splits(engine, self.placed)

    def write_histories(
        self, history: HistorySpec, num_user_rows: int, prepared: Path
    ) -> dict[str, int]:
        """Write the window's sequences; return the number of its items of each."""
        engine, before = self._engine, self._earlier
        last = read_last_items(engine, self._recipe, before.manifest, before.folder)
        self._ends, num_items = write_window_histories(
            engine, history, before.window, self.placed, last, num_user_rows, prepared
        )
        return num_items

    def write_interactions(
        self, features: Columns, prepared: Path
    ) -> tuple[dict[str, SplitSpec], dict[str, int]]:
        """Write the window, and drop `placed`."""
        return write_interactions(
            self._engine,
            self._recipe,
            self.placed,
            self._ends,
            features,
            prepared,
            (self._earlier.window,),
        )


def late_sql(rows: Table, end: int) -> str:
    """SQL of the number of rows before a second, the first one's row id, and the earliest time."""
    return f"SELECT count(*), min(row_id), min(ts) FROM {rows} WHERE ts < {end}"


def one_split_sql(rows: Table) -> str:
    """SQL of (row_id, split) of the rows of a window."""
    return f"SELECT row_id, 0 AS split FROM {rows}"


def named_sql(positives: str, users: Table | str, items: Table) -> str:
    """SQL of (user_id, item_id, item_row) of SQL of positives (user_row, item_row).

    Args:
        users, items: tables (id, row); positives of others are left out.
    """
    return (
        f"SELECT u.id AS user_id, i.id AS item_id, p.item_row FROM ({positives}) p "
        f"JOIN {users} u ON u.row = p.user_row JOIN {items} i ON i.row = p.item_row"
    )
