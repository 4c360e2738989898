"""Raw files as DuckDB views: CSV or Parquet in, text columns and a row number out.

Every column is read as text, a column of lists as lists of texts, so that `row_checks` can name the row
of a value that does not fit.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.raw_text import text_sql
from recsys.data.sql import literal, quoted, short
from recsys.data.text_format import TextFormat
from recsys.errors import UserError

ROW_NUMBER = "source_row"
"""Column that every view has: the number of the row in its file, from 0."""


class Source:
    """One raw file as a view of text columns and `source_row` (0-based, file order)."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        view: str,
        path: Path,
        *,
        key: str,
        written: TextFormat,
        copies: Path,
    ):
        """Open the file and create the view.

        Args:
            path: taken literally: no pattern, and no column from a folder called a=b.
            key: config key of the file's section, for messages.
            copies: folder of a rewritten copy, made if the database cannot read the file as it is.

        Raises:
            UserError: the file is missing, of another format, truncated or unreadable.
        """
        self.path = path
        self.view = view
        _check_file(path, key)
        suffix = path.suffix.lower()
        self.is_parquet = suffix == ".parquet"
        try:
            if self.is_parquet:
                # The names in the file: the database renames duplicates.
                _check_names(path, pq.read_schema(path).names)
                self.reader = f"read_parquet({_literal_path(path)}, hive_partitioning=false)"
            elif suffix in (".csv", ".tsv", ".txt", ".gz"):
                self.reader = _text_reader(path, view, key, written, copies)
            else:
                raise UserError(f"{path}: expected a .parquet, .csv, .tsv, .txt or .gz file")
            described = connection.execute(f"DESCRIBE SELECT * FROM {self.reader}").fetchall()
        except (duckdb.Error, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({short(error)})") from error
        self.columns = [row[0] for row in described]
        self.kinds = {name: kind for name, kind, *_ in described}
        self.lists = {name for name, kind in self.kinds.items() if kind.endswith("[]")}
        texts = ", ".join(f"{self._text(c)} AS {quoted(c)}" for c in self.columns)
        connection.execute(
            f"CREATE VIEW {view} AS SELECT *, row_number() OVER () - 1 AS {ROW_NUMBER} "
            f"FROM (SELECT {texts} FROM {self.reader})"
        )

    def _text(self, column: str) -> str:
        return text_sql(column, self.kinds[column])

    def damage(self) -> str | None:
        """Return a sentence where the file cannot be read; None where all of its values can.

        Asked for after an error, whose cause may be the file or our SQL. Every column is read by a
        database of its own, because a failed one may answer nothing any more.
        """
        with duckdb.connect() as connection:
            try:
                connection.execute(
                    f"SELECT bit_xor(hash(COLUMNS(*))) FROM {self.reader}"
                ).fetchall()
            except duckdb.Error as error:
                return f"{self.path}: cannot be read ({short(error)})"
        return None

    def missing_columns(self, wanted: dict[str, str | None]) -> list[str]:
        """Return a sentence for every wanted column that the file lacks; `wanted`: key -> column."""
        return [
            f"{self.path}: column {column!r} ({key}) is missing; the file has "
            f"{', '.join(self.columns)}"
            for key, column in wanted.items()
            if column is not None and column not in self.columns
        ]

    def nested_columns(
        self, wanted: dict[str, str | None], *, may_be_lists: bool = False
    ) -> list[str]:
        """Return a sentence for every wanted column that holds lists or structures without permission.

        Args:
            may_be_lists: lists of texts or numbers are permitted.
        """
        expected = "one value a row" + (", or a list of texts or numbers" if may_be_lists else "")
        problems = []
        for key, column in wanted.items():
            kind = self.kinds.get(column or "", "")
            element = kind.removesuffix("[]") if may_be_lists else kind
            if element.endswith("]") or element.startswith(("STRUCT", "MAP", "UNION")):
                is_feature = not may_be_lists and (".features." in key or ".tags." in key)
                hint = " (kind: id_list reads lists)" if is_feature else ""
                problems.append(
                    f"{self.path}: column {column!r} ({key}) holds {kind}; expected {expected}{hint}"
                )
        return problems

    def undecodable_columns(
        self, connection: duckdb.DuckDBPyConnection, wanted: dict[str, str | None]
    ) -> list[str]:
        """Return a sentence for every wanted binary column in which a value is not UTF-8 text."""
        problems = []
        for key, column in wanted.items():
            if column is None or self.kinds.get(column) not in ("BLOB", "BLOB[]"):
                continue
            is_bad = f"{quoted(column)} IS NOT NULL AND try({self._text(column)}) IS NULL"
            query = (
                f"SELECT count(*), min(row) FROM (SELECT row_number() OVER () - 1 AS row, {is_bad} "
                f"AS is_bad FROM {self.reader}) WHERE is_bad"
            )
            try:
                count, first = connection.execute(query).fetchall()[0]
            except duckdb.Error:
                if (damage := self.damage()) is None:
                    raise
                return [damage]
            if count:
                problems.append(
                    f"{self.path}: column {column!r} ({key}): bytes that are not UTF-8 text: "
                    f"{count:,} row{'s' if count > 1 else ''}, first at data row {first:,}"
                )
        return problems


def _check_file(path: Path, key: str) -> None:
    """Refuse what is no file, and say what it is.

    Raises:
        UserError: nothing is there, or a folder.
    """
    if path.is_file():
        return
    if path.is_dir():
        kinds = [p.suffix.lower() for p in path.iterdir() if p.is_file() and p.suffix]
        held = ", ".join(f"{kinds.count(kind):,} {kind}" for kind in sorted(set(kinds))) or "no"
        raise UserError(
            f"{path}: a folder ({held} files); {key} expects one file: name it, or join the files of "
            f"the folder into one first"
        )
    pattern = " (names are taken literally, * ? [ ] too)" if re.search(r"[*?\[]", path.name) else ""
    raise UserError(
        f"{path}: no such file{pattern}; check data.source and the recipe's file names ({key})"
    )


def _literal_path(path: Path) -> str:
    """SQL of a path whose wildcards are escaped.

    Raises:
        UserError: it has both a backslash and a wildcard, which the database cannot escape.
    """
    text = str(path)
    if "\\" in text and re.search(r"[*?\[]", text):
        raise UserError(f"{path}: a path with a backslash and one of * ? [ ]; rename it")
    return literal(re.sub(r"([*?\[])", r"[\1]", text))


def _text_reader(path: Path, view: str, key: str, written: TextFormat, copies: Path) -> str:
    """SQL that reads a text file. Nothing is detected: detection may skip the header or split lines."""
    tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
    delimiter = written.delimiter or ("\t" if tabs else ",")
    names = written.header or _header(path, key, delimiter, written)
    _check_names(path, names)
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    read = path
    is_utf8 = codecs.lookup(written.encoding).name == "utf-8"
    if not is_utf8 or _has_mixed_line_ends(path):
        read = copies / f"{view}.csv"
        _rewrite(path, read, key, written)
    compression = "gzip" if read.suffix.lower() == ".gz" else "none"
    return (
        f"read_csv({_literal_path(read)}, auto_detect=false, columns={{{columns}}}, "
        f"delim={literal(delimiter)}, header={'false' if written.header else 'true'}, "
        f"quote={literal(written.quote)}, escape={literal(written.quote)}, "
        f"compression={literal(compression)}, hive_partitioning=false)"
    )


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open a text file for reading bytes, decompressed."""
    return gzip.GzipFile(path) if path.suffix.lower() == ".gz" else open(path, "rb")


def _has_mixed_line_ends(path: Path) -> bool:
    """Return whether a file has lines ended by CRLF and by LF: the database expects one of them."""
    num_crlf = num_lf = 0
    last = b""
    try:
        with _opened(path) as stream:
            while piece := stream.read(1 << 20):
                num_crlf += piece.count(b"\r\n") + (last == b"\r" and piece[:1] == b"\n")
                num_lf += piece.count(b"\n")
                last = piece[-1:]
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({short(error)})") from error
    return 0 < num_crlf < num_lf


def _rewrite(path: Path, copy: Path, key: str, written: TextFormat) -> None:
    """Write a copy of a text file in UTF-8, with LF at the end of every line; fields are unchanged."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    num_quotes = 0
    try:
        with (
            io.TextIOWrapper(_opened(path), _with_mark(written.encoding), newline="") as reader,
            open(copy, "w", encoding="utf-8", newline="") as writer,
        ):
            held = ""  # CR and LF may be in two pieces
            while piece := reader.read(1 << 20):
                piece = held + piece
                held = "\r" if piece.endswith("\r") else ""
                piece = piece.removesuffix(held)
                parts = piece.split(written.quote) if written.quote else [piece]
                # After an odd number of quotes a field is still open.
                for index in range(num_quotes % 2, len(parts), 2):
                    parts[index] = parts[index].replace("\r\n", "\n")
                num_quotes += len(parts) - 1
                writer.write(written.quote.join(parts))
            writer.write(held)
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise _unreadable(path, key, error) from error


def _with_mark(encoding: str) -> str:
    """Return the encoding that skips a byte order mark."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _unreadable(path: Path, key: str, error: Exception) -> UserError:
    other = ""
    if isinstance(error, UnicodeError):
        other = f"; {key}.encoding names another encoding, for example latin-1, cp932 or utf-16"
    return UserError(f"{path}: cannot be read ({short(error)}){other}")


def _header(path: Path, key: str, delimiter: str, written: TextFormat) -> list[str]:
    """Return the names in the first line of a CSV file.

    Raises:
        UserError: there is no line, or it is not text of that encoding.
    """
    quoting: dict[str, Any] = (
        {"quotechar": written.quote} if written.quote else {"quoting": csv.QUOTE_NONE}
    )
    try:
        with io.TextIOWrapper(
            _opened(path), encoding=_with_mark(written.encoding), newline=""
        ) as stream:
            names = next(csv.reader(stream, delimiter=delimiter, **quoting), [])
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error) as error:
        raise _unreadable(path, key, error) from error
    if not any(names):
        raise UserError(f"{path}: empty; expected a header line with column names")
    return [name or f"column{index}" for index, name in enumerate(names)]


def _check_names(path: Path, names: list[str]) -> None:
    """Refuse names that are equal in SQL, which ignores case."""
    lower = [name.lower() for name in names]
    twice = [name for name in names if lower.count(name.lower()) > 1]
    if twice:
        raise UserError(f"{path}: columns {', '.join(twice)}: a name is given twice; rename one")
    if ROW_NUMBER in lower:
        raise UserError(f"{path}: column {ROW_NUMBER!r}: the name is taken; rename it")
