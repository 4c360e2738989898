"""Text files as SQL that reads them: CSV by the recipe's format, JSON lines by their own keys.

In: the files of a section. Out: SQL of the database's reader. Called by sources.py. Nothing is detected
in CSV: detection may skip the header or split lines.
"""

import codecs
import csv
import dataclasses
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from recsys.data.prepare.raw_files import ATOMIC, RawFiles
from recsys.data.prepare.raw_paths import RawPath, opened_text
from recsys.data.sql import literal, quoted, short
from recsys.data.text_format import TextFormat
from recsys.errors import UserError

_ATOMIC_TYPE = ":(token|token_seq|float|float_seq)$"
"""What a column name of RecBole's ends with."""
_BUFFER_BYTES = 8_000_000
"""Text that the database reads at a time; its own default, 32 MB for each of several scans, is a lot of a
small memory_limit."""
_LINE_BYTES = 2_000_000
"""Longest line, the database's own default."""
_BROKEN = (OSError, EOFError, zlib.error, UnicodeError, csv.Error)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The database's reader of some files."""

    function: str
    """Of SQL, such as `read_csv`."""
    paths: tuple[RawPath, ...]
    """Files that are read: those of the section, or copies of them, in the same order."""
    options: str
    """Named arguments of the function."""
    without: tuple[str, ...] = ()
    """Columns of the function's result that are none of the files'."""

    def sql(self, *paths: RawPath) -> str:
        """Return SQL that can follow FROM and reads some of the files; none given: all."""
        call = f"{self.function}({path_list(paths or self.paths)}, {self.options})"
        excluded = ", ".join(map(quoted, self.without))
        return f"(SELECT * EXCLUDE ({excluded}) FROM {call})" if excluded else call


def csv_reader(
    files: RawFiles, hive: str, *, key: str, written: TextFormat, copies: Path
) -> tuple[Reader, list[str]]:
    """Return the reader of CSV files, and their column names.

    Args:
        hive: options of the reader for columns from folders.
        key: config key of the section, for messages.
        copies: folder of rewritten copies, made if the database cannot read the files as they are.

    Raises:
        UserError: files without a header, or with different ones (all listed at once).
    """
    first = files.paths[0]
    plain = first.name.lower().removesuffix(".gz").removesuffix(".zst")
    delimiter = written.delimiter or ("\t" if plain.endswith((".tsv", *ATOMIC)) else ",")
    names = written.header or _common_header(files, key, delimiter, written)
    if plain.endswith(ATOMIC):
        names = [re.sub(_ATOMIC_TYPE, "", name) for name in names]
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    paths: tuple[RawPath, ...] = files.paths
    compression = files.compression
    is_utf8 = codecs.lookup(written.encoding).name == "utf-8"
    if not is_utf8 or _have_mixed_line_ends(files):
        # The copies keep the folders, whose names may be columns.
        copies_of = [copies / str(n) / _folders(path) / "x.csv" for n, path in enumerate(paths)]
        for path, copy in zip(files.paths, copies_of, strict=True):
            _rewrite(path, copy, files.compression, key, written)
        paths, compression = tuple(copies_of), "none"
    options = (
        f"auto_detect=false, columns={{{columns}}}, "
        f"delim={literal(delimiter)}, header={'false' if written.header else 'true'}, "
        f"quote={literal(written.quote)}, escape={literal(written.quote)}, "
        f"buffer_size={_BUFFER_BYTES}, max_line_size={_LINE_BYTES}, "
        f"compression={literal(compression)}, {hive}"
    )
    reader = Reader(
        function="read_csv", paths=paths, options=options, without=files.foreign_partitions
    )
    return reader, list(names)


def json_reader(
    connection: duckdb.DuckDBPyConnection, files: RawFiles, hive: str
) -> tuple[Reader, dict[str, str]]:
    """Return the reader of JSON lines, and the kind of every key: text, list of texts, or neither.

    Keys are those of any line; a line that lacks one has a null. Empty files are left out: the database
    expects an object in every one.

    Raises:
        duckdb.Error: a line is no JSON object.
        UserError: all files are empty, or one cannot be read.
    """
    files = dataclasses.replace(files, paths=tuple(filter(_holds_text, files.paths)))
    if not files.paths:
        raise UserError(f"{files.place}: empty; expected lines of JSON objects")
    options = (
        f"format='newline_delimited', records='true', compression={literal(files.compression)}"
    )
    paths = path_list(files.paths)
    described = connection.execute(
        f"DESCRIBE SELECT * FROM read_json({paths}, {options}, sample_size=-1, maximum_depth=2, "
        f"hive_partitioning=false)"
    ).fetchall()
    kinds = {name: _json_kind(kind) for name, kind, *_ in described}
    columns = ", ".join(
        f"{literal(name)}: {literal(kind if kind == 'VARCHAR[]' else 'VARCHAR')}"
        for name, kind in kinds.items()
    )
    reader = Reader(
        function="read_json",
        paths=files.paths,
        options=f"{options}, columns={{{columns}}}, {hive}",
        without=files.foreign_partitions,
    )
    return reader, kinds


