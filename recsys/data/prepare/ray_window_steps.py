"""Steps of an append on one partition of the window, or on some files of the prepared data before it.

As in ray_steps.py: each opens a database of its own in a worker of Ray, and runs the SQL of the other
files of this folder. Called by ray_window.py. Shapes: P partitions, R ranges of user rows.
"""

from collections.abc import Sequence
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
    LastPositives,
    positives_sql,
    sequence_sql,
    tied_sql,
    window_ends,
    window_sequence,
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
    rows = positives_sql(recipe, files)
    query = (
        f"SELECT DISTINCT p.user_row, p.item_row, u.{PART} FROM ({rows}) p "
        f"JOIN {tables['users']} u ON u.user_row = p.user_row"
    )
    return None, *split_by_part(arrow(engine, query), num_parts)


def positives_of_files(
    engine: Engine,
    _: Tables,
    *,
    recipe: Recipe,
    files: Sequence[tuple[int, Path]],
    last_rows: NDArray[np.int64],
) -> Result:
    """Return the positives of files as R tables by ranges of user rows.

    Args:
        last_rows: last user row of each range but the last [R - 1].
    """
    rows = arrow(engine, positives_sql(recipe, files))
    return None, *split_by_range(rows, "user_row", last_rows)


def sort_positives(engine: Engine, tables: Tables, *, end: int | None) -> Result:
    """Return the positives of a range of users in order, and how many are of a second, by user."""
    rows = f"SELECT * FROM {tables['positives']} ORDER BY user_row, ts, row_id"
    positives = engine.create("positives", rows)
    return None, *(
        arrow(engine, sql) for sql in (sequence_sql(positives), tied_sql(positives, end))
    )


def window_histories_part(
    engine: Engine,
    tables: Tables,
    *,
    history: HistorySpec,
    last: LastPositives,
    end: int | None,
    last_rows: NDArray[np.int64],
) -> Result:
    """Return the ends of the rows' histories, users, ties, and R tables of positives by user row.

    The summary: the number of positives.

    Args:
        end: last second of the window; None: there are no times.
        last_rows: as of `positives_of_files`.
    """
    sequence, positives = window_sequence(engine, tables["placed"], history)
    ends = window_ends(engine, sequence, last)
    added = arrow(engine, sequence_sql(positives))
    queries = (f"SELECT * FROM {ends}", window_users_sql(sequence), tied_sql(positives, end))
    found = [arrow(engine, query) for query in queries]
    return added.num_rows, *found, *split_by_range(added, "key", last_rows)
