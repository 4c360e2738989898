"""The log: every interaction as one typed row.

In: the opened inputs. Out: a table (row_id, user_id, item_id, ts, label, given, sample_weight where rows
have weights, and a text or list of texts for each interaction feature).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.ids import compare_ids, listed_ids
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.log_rows import log_rows_sql, odd_times_sql
from recsys.data.prepare.timestamps import LAST_ODD_SECOND, TimeFormat
from recsys.data.recipe import Recipe
from recsys.job import say

UNKNOWN_ITEM = "unknown item"
"""Reason for which rows are left out: `interactions.unknown_items=drop`."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """The interactions of all log files."""

    rows: Table
    num_rows_in: int
    """Rows of the files."""
    next_row_id: int
    """Row ids are below it; those from here on are of drawn negatives."""
    num_dropped: dict[str, int]
    """Rows left out, by reason."""


def read_log(engine: Engine, recipe: Recipe, inputs: Inputs, first_row_id: int = 0) -> Log:
    """Read the log files in their order, and compare their ids with the catalogues'.

    Args:
        first_row_id: of the first row.

    Raises:
        UserError: log and catalogue have no id in common, or write ids in two ways.
    """
    log = recipe.interactions
    parts = []
    next_row_id = first_row_id
    for source, given in inputs.logs:
        parts.append(log_rows_sql(log, source, inputs.times, first_row_id=next_row_id, split=given))
        next_row_id += engine.one(f"SELECT count(*) FROM {source.view}")[0]
    rows = engine.create("log", " UNION ALL ".join(parts))
    compare_log_ids(engine, recipe, inputs, {"user": rows, "item": rows})
    num_dropped = {}
    if (
        recipe.items
        and log.unknown_items == "drop"
        and (listed := listed_ids(engine, inputs, "item"))
    ):
        is_unknown = f"item_id NOT IN (SELECT id FROM {listed})"
        if count := engine.count(rows, is_unknown):
            engine.delete(rows, is_unknown)
            num_dropped[UNKNOWN_ITEM] = count
        engine.drop(listed)
    if inputs.times:
        say_odd_times(inputs.times, *engine.one(odd_times_sql(rows)))
    return Log(
        rows=rows,
        num_rows_in=next_row_id - first_row_id,
        next_row_id=next_row_id,
        num_dropped=num_dropped,
    )


def compare_log_ids(
    engine: Engine, recipe: Recipe, inputs: Inputs, logs: Mapping[str, Table]
) -> None:
    """Compare the ids of users and items of the log with those of the catalogues.

    Args:
        logs: by side, a table with the column `<side>_id`: the log, or its different ids.

    Raises:
        UserError: log and catalogue have no id in common, or write ids in two ways.
    """
    problems = Problems()
    for side, log in logs.items():
        compare_ids(engine, recipe, inputs, log, side, problems)
    problems.raise_if_any()


def say_odd_times(times: TimeFormat, latest: int | None, num_in_future: int) -> None:
    """Say where times look like another unit than seconds, or lie in the future.

    Args:
        latest: None: there are no rows.
    """
    if latest is not None and latest <= LAST_ODD_SECOND and not times.written:
        say(
            f"column {times.column!r}: no row is later than 1979 when its numbers are taken "
            f"for seconds since 1970; interactions.timestamp_format says otherwise"
        )
    if num_in_future:
        say(f"column {times.column!r}: {num_in_future:,} rows lie in the future; they are kept")