def _json_kind(kind: str) -> str:
    """Return the kind of a key: texts as they are written for all single values."""
    if kind.startswith(("STRUCT", "MAP")):
        return "STRUCT"
    if kind.endswith("[]"):
        return "VARCHAR[]" if not kind.startswith(("STRUCT", "MAP")) else "STRUCT[]"
    return "VARCHAR"


def path_list(paths: Sequence[RawPath]) -> str:
    """SQL list of paths whose wildcards are escaped.

    Raises:
        UserError: one has both a backslash and a wildcard, which the database cannot escape.
    """
    for path in paths:
        if "\\" in str(path) and any(letter in str(path) for letter in "*?["):
            raise UserError(f"{path}: a path with a backslash and one of * ? [ ]; rename it")
    escape = str.maketrans({letter: f"[{letter}]" for letter in "*?["})
    return f"[{', '.join(literal(str(path).translate(escape)) for path in paths)}]"


def _folders(path: RawPath) -> Path:
    """Return the folders of a path that name columns."""
    return Path(*[part for part in path.parent.parts if "=" in part])


def _common_header(files: RawFiles, key: str, delimiter: str, written: TextFormat) -> list[str]:
    """Return the column names of all files.

    Raises:
        UserError: files that cannot be read, or whose names differ from those of the first.
    """
    names, problems = {}, []
    for path in files.paths:
        try:
            names[path] = _header(path, files.compression, key, delimiter, written)
        except UserError as error:
            problems.append(str(error))
    for path, own in names.items():
        expected = next(iter(names.values()))
        if own != expected:
            problems.append(
                f"{path}: another schema: its header is {', '.join(own)}, that of {next(iter(names))} "
                f"{', '.join(expected)}"
            )
    if problems:
        raise UserError("\n  ".join(problems))
    return names[files.paths[0]]


def _holds_text(path: RawPath) -> bool:
    """Return whether a text file has anything but blanks at its start.

    Raises:
        UserError: it cannot be read.
    """
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower(), "none")
    try:
        with opened_text(path, compression) as stream:
            return bool(stream.read(1 << 16).strip())
    except _BROKEN as error:
        raise UserError(f"{path}: cannot be read ({short(error)})") from error


def _have_mixed_line_ends(files: RawFiles) -> bool:
    """Return whether some lines end with CRLF and some with LF: the database expects one of them."""
    num_crlf = num_lf = 0
    for path in files.paths:
        last = b""
        try:
            with opened_text(path, files.compression) as stream:
                while piece := stream.read(1 << 20):
                    num_crlf += piece.count(b"\r\n") + (last == b"\r" and piece[:1] == b"\n")
                    num_lf += piece.count(b"\n")
                    last = piece[-1:]
        except _BROKEN as error:
            raise UserError(f"{path}: cannot be read ({short(error)})") from error
    return 0 < num_crlf < num_lf


def _rewrite(path: RawPath, copy: Path, compression: str, key: str, written: TextFormat) -> None:
    """Write a copy of a text file in UTF-8, with LF at the end of every line; fields are unchanged."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    num_quotes = 0
    encoding = _with_mark(written.encoding)
    try:
        with (
            opened_text(path, compression) as stream,
            io.TextIOWrapper(stream, encoding, newline="") as reader,
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
    except _BROKEN as error:
        raise _unreadable(path, key, error) from error


def _with_mark(encoding: str) -> str:
    """Return the encoding that skips a byte order mark."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _unreadable(path: RawPath, key: str, error: Exception) -> UserError:
    other = ""
    if isinstance(error, UnicodeError):
        other = f"; {key}.encoding names another encoding, for example latin-1, cp932 or utf-16"
    return UserError(f"{path}: cannot be read ({short(error)}){other}")


def _header(
    path: RawPath, compression: str, key: str, delimiter: str, written: TextFormat
) -> list[str]:
    """Return the names in the first line of a CSV file.

    Raises:
        UserError: there is no line, or it is not text of that encoding.
    """
    quoting: dict[str, Any] = (
        {"quotechar": written.quote} if written.quote else {"quoting": csv.QUOTE_NONE}
    )
    encoding = _with_mark(written.encoding)
    try:
        with (
            opened_text(path, compression) as stream,
            io.TextIOWrapper(stream, encoding, newline="") as text,
        ):
            names = next(csv.reader(text, delimiter=delimiter, **quoting), [])
    except _BROKEN as error:
        raise _unreadable(path, key, error) from error
    if not any(names):
        raise UserError(f"{path}: empty; expected a header line with column names")
    return [name or f"column{index}" for index, name in enumerate(names)]
