"""Raw files as DuckDB views: CSV, JSON lines or Parquet in, text columns and a row number out.

Every column is read as text, a column of lists as lists of texts, so that `row_checks` can name the row
of a value that does not fit. Rows are numbered through all files of a section, in the files' order.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.prepare.raw_files import RawFiles, find_files
from recsys.data.prepare.raw_paths import RawPath, connected, parquet_file, register
from recsys.data.prepare.text_files import Reader, csv_reader, json_reader
from recsys.data.raw_text import text_sql
from recsys.data.sql import quoted, short
from recsys.data.text_format import TextFormat
from recsys.errors import UserError

ROW_NUMBER = "source_row"
"""Column that every view has: the number of the row in its files, from 0."""


_NUMBER_IN_FILE = "file_row_number"
"""Column that the database's reader of Parquet adds on demand."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file of a section, or some rows of a Parquet file."""

    path: RawPath
    start: int = 0
    stop: int | None = None
    """Rows `start` to `stop` of the file; None: all."""


class Source:
    """Raw files of one section as a view of text columns and `source_row` (0-based, in file order)."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        view: str,
        root: RawPath,
        name: str,
        *,
        key: str,
        written: TextFormat,
        copies: Path,
        only: tuple[RawPath, ...] | None = None,
    ):
        """Open the files and create the view.

        Args:
            root: the folder `data.source`.
            name: file, folder or pattern below it (raw_files.find_files).
            key: config key of the section, for messages.
            copies: folder of rewritten copies, made if the database cannot read a text file as it is.
            only: the files to read, of those that there are; None: all.

        Raises:
            UserError: a file is missing, of another format or schema, truncated or unreadable.
        """
        self.path = root / name
        self.view = view
        self.files = find_files(root, name, key)
        if only is not None:
            self.files = dataclasses.replace(self.files, paths=only)
            self.path = only[0] if len(only) == 1 else self.path
        self.raw_paths = self.files.paths
        is_partitioned = self.files.are_partitioned
        hive = f"hive_partitioning={str(is_partitioned).lower()}"
        hive += ", hive_types_autocast=false" * is_partitioned
        kinds: dict[str, str] = {}
        try:
            if self.files.kind == "parquet":
                self.reader, names = _parquet_reader(self.files, hive)
            elif self.files.kind == "json":
                self.reader, kinds = json_reader(connection, self.files, hive)
                self.files = dataclasses.replace(self.files, paths=self.reader.paths)
                names = list(kinds)
            else:
                copies = copies / view
                self.reader, names = csv_reader(
                    self.files, hive, key=key, written=written, copies=copies
                )
            _check_names(self.files, names)
            described = connection.execute(f"DESCRIBE SELECT * FROM {self.reader.sql()}").fetchall()
        except duckdb.Error as error:
            raise UserError(f"{self.path}: cannot be read ({short(error)})") from error
        self.columns = [row[0] for row in described]
        self.kinds = {name: kinds.get(name, kind) for name, kind, *_ in described}
        self.lists = {name for name, kind in self.kinds.items() if kind.endswith("[]")}
        self._create_view(connection, self.reader.sql())

    def _create_view(self, connection: duckdb.DuckDBPyConnection, relation: str) -> None:
        texts = ", ".join(f"{self._text(c)} AS {quoted(c)}" for c in self.columns)
        connection.execute(
            f"CREATE VIEW {self.view} AS SELECT *, row_number() OVER () - 1 AS {ROW_NUMBER} "
            f"FROM (SELECT {texts} FROM {relation})"
        )

    def pieces(self, most_rows: int) -> list["Piece"]:
        """Cut the files into pieces, in row order: text by file, Parquet by `most_rows` rows."""
        found = []
        for path, read in zip(self.files.paths, self.reader.paths, strict=True):
            is_cut = self.files.kind == "parquet" and _NUMBER_IN_FILE not in self.columns
            if not is_cut:
                found.append(Piece(path=read))
                continue
            with parquet_file(path) as file:
                num_rows = file.metadata.num_rows
            starts = range(0, max(num_rows, 1), most_rows)
            found += [Piece(path=read, start=s, stop=min(s + most_rows, num_rows)) for s in starts]
        return found

    def open_piece(self, connection: duckdb.DuckDBPyConnection, piece: "Piece") -> None:
        """Create the view in another database, of one piece: its rows are numbered from 0."""
        register(connection, piece.path)
        if piece.stop is None:
            self._create_view(connection, self.reader.sql(piece.path))
            return
        options = f"{self.reader.options}, {_NUMBER_IN_FILE}=true"
        numbered = dataclasses.replace(self.reader, options=options).sql(piece.path)
        between = f"{_NUMBER_IN_FILE} >= {piece.start} AND {_NUMBER_IN_FILE} < {piece.stop}"
        self._create_view(
            connection, f"(SELECT * EXCLUDE ({_NUMBER_IN_FILE}) FROM {numbered} WHERE {between})"
        )

    def _text(self, column: str) -> str:
        return text_sql(column, self.kinds[column])

    def located(self, row: int) -> tuple[RawPath, int]:
        """Return the file of a row, and the row's number in it."""
        for path, read in zip(self.files.paths, self.reader.paths, strict=True):
            if len(self.files.paths) == 1:
                return path, row
            with connected(read) as connection:
                (count,) = connection.execute(
                    f"SELECT count(*) FROM {self.reader.sql(read)}"
                ).fetchall()[0]
            if row < count:
                return path, row
            row -= count
        raise AssertionError(f"{self.path} has no such row")

    def damage(self) -> str | None:
        """Return a sentence where a file cannot be read; None where all of its values can.

        Asked for after an error, whose cause may be a file or our SQL. Every column is read by a
        database of its own, because a failed one may answer nothing any more.
        """
        for path, read in zip(self.files.paths, self.reader.paths, strict=True):
            with connected(read) as connection:
                try:
                    connection.execute(
                        f"SELECT bit_xor(hash(COLUMNS(*))) FROM {self.reader.sql(read)}"
                    ).fetchall()
                except duckdb.Error as error:
                    return f"{path}: cannot be read ({short(error)})"
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
                f"AS is_bad FROM {self.reader.sql()}) WHERE is_bad"
            )
            try:
                count, first = connection.execute(query).fetchall()[0]
            except duckdb.Error:
                if (damage := self.damage()) is None:
                    raise
                return [damage]
            if count:
                path, row = self.located(first)
                problems.append(
                    f"{path}: column {column!r} ({key}): bytes that are not UTF-8 text: "
                    f"{count:,} row{'s' if count > 1 else ''}, first at data row {row:,}"
                )
        return problems


