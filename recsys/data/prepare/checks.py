"""Problems with the input, collected and reported at once: file, column, first row and count."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import duckdb

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.sources import Source
from recsys.data.sql import quoted
from recsys.errors import UserError
from recsys.files import is_disk_full

Scan = Callable[[Source, str, Sequence[Table]], tuple | None]
"""Scan of a file: the source, SQL of an aggregate over its view, and tables of the database that the SQL
reads, to the only row of the result; None, and a note, if the file is broken."""


class Condition(NamedTuple):
    """A condition that no row of a file may fulfil."""

    column: str
    is_bad: str
    """SQL over the row's columns, true for a bad row."""
    wrong: str
    """Sentence on a bad row."""


@dataclass
class Problems:
    """Collection of sentences, each on one problem."""

    found: list[str] = field(default_factory=list)

    def raise_if_any(self) -> None:
        """Raise one UserError with every sentence.

        Raises:
            UserError: something was found.
        """
        found = list(dict.fromkeys(self.found))  # a file that cannot be read says so at every scan
        if found:
            head = f"{len(found)} problem{'s' if len(found) > 1 else ''} with the input data:"
            raise UserError("\n  ".join([head, *found]))

    def note(self, source: Source, conditions: list[Condition], scan: Scan, *tables: Table) -> int:
        """Scan a file once and note every condition that holds in some row; return its rows.

        Args:
            tables: that the conditions read.
        """
        row = scan(source, conditions_sql(source, conditions), tables)
        if row is None:
            return 0
        for index, (column, _, wrong) in enumerate(conditions):
            count, first, value = row[1 + 3 * index : 4 + 3 * index]
            if count:
                given = "" if value is None else f" ({str(value)[:60]!r})"
                place, number = source.located(first)
                self.found.append(
                    f"{place}: column {column!r}: {wrong}: {rows_of(count, source)}, first at data "
                    f"row {number:,}{given}"
                )
        return row[0]

    def note_duplicates(self, engine: Engine, source: Source, column: str) -> None:
        """Note ids that more than one row has."""
        query = (
            f"SELECT count(*), min(first), arg_min(id, first) FROM (SELECT {quoted(column)} AS id, "
            f"min(source_row) AS first FROM {source.view} WHERE {quoted(column)} IS NOT NULL "
            f"GROUP BY id HAVING count(*) > 1)"
        )
        count, first, value = self.scan(engine, source, query) or (0, 0, "")
        if count:
            place, row = source.located(first)
            self.found.append(
                f"{place}: column {column!r}: duplicate id: {count:,} "
                f"id{'s' if count > 1 else ''}, first at data row {row:,} ({value!r})"
            )

    def scan_by(self, engine: Engine) -> Scan:
        """Return the scan of files by a database."""
        return lambda source, query, _: self.scan(engine, source, query)

    def scan(self, engine: Engine, source: Source, query: str) -> tuple | None:
        """Return the only row of an aggregate over a file; None, and a note, if it is broken."""
        try:
            with naming_damaged_files([source]):
                return engine.one(query)
        except UserError as error:
            self.found.append(str(error))
            return None


def conditions_sql(source: Source, conditions: list[Condition]) -> str:
    """SQL of the rows of a file, and of each condition the bad rows, the first of them and its value."""
    selected = ["count(*)"]
    for column, is_bad, _ in conditions:
        bad = f"FILTER (WHERE {is_bad})"
        shown = quoted(column) if column in source.columns else "NULL"
        selected += [f"count(*) {bad}", f"min(source_row) {bad}"]
        selected += [f"arg_min({shown}, source_row) {bad}"]
    return f"SELECT {', '.join(selected)} FROM {source.view}"


