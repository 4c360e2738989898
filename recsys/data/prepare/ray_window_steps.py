"""Steps of an append on one partition of the window, or on some files of the prepared data before it.

As in ray_steps.py: each opens a database of its own in a worker of Ray, and runs the SQL of the other
files of this folder. Called by ray_window.py. Shapes: P partitions, R ranges of user rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.prepare.engine import Engine
from recsys.data.prepare.ray_steps import (
    PART,
    Result,
    Tables,
    arrow,
    part_sql,
    split_by_part,
    split_by_range,
)
from recsys.data.prepare.window import LateRows, late_sql
from recsys.data.prepare.window_history import (
    LastItems,
    items_sql,
    sequence_sql,
    tied_sql,
    window_ends,
    window_sequences,
    window_users_sql,
)
from recsys.data.recipe import Recipe
from recsys.schema import HistorySpec


def leave_out_rows(engine: Engine, tables: Tables, *, until: int) -> Result:
    """Return the rows of the log from a second on; the summary: how many there were, and are."""
    log = tables["log"]
    kept = arrow(engine, f"SELECT * FROM {log} WHERE ts >= {until}")
    return (engine.count(log), kept.num_rows), kept


def count_log(engine: Engine, tables: Tables) -> Result:
    """Return the number of rows of the log."""
    return (engine.count(tables["log"]),)


def late_part(engine: Engine, tables: Tables, *, end: int) -> Result:
    """Return the rows of the log that are earlier than a second."""
    return (LateRows(*engine.one(late_sql(tables["log"], end))),)


def users_of_part(engine: Engine, _: Tables, *, num_parts: int) -> Result:
    """Return the known users of a partition, with the partition that they are in."""
    rows = "SELECT user_row, user_id FROM placed WHERE user_row > 0"
    query = f"SELECT DISTINCT user_row, {PART} FROM ({part_sql(rows, 'user_id', num_parts)})"
    return None, arrow(engine, query)


def earlier_of_files(
    engine: Engine,
    tables: Tables,
    *,
    recipe: Recipe,
    files: Sequence[tuple[int, Path]],
    num_parts: int,
) -> Result:
    """Return the positives (user_row, item_row) of files as P tables, those of the window's users.

    Args:
        tables: `users`, those of the window with their partitions.
    """
    rows = items_sql(recipe, files)
    query = (
        f"SELECT DISTINCT p.user_row, p.item_row, u.{PART} FROM ({rows}) p "
        f"JOIN {tables['users']} u ON u.user_row = p.user_row"
    )
    return None, *split_by_part(arrow(engine, query), num_parts)


def items_of_files(
    engine: Engine,
    _: Tables,
    *,
    recipe: Recipe,
    name: str,
    files: Sequence[tuple[int, Path]],
    last_rows: NDArray[np.int64],
) -> Result:
    """Return the items of a sequence in files as R tables by ranges of user rows.

    Args:
        name: of the sequence.
        last_rows: last user row of each range but the last [R - 1].
    """
    rows = arrow(engine, items_sql(recipe, files, name))
    return None, *split_by_range(rows, "user_row", last_rows)


def sort_items(engine: Engine, tables: Tables, *, end: int | None) -> Result:
    """Return the items of a range of users in order, and how many are of a second, by user."""
    rows = f"SELECT * FROM {tables['items']} ORDER BY user_row, ts, row_id"
    items = engine.create("items", rows)
    return None, *(arrow(engine, sql) for sql in (sequence_sql(items), tied_sql(items, end)))


def window_histories_part(
    engine: Engine,
    tables: Tables,
    *,
    history: HistorySpec,
    last: Mapping[str, LastItems],
    end: int | None,
    last_rows: NDArray[np.int64],
) -> Result:
    """Return the ends of the rows' histories, users, and of each sequence ties and R tables by user row.

    The summary: the number of items of each sequence.

    Args:
        last: by sequence.
        end: last second of the window; None: there are no times.
        last_rows: as of `items_of_files`.
    """
    rows, items = window_sequences(engine, tables["placed"], history)
    ends = window_ends(engine, rows, last)
    found = [arrow(engine, query) for query in (f"SELECT * FROM {ends}", window_users_sql(rows))]
    num_items = {}
    for name, own in items.items():
        added = arrow(engine, sequence_sql(own))
        num_items[name] = added.num_rows
        found += [arrow(engine, tied_sql(own, end)), *split_by_range(added, "key", last_rows)]
    return num_items, *found
