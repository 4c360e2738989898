"""Growth of vocabularies: known ids keep their rows, and new ids follow in the order of a fresh prepare.

In: the vocabularies of prepared data, and the ids of what is appended. Out: vocabularies (id, row,
count). An id that is too rare for a row waits: its count is kept in `waiting/`, and it gets a row with
the append in which the training rows and those of all windows reach the recipe's minimum.
"""

from dataclasses import dataclass
from pathlib import Path

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.writing import write_parquet
from recsys.data.specs import vocabulary_file
from recsys.data.sql import literal
from recsys.errors import UserError
from recsys.schema import WAITING, TableSpec

ROW_TYPE = "INTEGER"
"""Type of a row's number in every file."""
MOST_IDS = 2**31 - 1
"""Ids of a vocabulary, at most: its last row's number."""


@dataclass(frozen=True, kw_only=True)
class KnownIds:
    """The ids of a table, as prepared data has them."""

    vocabulary: Table
    """(id, row, count)"""
    waiting: Table | None = None
    """(id, count) of those without a row; None: there is no such file."""


@dataclass(frozen=True, kw_only=True)
class KnownTable:
    """A feature's table as prepared data has it: its rules stay, and its ids keep their rows."""

    spec: TableSpec
    ids: KnownIds | None
    """None where the table has no vocabulary."""


def waiting_file(name: str) -> str:
    """Return the file of the ids of a table that have no row, below `prepared/`."""
    return f"{WAITING}/{name}.parquet"


def known_ids(prepared: Path, name: str) -> KnownIds:
    """Return the ids of a table called `name` of prepared data."""
    waiting = prepared / waiting_file(name)
    return KnownIds(
        vocabulary=_read(prepared / vocabulary_file(name), "id", "row", "count"),
        waiting=_read(waiting, "id", "count") if waiting.is_file() else None,
    )


def known_table(prepared: Path, spec: TableSpec) -> KnownTable:
    """Return a feature's table of prepared data."""
    return KnownTable(
        spec=spec, ids=known_ids(prepared, spec.name) if spec.kind == "vocab" else None
    )


def _read(path: Path, *columns: str) -> Table:
    return Table(f"read_parquet({literal(str(path))})", columns)


def grow_vocabulary(
    engine: Engine,
    known: KnownIds,
    counted: str,
    *,
    min_count: int,
    key: str,
    listed: str | None = None,
    only_listed: bool = False,
    fresh: str | None = None,
) -> tuple[Table, Table]:
    """Return the grown vocabulary (id, row, count), and the ids that wait (id, count).

    Args:
        counted: SQL of the different new ids and their occurrences (id, n).
        min_count: occurrences that an id needs for a row, those counted earlier included.
        key: that sets it.
        listed: SQL of ids that have a row however rare they are.
        only_listed: no other id gets one.
        fresh: of those occurrences that were never counted before, likewise; None: all of them.

    Raises:
        UserError: there are more ids than rows can be numbered.
    """
    waits = known.waiting or "(SELECT '' AS id, 0::BIGINT AS count WHERE false)"
    found = f"SELECT id, n, false AS is_listed FROM ({counted})"
    if listed:
        found += f" UNION ALL SELECT id, 0, true FROM ({listed})"
    grown = engine.create(
        "grown",
        f"SELECT a.id, greatest(a.n, coalesce(f.n, 0) + coalesce(w.count, 0)) AS n, "
        f"coalesce(f.n, 0) AS added, a.is_listed, k.row IS NOT NULL AS is_known FROM "
        f"(SELECT id, sum(n)::BIGINT AS n, bool_or(is_listed) AS is_listed FROM ({found}) "
        f"WHERE id IS NOT NULL GROUP BY id) a LEFT JOIN ({fresh or counted}) f ON f.id = a.id "
        f"LEFT JOIN {waits} w ON w.id = a.id LEFT JOIN {known.vocabulary} k ON k.id = a.id",
        is_temporary=True,
    )
    is_new = "NOT is_known AND is_listed"
    if not only_listed:
        is_new = f"NOT is_known AND (is_listed OR n >= {min_count})"
    last = f"(SELECT coalesce(max(row), 0) FROM {known.vocabulary})"
    vocabulary = create_vocabulary(
        engine,
        "vocabulary",
        f"SELECT k.id, k.row, k.count + coalesce(c.added, 0) AS count FROM {known.vocabulary} k "
        f"LEFT JOIN {grown} c ON c.id = k.id UNION ALL SELECT id, {row_number_sql(last)} AS row, "
        f"n AS count FROM {grown} WHERE {is_new}",
        key,
    )
    waiting = engine.create(
        "waiting",
        f"SELECT id, n AS count FROM {grown} WHERE NOT is_known AND NOT ({is_new}) UNION ALL "
        f"SELECT w.id, w.count FROM {waits} w WHERE NOT EXISTS (SELECT 1 FROM {grown} c "
        f"WHERE c.id = w.id)",
        is_temporary=True,
    )
    engine.drop(grown)
    return vocabulary, waiting


def row_number_sql(last: str = "0") -> str:
    """SQL of the number of the row of a line (id, n): by falling count, then id; NULL: too great.

    Args:
        last: SQL of the last number that is given already.
    """
    return f"TRY_CAST({last} + row_number() OVER (ORDER BY n DESC, id) AS {ROW_TYPE})"


def create_vocabulary(engine: Engine, name: str, query: str, key: str) -> Table:
    """Return a table (id, row, count) of a query whose rows are of `row_number_sql`.

    Args:
        name: for people who look into the database.
        key: of the least count of an id.

    Raises:
        UserError: there are more ids than rows can be numbered.
    """
    vocabulary = engine.create(name, query)
    num_ids, num_rows = engine.one(f"SELECT count(*), count(row) FROM {vocabulary}")
    if num_rows < num_ids:
        raise UserError(
            f"{key}: {num_ids:,} ids reach it, and a table has at most {MOST_IDS:,}; raise it, or set "
            f"hash_rows for a feature of the log"
        )
    return vocabulary


def rare_ids(counted: str, vocabulary: Table) -> str:
    """SQL of (id, count) of the ids that a vocabulary has left out.

    Args:
        counted: SQL of the different ids and their occurrences (id, n).
    """
    return (
        f"SELECT id, n AS count FROM ({counted}) i WHERE id IS NOT NULL AND NOT EXISTS "
        f"(SELECT 1 FROM {vocabulary} v WHERE v.id = i.id)"
    )


def write_waiting(engine: Engine, name: str, query: str, prepared: Path) -> None:
    """Write the ids of a table that wait for a row; `query`: SQL of (id, count)."""
    path = prepared / waiting_file(name)
    path.parent.mkdir(exist_ok=True)
    write_parquet(engine, f"SELECT id, count FROM ({query}) ORDER BY id", path)