def _parquet_reader(files: RawFiles, hive: str) -> tuple[Reader, list[str]]:
    """Return the reader of Parquet files, and their column names.

    Raises:
        UserError: files that cannot be read, or whose columns differ from those of the first (all
            listed at once).
    """
    schemas: dict[RawPath, dict[str, str]] = {}
    names: list[str] = []
    problems = []
    for path in files.paths:
        try:
            with parquet_file(path) as file:
                # The names in the file: the database renames duplicates.
                names = names or file.schema_arrow.names
                schemas[path] = _types(file.schema)
        except (pa.ArrowException, OSError) as error:
            problems.append(f"{path}: cannot be read ({short(error)})")
    for path, own in schemas.items():
        first = next(iter(schemas))
        if differences := differences_of(own, schemas[first]):
            problems.append(f"{path}: another schema than {first}: {differences}")
    if problems:
        raise UserError("\n  ".join(problems))
    reader = Reader(
        function="read_parquet",
        paths=files.paths,
        options=hive,
        without=files.foreign_partitions,
    )
    return reader, names


def _types(schema: pq.ParquetSchema) -> dict[str, str]:
    """Return what is stored by column: the physical and logical types of its leaves."""
    types: dict[str, str] = {}
    for index in range(len(schema)):
        leaf = schema.column(index)
        name = leaf.path.split(".")[0]
        logical = "" if str(leaf.logical_type) == "None" else f" {leaf.logical_type}"
        types[name] = f"{types.get(name, '')} {leaf.physical_type}{logical}".strip()
    return types


def differences_of(own: dict[str, str], expected: dict[str, str]) -> str:
    """Return in which columns a file differs from another; empty: in none."""
    texts = [f"column {name!r} is missing" for name in expected if name not in own]
    texts += [f"column {name!r} is new" for name in own if name not in expected]
    texts += [
        f"column {name!r} is {kind} instead of {expected[name]}"
        for name, kind in own.items()
        if expected.get(name, kind) != kind
    ]
    return ", ".join(texts)


def _check_names(files: RawFiles, names: list[str]) -> None:
    """Refuse names that are equal in SQL, which ignores case, and names that folders have too."""
    lower = [name.lower() for name in names]
    twice = [name for name in names if lower.count(name.lower()) > 1]
    if twice:
        raise UserError(
            f"{files.paths[0]}: columns {', '.join(twice)}: a name is given twice; rename one"
        )
    if ROW_NUMBER in lower:
        raise UserError(f"{files.paths[0]}: column {ROW_NUMBER!r}: the name is taken; rename it")
    for column in (*files.partitions, *files.foreign_partitions):
        if column.lower() in lower:
            raise UserError(
                f"{files.paths[0]}: column {column!r} is in the file and in the name of a folder above "
                f"it; rename one"
            )
