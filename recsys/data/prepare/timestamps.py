"""Times of the log: how they are written, and SQL of a text column as seconds since 1970."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine
from recsys.data.prepare.sources import ROW_NUMBER, Source
from recsys.data.sql import literal, quoted, short

LAST_SECOND = 253_402_300_799
"""Last second of the year 9999; greater numbers are of a smaller unit, or no times at all."""
LAST_ODD_SECOND = 315_532_799
"""Last second of 1979; a log that ends before it is probably not in seconds."""
SECONDS = "seconds"
UNITS = {SECONDS: 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Units of numbers since 1970: how many are a second."""
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


@dataclass(frozen=True, kw_only=True)
class TimeFormat:
    """How the times of a log are written."""

    column: str
    written: str | None = None
    """`interactions.timestamp_format`, or the unit that was recognised; None: a number of seconds, or a
    date since 1970."""
    zone: str | None = None
    """Zone of dates written without one; None: UTC."""
    is_recognised: bool = False
    """Whether the recipe leaves the unit to be recognised by the first rows."""

    @property
    def unit(self) -> str | None:
        """The unit of numbers since 1970; None: the times are dates, or either."""
        return self.written if self.written in UNITS else None

    @property
    def seconds(self) -> str:
        """SQL of a time in whole seconds, rounded down; NULL if the text is no time."""
        text = quoted(self.column)
        number = f"try_cast({text} AS DOUBLE)"
        if self.unit:
            per_second = UNITS[self.unit]
            seconds = f"{number} / {per_second}" if per_second > 1 else number
            if per_second > 1000:
                # A double has not all digits of nanoseconds.
                whole = f"try_cast(trim({text}) AS HUGEINT) // {per_second}"
                is_whole = f"regexp_full_match(trim({text}), '[0-9]+')"
                seconds = f"CASE WHEN {is_whole} THEN {whole} ELSE {seconds} END"
        elif self.written is not None:
            # As whole numbers are written in a column that has blanks: 20240601.0.
            plain = f"regexp_replace(trim({text}), '^([0-9]+)[.]0+$', '\\1')"
            parsed = f"try_strptime({plain}, {literal(self.written)})"
            has_zone = "true" if re.search("%[zZ]", self.written) else "false"
            seconds = f"epoch({self._moment(parsed, has_zone=has_zone)})"
        else:
            date = f"try_cast({text} AS TIMESTAMPTZ)"
            if self.zone:
                has_zone = f"regexp_matches(trim({text}), {literal(_WITH_ZONE)})"
                date = self._moment(text, has_zone=has_zone)
            seconds = f"coalesce({number}, epoch({date}))"
        return f"try_cast(floor({seconds}) AS BIGINT)"

    def _moment(self, value: str, *, has_zone: str) -> str:
        """SQL of a date as a moment; `has_zone`: SQL, true where it is written with its zone."""
        moment = f"try_cast({value} AS TIMESTAMPTZ)"
        if self.zone is None:
            return moment
        local = f"timezone({literal(self.zone)}, try_cast({value} AS TIMESTAMP))"
        return f"CASE WHEN {has_zone} THEN {moment} ELSE {local} END"

    def unusable(self) -> list[tuple[str, str]]:
        """Return SQL that is true for a row without a usable time, and what is wrong with it."""
        if self.unit:
            expected = f"{self.unit} since 1970"
        elif self.written is not None:
            expected = f"a date from 1970 on, written {self.written}"
        else:
            expected = f"{SECONDS} since 1970, or a date from then on"
        conditions = [
            (
                f"coalesce({self.seconds}, -1) < 0",
                f"not a time in whole seconds: expected {expected} (interactions.timestamp_format says "
                f"how times are written)",
            ),
            (
                f"{self.seconds} > {LAST_SECOND}",
                f"a time after the year 9999; expected {self.unit or SECONDS} "
                f"(interactions.timestamp_format names another unit)",
            ),
        ]
        if self.is_recognised and self.unit:
            number = f"try_cast({quoted(self.column)} AS DOUBLE)"
            conditions.append((
                f"{number} BETWEEN 0 AND {LAST_SECOND * UNITS[self.unit] // 1000}",
                f"a number of a larger unit than the {self.unit} of the first rows; expected times of "
                f"one unit (interactions.timestamp_format names it)",
            ))
        return conditions


_WITH_ZONE = ":[0-9]{2}([.][0-9]+)? ?([zZ]|UTC|[+-][0-9]{2}(:?[0-9]{2})?)$"
"""Texts of times that say their zone: 2024-06-01 12:00:00+09."""


def format_problems(engine: Engine, written: str | None, zone: str | None) -> list[str]:
    """Return what is wrong with `interactions.timestamp_format` and `timestamp_zone`."""
    problems = []
    key = f"interactions.timestamp_format={written!r}"
    if written is not None and written not in UNITS:
        if "%" not in written:
            problems.append(f"{key}: expected {', '.join(UNITS)}, or a pattern such as '%Y%m%d'")
        else:
            try:
                engine.rows(f"SELECT strptime('', {literal(written)}) WHERE false")
                engine.rows(f"SELECT try_strptime('', {literal(written)})")
            except duckdb.Error as error:
                problems.append(f"{key}: {short(error)}")
    if zone is not None:
        known = f"SELECT count(*) FROM pg_timezone_names() WHERE name = {literal(zone)}"
        if not engine.one(known)[0]:
            problems.append(
                f"interactions.timestamp_zone={zone!r}: expected the name of a time zone, such as "
                f"Asia/Tokyo"
            )
        if written in UNITS:
            problems.append(
                f"interactions.timestamp_zone={zone!r}: {written} since 1970 have no zone; leave it out"
            )
    return problems


def recognised_format(engine: Engine, times: TimeFormat, sources: Sequence[Source]) -> TimeFormat:
    """Return the format with the unit of its numbers, where the recipe names none.

    The median of the first file's first rows speaks for all; a number of another unit is refused later.
    """
    if times.written is not None or not sources:
        return times
    number = f"try_cast({quoted(times.column)} AS DOUBLE)"
    query = (
        f"SELECT median({number}) FILTER (WHERE isfinite({number})) FROM (SELECT * FROM "
        f"{sources[0].view} LIMIT {_LOOKED_AT_ROWS})"
    )
    middle = (Problems().scan(engine, sources[0], query) or (None,))[0]
    if middle is None or middle <= LAST_SECOND:
        return times
    units = [unit for unit, per_second in UNITS.items() if middle <= LAST_SECOND * per_second]
    return dataclasses.replace(times, written=units[0], is_recognised=True) if units else times


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
