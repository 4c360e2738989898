"""Raw files as DuckDB views: CSV or Parquet in, text columns and a row number out.

Every column is read as text, so that `checks` can name the row that does not fit. Called by prepare.
"""

import csv
import gzip
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

ROW_NUMBER = "source_row"
"""Column that every view has: the row's place in its file."""

LIST_SEPARATOR = "\x1f"
"""Joins the elements of a Parquet list to one text; never found inside an id."""


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return an SQL string."""
    return "'" + text.replace("'", "''") + "'"


class Source:
    """One raw file as a view of text columns and `source_row` (0-based, file order)."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        view: str,
        path: Path,
        *,
        delimiter: str = ",",
        header: list[str] | None = None,
    ):
        """Open the file and create the view.

        Args:
            header: column names of a CSV file without a header line.

        Raises:
            ValueError: the file is missing, of another format, truncated or unreadable.
        """
        self.path = path
        self.view = view
        if not path.is_file():
            raise ValueError(f"{path}: no such file; check data.source and the recipe's file names")
        if path.suffix == ".parquet":
            reader = f"read_parquet({literal(str(path))})"
        elif path.suffix in (".csv", ".tsv", ".txt", ".gz"):
            # Nothing is guessed: a guess from the first rows may skip the header or split lines.
            names = header or _header(path, delimiter)
            _check_names(path, names)
            columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
            reader = (
                f"read_csv({literal(str(path))}, auto_detect=false, columns={{{columns}}}, "
                f"delim={literal(delimiter)}, header={'false' if header else 'true'}, "
                f"quote='\"', escape='\"')"
            )
        else:
            raise ValueError(f"{path}: expected a .parquet, .csv, .tsv, .txt or .gz file")
        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
            self.columns = [row[0] for row in described]
            self.kinds = {name: kind for name, kind, *_ in described}
            self.lists = {name for name, kind in self.kinds.items() if kind.endswith("[]")}
            if path.suffix == ".parquet":
                # As they stand in the file: the database renames twins.
                _check_names(path, pq.read_schema(path).names)
            texts = ", ".join(f"{self._text(c)} AS {quoted(c)}" for c in self.columns)
            connection.execute(
                f"CREATE VIEW {view} AS SELECT *, row_number() OVER () - 1 AS {ROW_NUMBER} "
                f"FROM (SELECT {texts} FROM {reader})"
            )
        except (duckdb.Error, pa.ArrowException) as error:
            raise ValueError(f"{path}: cannot be read ({short(error)})") from error

    def _text(self, column: str) -> str:
        if column in self.lists:
            elements = f"CAST({quoted(column)} AS VARCHAR[])"
            return f"array_to_string({elements}, {literal(LIST_SEPARATOR)})"
        if self.kinds[column] in ("FLOAT", "DOUBLE"):
            # What pandas writes where there is no value. As text: of numbers the database believes
            # a Parquet file's bounds, which leave nan out.
            return f"nullif(CAST({quoted(column)} AS VARCHAR), 'nan')"
        return f"CAST({quoted(column)} AS VARCHAR)"

    def missing_columns(self, wanted: dict[str, str | None]) -> list[str]:
        """Return a sentence for every wanted column that the file lacks; `wanted`: key -> column."""
        return [
            f"{self.path}: column {column!r} ({key}) is missing; the file has "
            f"{', '.join(self.columns)}"
            for key, column in wanted.items()
            if column is not None and column not in self.columns
        ]

    def nested_columns(self, wanted: dict[str, str | None]) -> list[str]:
        """Return a sentence for every wanted column that holds several values a row."""
        return [
            f"{self.path}: column {column!r} ({key}) holds {self.kinds[column]}; expected one value "
            f"a row"
            for key, column in wanted.items()
            if column in self.kinds
            and (column in self.lists or self.kinds[column].startswith(("STRUCT", "MAP", "UNION")))
        ]


def _header(path: Path, delimiter: str) -> list[str]:
    """Return the names in the first line of a CSV file.

    Raises:
        ValueError: there is no line, or it is not UTF-8 text.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            names = next(csv.reader(stream, delimiter=delimiter), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({short(error)})") from error
    if not any(names):
        raise ValueError(f"{path}: empty; expected a header line with column names")
    return [name or f"column{index}" for index, name in enumerate(names)]


def _check_names(path: Path, names: list[str]) -> None:
    """Refuse names that SQL cannot tell apart: it takes upper for lower case."""
    lower = [name.lower() for name in names]
    twice = [name for name in names if lower.count(name.lower()) > 1]
    if twice:
        raise ValueError(f"{path}: columns {', '.join(twice)}: a name is given twice; rename one")
    if ROW_NUMBER in lower:
        raise ValueError(f"{path}: column {ROW_NUMBER!r}: the name is taken; rename it")


def short(error: Exception) -> str:
    """Return what an error says, in one line and without advice on options a recipe lacks."""
    lines: list[str] = []
    for line in str(error).splitlines():
        if not line.strip() or line.startswith("Possible"):
            break
        line = line.strip()
        # A line of the file may be as long as it likes.
        lines.append(line if len(line) <= 160 else f"{line[:120]}... ({len(line):,} characters)")
    return "; ".join(lines)[:800]
