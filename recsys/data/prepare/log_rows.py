"""Rows of the log as SQL: typed rows of its files, and their times that look odd.

In: a file of the log, or some of its rows. Out: SQL, for one database or for each of many.
"""

import time

from recsys.data.prepare.engine import Table
from recsys.data.prepare.label import label_sql, parse_label
from recsys.data.prepare.sources import Source
from recsys.data.prepare.timestamps import TimeFormat
from recsys.data.prepare.vocab import value_sql
from recsys.data.recipe import InteractionsRecipe
from recsys.data.sql import quoted


def log_rows_sql(
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


def odd_times_sql(rows: Table) -> str:
    """SQL of the latest second of the log, and of the number of rows in the future."""
    return f"SELECT max(ts), count(*) FILTER (WHERE ts > {int(time.time())}) FROM {rows}"
