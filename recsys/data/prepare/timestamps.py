"""Times of the log: SQL of a text column as seconds since 1970."""

import duckdb

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine
from recsys.data.prepare.sources import ROW_NUMBER, Source
from recsys.data.sql import literal, quoted, short

LAST_SECOND = 253_402_300_799
"""Last second of the year 9999; greater numbers are milliseconds, or no times at all."""
LAST_ODD_SECOND = 315_532_799
"""Last second of 1979; a log that ends before it is probably not in seconds."""
SECONDS, MILLISECONDS = "seconds", "milliseconds"
DATES = {
    "%Y%m%d%H%M%S": 14,
    "%Y%m%d%H%M": 12,
    "%Y%m%d%H": 10,
    "%Y%m%d": 8,
    "%y%m%d%H": 8,
    "%Y%m": 6,
    "%y%m%d": 6,
    "%Y": 4,
}
"""Formats of dates written as whole numbers, and their numbers of digits."""
_LOOKED_AT_ROWS = 100_000


def seconds_sql(column: str, written: str | None) -> str:
    """SQL of a time in whole seconds, rounded down; NULL if the text is no time.

    Args:
        written: `interactions.timestamp_format`; None: a number as it is, a date since 1970.
    """
    text = quoted(column)
    number = f"try_cast({text} AS DOUBLE)"
    if written == SECONDS:
        seconds = number
    elif written == MILLISECONDS:
        seconds = f"{number} / 1000"
    elif written is not None:
        # As whole numbers are written in a column that has blanks: 20240601.0.
        plain = f"regexp_replace(trim({text}), '^([0-9]+)[.]0+$', '\\1')"
        seconds = f"epoch(CAST(try_strptime({plain}, {literal(written)}) AS TIMESTAMPTZ))"
    else:
        seconds = f"coalesce({number}, epoch(try_cast({text} AS TIMESTAMPTZ)))"
    return f"try_cast(floor({seconds}) AS BIGINT)"


def unusable_times(column: str, written: str | None) -> list[tuple[str, str]]:
    """Return SQL that is true for a row without a usable time, and what is wrong with it."""
    seconds = seconds_sql(column, written)
    asked = {None: "seconds since 1970, or a date from then on", SECONDS: "seconds since 1970"}
    asked[MILLISECONDS] = "milliseconds since 1970"
    expected = asked.get(written, f"a date from 1970 on, written {written}")
    return [
        (
            f"coalesce({seconds}, -1) < 0",
            f"not a time in whole seconds: expected {expected} (interactions.timestamp_format says "
            f"how times are written)",
        ),
        (
            f"{seconds} > {LAST_SECOND}",
            "a time after the year 9999; expected seconds, not milliseconds "
            "(interactions.timestamp_format)",
        ),
    ]


def format_problem(engine: Engine, written: str | None) -> str | None:
    """Return what is wrong with `interactions.timestamp_format`; None where nothing is."""
    key = f"interactions.timestamp_format={written!r}"
    if written is None or written in (SECONDS, MILLISECONDS):
        return None
    if "%" not in written:
        return f"{key}: expected {SECONDS}, {MILLISECONDS}, or a pattern such as '%Y%m%d'"
    try:
        engine.rows(f"SELECT strptime('', {literal(written)}) WHERE false")
        engine.rows(f"SELECT try_strptime('', {literal(written)})")
    except duckdb.Error as error:
        return f"{key}: {short(error)}"
    return None


def note_dates_among_numbers(
    engine: Engine, source: Source, column: str, problems: Problems
) -> None:
    """Note a column in which most numbers are dates: they would become seconds of 1970.

    The first rows of the file speak for all.
    """
    text = f"regexp_replace(trim({quoted(column)}), '[.]0+$', '')"
    counts = []
    for written, digits in DATES.items():
        date = f"try_strptime(text, {literal(written)})"
        is_date = (
            f"regexp_full_match(text, '[0-9]{{{digits}}}') AND year({date}) BETWEEN 1900 AND 2100"
        )
        counts.append(f"count(*) FILTER (WHERE {is_date}), min(text) FILTER (WHERE {is_date})")
    query = (
        f"SELECT count(*), {', '.join(counts)} FROM (SELECT {text} AS text FROM {source.view} "
        f"WHERE {ROW_NUMBER} < {_LOOKED_AT_ROWS} LIMIT {_LOOKED_AT_ROWS})"
    )
    num_rows, *found = problems.scan(engine, source, query) or (0, *[0, ""] * len(DATES))
    for written, count, example in zip(DATES, found[::2], found[1::2], strict=True):
        if count > num_rows / 2:
            problems.found.append(
                f"{source.path}: column {column!r} (interactions.timestamp): numbers such as "
                f"{example} look like dates; set interactions.timestamp_format='{written}', or "
                f"{SECONDS} if they are seconds since 1970"
            )
            return
