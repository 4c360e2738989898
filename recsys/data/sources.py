"""Raw files as DuckDB views: CSV or Parquet in, text columns and a row number out.

Every column is read as text, so that `checks` can name the row that does not fit. Called by prepare.
"""

from pathlib import Path

import duckdb


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
            names = ""
            if header:
                names = ", names=[" + ", ".join(literal(n) for n in header) + "]"
            reader = (
                f"read_csv({literal(str(path))}, all_varchar=true, delim={literal(delimiter)}, "
                f"header={'false' if header else 'true'}, quote='\"', escape='\"'{names})"
            )
        else:
            raise ValueError(f"{path}: expected a .parquet, .csv, .tsv, .txt or .gz file")
        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
            self.columns = [row[0] for row in described]
            texts = ", ".join(f"CAST({quoted(c)} AS VARCHAR) AS {quoted(c)}" for c in self.columns)
            connection.execute(
                f"CREATE VIEW {view} AS SELECT *, row_number() OVER () - 1 AS source_row "
                f"FROM (SELECT {texts} FROM {reader})"
            )
        except duckdb.Error as error:
            raise ValueError(f"{path}: cannot be read ({first_line(error)})") from error

    def missing_columns(self, wanted: dict[str, str | None]) -> list[str]:
        """Return a sentence for every wanted column that the file lacks; `wanted`: key -> column."""
        return [
            f"{self.path}: column {column!r} ({key}) is missing; the file has "
            f"{', '.join(self.columns)}"
            for key, column in wanted.items()
            if column is not None and column not in self.columns
        ]


def first_line(error: Exception) -> str:
    """Return the first line of a database error, the part that says what is wrong."""
    return str(error).splitlines()[0]
