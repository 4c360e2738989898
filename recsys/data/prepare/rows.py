"""Rows of the log: what a preparation asks of them, wherever they are held.

`prepare` is one list of steps (pipeline.run_steps) for every holder of the rows: `WholeLog` has them in
the tables of one database, ray_rows.PartitionedLog in partitions on many machines. Both run the same SQL.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from recsys.data.prepare.checks import Problems, Scan
from recsys.data.prepare.dense import DenseColumn
from recsys.data.prepare.engine import Engine, Table, count_rows
from recsys.data.prepare.history import write_histories
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.interactions import write_interactions
from recsys.data.prepare.log import Log, read_log
from recsys.data.prepare.negatives import (
    add_negatives,
    draw_negatives,
    item_pools,
    numbered_sql,
)
from recsys.data.prepare.numbering import SplitCounts, count_splits, place, training_ids
from recsys.data.prepare.split import split_log
from recsys.data.prepare.vocab import FeatureRows
from recsys.data.recipe import SPLITS, NegativesRecipe, Recipe
from recsys.job import say
from recsys.schema import HistorySpec, SplitSpec

Columns = Mapping[str, FeatureRows | DenseColumn]
"""Interaction features, by name."""


class Rows(Protocol):
    """The rows of the log. The methods are called in this order, `count` between the others."""

    placed: Table
    """Handle of the rows with splits and rows of tables, for SQL that `count` is given."""

    def scan(self, problems: Problems) -> Scan:
        """Return the scan of files of the log; broken files are noted among the problems."""
        ...

    def read(self) -> Log:
        """Read the files, compare their ids with the catalogues', and leave out unknown items."""
        ...

    def split(self) -> None:
        """Assign every row to a split."""
        ...

    def trained(self, side: str) -> str:
        """SQL of the different ids of users or items of the training rows, and their rows (id, n)."""
        ...

    def place(self, users: Table, items: Table) -> dict[int, SplitCounts]:
        """Make `placed` by the vocabularies; return the counts of each split."""
        ...

    def draw(self, items: Table) -> tuple[int, dict[int, SplitCounts]]:
        """Add negatives where the recipe draws them; return how many, and the counts of each split."""
        ...

    def count(self, query: str) -> str:
        """SQL of the different rows of SQL over `placed`, and how many of each there are (..., n)."""
        ...

    def write_histories(
        self, history: HistorySpec, num_user_rows: int, prepared: Path
    ) -> dict[str, int]:
        """Write the stored sequences; return the number of stored items of each."""
        ...

    def write_interactions(
        self, features: Columns, prepared: Path
    ) -> tuple[dict[str, SplitSpec], dict[str, int]]:
        """Write the splits as Parquet parts; return their entries, and the longest lists."""
        ...


class WholeLog:
    """The rows of the log in the tables of one database."""

    placed: Table

    def __init__(self, engine: Engine, recipe: Recipe, inputs: Inputs, first_row_id: int = 0):
        """Args: first_row_id: of the first row."""
        self._engine = engine
        self._recipe = recipe
        self._inputs = inputs
        self._first_row_id = first_row_id
        self._ends: Table | None = None
        self._log: Log
        self._splits: Table

    def scan(self, problems: Problems) -> Scan:
        """Return the scan of files by the database."""
        return problems.scan_by(self._engine)

    def read(self) -> Log:
        """Read the files into a table."""
        self._log = read_log(self._engine, self._recipe, self._inputs, self._first_row_id)
        return self._log

    def split(self) -> None:
        """Make the table of splits."""
        self._splits = split_log(self._engine, self._log.rows, self._recipe.split)

    def trained(self, side: str) -> str:
        """SQL of the ids of the training rows, and their rows (id, n)."""
        return count_rows(training_ids(self._log.rows, self._splits, side))

    def place(self, users: Table, items: Table) -> dict[int, SplitCounts]:
        """Make the table `placed` from the log and its splits, and drop these."""
        log = self._log.rows
        self.placed = place(self._engine, self._recipe, log, self._splits, users, items)
        self._engine.drop(self._splits, log)
        return count_splits(self._engine, self.placed)

    def draw(self, items: Table) -> tuple[int, dict[int, SplitCounts]]:
        """Append negatives to `placed`."""
        drawn = draw(self._engine, self._recipe, self.placed, items, self._log.next_row_id)
        return drawn, count_splits(self._engine, self.placed)

    def count(self, query: str) -> str:
        """SQL of the different rows of a query (..., n)."""
        return count_rows(query)

    def write_histories(
        self, history: HistorySpec, num_user_rows: int, prepared: Path
    ) -> dict[str, int]:
        """Write the stored sequences, and keep the ends of the rows' histories."""
        self._ends, num_stored = write_histories(
            self._engine, history, self.placed, num_user_rows, prepared
        )
        return num_stored

    def write_interactions(
        self, features: Columns, prepared: Path
    ) -> tuple[dict[str, SplitSpec], dict[str, int]]:
        """Write the splits, and drop `placed`."""
        return write_interactions(
            self._engine,
            self._recipe,
            self.placed,
            self._ends,
            features,
            prepared,
        )


def draw(
    engine: Engine,
    recipe: Recipe,
    placed: Table,
    items: Table,
    next_row_id: int,
    earlier: Table | None = None,
) -> int:
    """Add negatives where the log holds positives only; return how many.

    Args:
        earlier: of an append, the positives of earlier splits (negatives.draw_negatives).
    """
    negatives = recipe.interactions.negatives
    if negatives is None:
        return 0
    num_positives = engine.count(placed)
    pools = item_pools(engine, negatives, placed, items, 1 if earlier else len(SPLITS))
    drawn = draw_negatives(engine, negatives, placed, pools, earlier)
    add_negatives(engine, placed, drawn, numbered_sql(drawn, next_row_id))
    num_drawn = engine.count(drawn)
    engine.drop(drawn)
    say_undrawn(negatives, num_positives, num_drawn)
    return num_drawn


def say_undrawn(recipe: NegativesRecipe, num_positives: int, num_drawn: int) -> None:
    """Warn where fewer negatives were drawn than the recipe asks for."""
    num_wanted = recipe.per_positive * num_positives
    if num_drawn < num_wanted:
        say(
            f"warning: {num_wanted - num_drawn:,} of {num_wanted:,} negatives could not be drawn: "
            f"their users know nearly every item "
            f"(interactions.negatives.per_positive={recipe.per_positive})"
        )
