"""Engine: the DuckDB database of one preparation, and handles of its tables.

A step of prepare takes tables and returns tables. `Engine.create` gives each table a name of its own,
so a step can read only what it was given. The SQL of a step names its inputs through their handles;
another engine may therefore run it on a part of each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from recsys.data.sql import literal, short
from recsys.errors import UserError

BATCH_ROWS = 65_536
"""Rows of the record batches in which query results arrive, at most."""
Count = Callable[[str], str]
"""Count of equal rows: SQL of rows to SQL of the different ones, with another column `n`."""


def count_rows(query: str) -> str:
    """SQL of the different rows of a query, and how many of each there are: (..., n)."""
    return f"SELECT *, count(*) AS n FROM ({query}) GROUP BY ALL"


@dataclass(frozen=True)
class Table:
    """Handle of a relation of the database; formatted into SQL, it gives the relation."""

    relation: str
    """SQL that can follow FROM: a name, or a function that reads a file."""
    columns: tuple[str, ...]
    """Names of its columns, in order."""

    def __str__(self) -> str:
        return self.relation

    def needs(self, *columns: str) -> None:
        """Assert that the columns a step reads are there."""
        missing = [column for column in columns if column not in self.columns]
        assert not missing, f"table {self.relation} lacks {missing}; it has {self.columns}"


class Engine:
    """One DuckDB connection, and a folder for intermediate files."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, scratch: Path):
        """Args: scratch: an existing folder, removed after the last step."""
        self.connection = connection
        self.scratch = scratch
        self._num_names = 0

    def unused(self, name: str) -> str:
        """Return a table name that was never given before; `name` says in it what the table holds."""
        self._num_names += 1
        return f"t{self._num_names}_{name}"

    def create(self, name: str, query: str, *, is_temporary: bool = False) -> Table:
        """Create a table from a query.

        Args:
            name: for people who look into the database.
            is_temporary: kept uncompressed and never written to the database file.
        """
        made = self.unused(name)
        self.connection.execute(f"CREATE {'TEMP ' * is_temporary}TABLE {made} AS {query}")
        return self.handle(made)

    def create_from(self, name: str, rows: pa.Table) -> Table:
        """Create a table from rows in memory; `name`: for people who look into the database."""
        given = self.unused("given")
        self.connection.register(given, rows)
        table = self.create(name, f"SELECT * FROM {given}")
        self.connection.unregister(given)
        return table

    def register(self, relation: str, rows: pa.Table) -> Table:
        """Return the handle of rows in memory, which SQL reads as `relation` without a copy."""
        self.connection.register(relation, rows)
        return Table(relation, tuple(rows.column_names))

    def handle(self, relation: str) -> Table:
        """Return the handle of a relation that the database has."""
        described = self.connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
        return Table(relation, tuple(row[0] for row in described))

    @contextmanager
    def joins_as_written(self) -> Iterator[None]:
        """Hold the right side of every join of a block in memory, and stream the left one.

        The database takes a text file for one of few rows, and would hold all of its texts.
        """
        self.connection.execute("SET disabled_optimizers = 'build_side_probe_side,join_order'")
        try:
            yield
        finally:
            self.connection.execute("RESET disabled_optimizers")

    def append(self, table: Table, query: str) -> None:
        """Add the rows of a query to a table, column by column in order."""
        self.connection.execute(f"INSERT INTO {table} {query}")

    def delete(self, table: Table, where: str) -> None:
        """Remove the rows of a table that fulfil a condition."""
        self.connection.execute(f"DELETE FROM {table} WHERE {where}")

    def drop(self, *tables: Table) -> None:
        """Remove tables that no later step reads."""
        for table in tables:
            self.connection.execute(f"DROP TABLE {table}")

    def one(self, query: str) -> tuple:
        """Return the only row of an aggregate."""
        return self.rows(query)[0]

    def rows(self, query: str) -> list[tuple]:
        """Return all rows of a small result."""
        return self.connection.execute(query).fetchall()

    def count(self, table: Table, where: str = "true") -> int:
        """Return how many rows of a table fulfil a condition."""
        return self.one(f"SELECT count(*) FROM {table} WHERE {where}")[0]

    def batches(self, query: str) -> pa.RecordBatchReader:
        """Stream a query's result in record batches of at most BATCH_ROWS rows."""
        relation = self.connection.sql(query)
        assert relation is not None, "a SELECT has a result"
        return relation.to_arrow_reader(BATCH_ROWS)


@contextmanager
def opened_engine(
    scratch: Path,
    memory_limit: str,
    threads: int,
    *,
    is_on_disk: bool = True,
    more_advice: str = "",
) -> Iterator[Engine]:
    """Open a database in a new folder `scratch`; close it at the end.

    Args:
        is_on_disk: tables are compressed and written to a file; otherwise only what does not fit into
            memory is written, which costs less where tables are read once.
        more_advice: other settings to change where the memory does not suffice.

    Raises:
        UserError: the path, the memory limit or the number of threads is none for the database, or the
            block needs more memory.
    """
    if "?" in str(scratch):  # it takes what follows for parameters of a URL
        raise UserError(
            f"workspace={scratch.parent.parent}: a question mark in a workspace's path, which the "
            f"database cannot open; rename the folder"
        )
    scratch.mkdir()
    connection = duckdb.connect(str(scratch / "work.duckdb") if is_on_disk else ":memory:")
    try:
        try:
            connection.execute(f"SET memory_limit = {literal(memory_limit)}")
            connection.execute(f"SET threads = {threads}")
        except duckdb.Error as error:
            given = f"memory_limit={memory_limit!r}, run.threads={threads!r}"
            raise UserError(f"{given}: {short(error)}") from error
        # Times without a zone mean UTC, on every machine.
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET temp_directory = {literal(str(scratch / 'spill'))}")
        connection.execute("SET preserve_insertion_order = true")
        connection.execute("SET enable_progress_bar = false")
        with _naming_memory(memory_limit, threads, more_advice):
            yield Engine(connection, scratch)
    finally:
        connection.close()


@contextmanager
def _naming_memory(memory_limit: str, threads: int, more_advice: str) -> Iterator[None]:
    """Name the settings to change where the database runs out of memory in a block.

    Raises:
        UserError: in the place of the database's error, or of Arrow's, which reads its streams.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, OSError) as error:
        if isinstance(error, OSError) and "Out of Memory Error" not in str(error):
            raise
        raise UserError(
            f"memory_limit={memory_limit} with run.threads={threads}: not enough for this data "
            f"({short(error)}); raise memory_limit or lower run.threads{more_advice}"
        ) from error