def joined_scans(scans: Sequence[tuple]) -> tuple:
    """Return the result of `conditions_sql` on all rows, of those on parts of them in their order."""
    num_rows = 0
    found: list[tuple] = [(0, None, None)] * ((len(scans[0]) - 1) // 3)
    for row in scans:
        for index, (count, first, value) in enumerate(found):
            more, more_first, more_value = row[1 + 3 * index : 4 + 3 * index]
            if more and not count:
                first, value = num_rows + more_first, more_value
            found[index] = (count + more, first, value)
        num_rows += row[0]
    return (num_rows, *(entry for condition in found for entry in condition))


def rows_of(count: int, source: Source) -> str:
    """Return a number of rows in words; of several files, with what they are called together."""
    rows = f"{count:,} row{'s' if count > 1 else ''}"
    return rows if len(source.files.paths) == 1 else f"{rows} of {source.path}"


@contextmanager
def naming_damaged_files(sources: Iterable[Source]) -> Iterator[None]:
    """Turn an error of the database into the user's where a file that the block reads is broken.

    An error of the database with whole files is a fault of our SQL and passes, as does one of memory
    or of the disk, which `prepare` names.

    Raises:
        UserError: names the first broken file.
    """
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        if not is_disk_full(error):
            for source in sources:
                if damage := source.damage():
                    raise UserError(damage) from error
        raise


def note_ids_written_two_ways(
    engine: Engine, problems: Problems, ids: list[tuple[Source, str]]
) -> None:
    """Note ids that differ from another only in surrounding spaces or in a trailing `.0`.

    Ids are compared as text: 10.0 (how a column of whole numbers with a blank is often written) would
    silently be somebody else than 10.

    Args:
        ids: every file and column in which ids of one kind (users, or items) stand.
    """
    if not ids:
        return
    known = " UNION ALL ".join(f"SELECT {quoted(c)} AS id FROM {s.view}" for s, c in ids)
    for source, column in ids:
        given = quoted(column)
        plain = f"regexp_replace(trim({given}), '^(-?[0-9]+)[.]0+$', '\\1')"
        # Rows written oddly are few; only for them the other ids are looked through.
        odd = (
            f"SELECT source_row, {given} AS id, {plain} AS plain FROM {source.view} "
            f"WHERE {is_written_oddly(given)} AND {plain} <> ''"
        )
        query = (
            f"SELECT count(*), min(source_row), arg_min(id, source_row), arg_min(plain, source_row) "
            f"FROM ({odd}) WHERE plain IN (SELECT id FROM ({known}) WHERE id IN "
            f"(SELECT plain FROM ({odd})))"
        )
        count, first, value, meant = problems.scan(engine, source, query) or (0, 0, "", "")
        if count:
            place, row = source.located(first)
            problems.found.append(
                f"{place}: column {column!r}: an id that elsewhere is written {meant!r}: "
                f"{rows_of(count, source)}, first at data row {row:,} ({value!r}); "
                f"write ids the same way everywhere"
            )


def is_written_oddly(text: str) -> str:
    """SQL: the id has spaces around it, or may end in `.0`; cheap, for a look at every row."""
    return f"({text} LIKE '%.0%' OR {text} LIKE ' %' OR {text} LIKE '% ')"


def is_null(column: str) -> str:
    """SQL: the id is missing or blank."""
    return f"({quoted(column)} IS NULL OR trim({quoted(column)}) = '')"


def merged_ids(source: Source, column: str) -> Condition:
    """Return the condition that an id is a floating-point number beyond the last exact one.

    From there on one float represents several whole numbers, so two users may have become one.
    """
    bits = 24 if source.kinds[column] == "FLOAT" else 53
    text = f"trim({quoted(column)})"
    may_be = f"(contains({quoted(column)}, '.') OR contains({quoted(column)}, '+'))"  # cheap
    is_float = f"{may_be} AND regexp_full_match({text}, '-?[0-9]+[.][0-9]+|-?[0-9.]+[eE][+][0-9]+')"
    return Condition(
        column,
        f"{is_float} AND abs(try_cast({text} AS DOUBLE)) >= {2**bits}",
        f"an id in floating point of 2^{bits} or more, where neighbouring numbers are one; write ids "
        f"as whole numbers or as text",
    )
