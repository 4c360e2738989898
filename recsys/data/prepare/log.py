"""The log: every interaction as one typed row.

In: the opened inputs. Out: a table (row_id, user_id, item_id, ts, label, given, sample_weight where rows
have weights, and a text or list of texts for each interaction feature).
"""

import time
from dataclasses import dataclass

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.ids import compare_ids, listed_ids
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.label import label_sql, parse_label
from recsys.data.prepare.sources import Source
from recsys.data.prepare.timestamps import LAST_ODD_SECOND, TimeFormat
from recsys.data.prepare.vocab import value_sql
from recsys.data.recipe import InteractionsRecipe, Recipe
from recsys.data.sql import quoted
from recsys.job import say


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
    problems = Problems()
    log = recipe.interactions
    parts = []
    next_row_id = first_row_id
    for source, given in inputs.logs:
        parts.append(_rows_sql(log, source, inputs.times, first_row_id=next_row_id, split=given))
        next_row_id += engine.one(f"SELECT count(*) FROM {source.view}")[0]
    rows = engine.create("log", " UNION ALL ".join(parts))
    for side in ("user", "item"):
        compare_ids(engine, recipe, inputs, rows, side, problems)
    problems.raise_if_any()
    num_dropped = {}
    if (
        recipe.items
        and log.unknown_items == "drop"
        and (listed := listed_ids(engine, inputs, "item"))
    ):
        is_unknown = f"item_id NOT IN (SELECT id FROM {listed})"
        if count := engine.count(rows, is_unknown):
            engine.delete(rows, is_unknown)
            num_dropped["unknown item"] = count
        engine.drop(listed)
    if inputs.times:
        _say_odd_times(engine, rows, inputs.times)
    return Log(
        rows=rows,
        num_rows_in=next_row_id - first_row_id,
        next_row_id=next_row_id,
        num_dropped=num_dropped,
    )


def _rows_sql(
    log: InteractionsRecipe,
    source: Source,
    times: TimeFormat | None,
    *,
    first_row_id: int,
    split: int,
) -> str:
    """SQL of the typed rows of one file, or of the files of one folder."""
    seconds = times.seconds if times else "CAST(0 AS BIGINT)"
    weight = f", CAST({quoted(log.weight)} AS FLOAT) AS sample_weight" if log.weight else ""
    features = "".join(
        f", {value_sql(feature, name, source.lists)} AS {quoted(name)}"
        for name, feature in log.features.items()
    )
    label = label_sql(parse_label(log.label)) if log.label else "1"
    return (
        f"SELECT source_row + {first_row_id} AS row_id, {_text(log.user_id)} AS user_id, "
        f"{_text(log.item_id)} AS item_id, {seconds} AS ts, CAST({label} AS UTINYINT) AS label, "
        f"{split} AS given{weight}{features} FROM {source.view}"
    )


def _text(column: str | None) -> str:
    return quoted(column) if column else "CAST(NULL AS VARCHAR)"


def _say_odd_times(engine: Engine, rows: Table, times: TimeFormat) -> None:
    """Say where times look like another unit than seconds, or lie in the future."""
    (latest,) = engine.one(f"SELECT max(ts) FROM {rows}")
    if latest <= LAST_ODD_SECOND and not times.written:
        say(
            f"column {times.column!r}: no row is later than 1979 when its numbers are taken "
            f"for seconds since 1970; interactions.timestamp_format says otherwise"
        )
    if in_future := engine.count(rows, f"ts > {int(time.time())}"):
        say(f"column {times.column!r}: {in_future:,} rows lie in the future; they are kept")
