"""Steps of prepare on one partition of the log: each opens a database of its own, in a worker of Ray.

In: the partition's tables, and pieces of other partitions' tables. Out: a small summary for the driver,
then tables, some of them cut by the partition that reads each piece next. The SQL is that of the other
files of this folder; here it is only said which rows it runs on. Called by ray_rows.py through Ray.
Shapes: N rows of a table, P partitions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.prepare.checks import naming_damaged_files
from recsys.data.prepare.dense import DenseColumn
from recsys.data.prepare.engine import Engine, Table, count_rows
from recsys.data.prepare.history import build_sequences, ends_sql, stored_splits, stored_sql
from recsys.data.prepare.interactions import split_rows
from recsys.data.prepare.log_rows import log_rows_sql, odd_times_sql
from recsys.data.prepare.negatives import add_negatives, draw_negatives, numbered_sql
from recsys.data.prepare.numbering import SplitCounts, count_splits, place
from recsys.data.prepare.sources import Piece, Source
from recsys.data.prepare.split import order_hash, split_log
from recsys.data.prepare.timestamps import TimeFormat
from recsys.data.prepare.vocab import FeatureRows
from recsys.data.prepare.window import named_sql
from recsys.data.prepare.writing import row_groups, write_part
from recsys.data.recipe import Recipe
from recsys.data.sql import quoted
from recsys.errors import UserError
from recsys.files import new_file
from recsys.schema import HistorySpec

PART = "_part"
"""Column of the partition that a row goes to; no feature's name begins with an underscore."""
SPLIT = "_split"
"""Column of the split of a row whose columns are those of the files."""
Tables = Mapping[str, Table]
Result = tuple[Any, ...]
"""A summary, then tables."""


# Cutting rows by partition


def split_by_part(table: pa.Table, num_parts: int) -> list[pa.Table]:
    """Cut a table [N] by its column PART into tables without it [P]; rows keep their order."""
    part_N = table.column(PART).to_numpy()
    order_N = np.argsort(part_N, kind="stable")
    bounds = np.searchsorted(part_N[order_N], np.arange(num_parts + 1))
    rows = table.drop_columns([PART]).take(pa.array(order_N)).combine_chunks()
    return [
        rows.slice(start, stop - start) for start, stop in zip(bounds, bounds[1:], strict=False)
    ]


def split_by_range(table: pa.Table, key: str, last_rows: NDArray[np.int64]) -> list[pa.Table]:
    """Cut a table by ranges of a column [P]; rows keep their order.

    Args:
        last_rows: last value of each range but the last [P - 1].
    """
    part_N = np.searchsorted(last_rows, table.column(key).to_numpy()).astype(np.int32)
    return split_by_part(table.append_column(PART, pa.array(part_N)), len(last_rows) + 1)


def blocks(reader: pa.RecordBatchReader, most_rows: int) -> Iterator[pa.Table]:
    """Join a stream's batches to tables of about `most_rows` rows; there is at least one."""
    held: list[pa.RecordBatch] = []
    num_rows = 0
    is_first = True
    for batch in reader:
        held.append(batch)
        num_rows += batch.num_rows
        if num_rows >= most_rows:
            yield pa.Table.from_batches(held, reader.schema)
            held, num_rows, is_first = [], 0, False
    if held or is_first:
        yield pa.Table.from_batches(held, reader.schema)


def arrow(engine: Engine, query: str) -> pa.Table:
    """Return the result of a query."""
    return engine.batches(query).read_all()


def _parts(engine: Engine, query: str, num_parts: int) -> list[pa.Table]:
    return split_by_part(arrow(engine, query), num_parts)


# Reading


def scan_piece(engine: Engine, _: Tables, *, source: Source, piece: Piece, query: str) -> Result:
    """Return the only row of an aggregate over a piece, or what is wrong with the piece's file."""
    try:
        with naming_damaged_files([source]):
            source.open_piece(engine.connection, piece)
            return ((engine.one(query), None),)
    except UserError as error:
        return ((None, str(error)),)


def read_piece(
    engine: Engine,
    *,
    recipe: Recipe,
    source: Source,
    times: TimeFormat | None,
    piece: Piece,
    first_row_id: int,
    split: int,
    key: str,
    num_parts: int,
    most_rows: int,
) -> Iterator[pa.Table]:
    """Yield the typed rows of a piece of the log by blocks, each as P tables by the hash of `key`."""
    with naming_damaged_files([source]):
        source.open_piece(engine.connection, piece)
        rows = log_rows_sql(
            recipe.interactions, source, times, first_row_id=first_row_id, split=split
        )
        for block in blocks(engine.batches(part_sql(rows, key, num_parts)), most_rows):
            yield from split_by_part(block, num_parts)


def part_sql(query: str, key: str, num_parts: int) -> str:
    """SQL of the rows of a query, with the partition of each by the hash of a column."""
    return f"SELECT *, CAST(hash({key}) % {num_parts} AS INTEGER) AS {PART} FROM ({query})"


def describe_log(engine: Engine, tables: Tables) -> Result:
    """Return the latest time and the number of rows in the future."""
    return (engine.one(odd_times_sql(tables["log"])),)


def drop_items(engine: Engine, tables: Tables) -> Result:
    """Return the rows of the log without those of listed items."""
    kept = f"SELECT * FROM {tables['log']} WHERE item_id NOT IN (SELECT item_id FROM {tables['dropped']})"
    return None, arrow(engine, kept)


# Counting equal rows


def count_part(engine: Engine, _: Tables, *, query: str) -> Result:
    """Return the different rows of a query with their number `n`; the summary: how many there are."""
    counted = arrow(engine, count_rows(query))
    return counted.num_rows, counted


def cut_counts(engine: Engine, tables: Tables, *, num_parts: int) -> Result:
    """Return counted rows as P tables by the hash of their values."""
    counted = tables["counted"]
    values = ", ".join(quoted(column) for column in counted.columns if column != "n")
    return None, *_parts(engine, part_sql(f"SELECT * FROM {counted}", values, num_parts), num_parts)


def add_counts(engine: Engine, tables: Tables) -> Result:
    """Return the counted rows of several partitions, equal ones added up."""
    return None, arrow(engine, added_sql(tables["counted"]))


def added_sql(counted: Table) -> str:
    """SQL of counted rows with equal ones added up."""
    return f"SELECT * EXCLUDE (n), CAST(sum(n) AS BIGINT) AS n FROM {counted} GROUP BY ALL"


# Splits, rows of tables, negatives


def split_part(engine: Engine, tables: Tables, *, recipe: Recipe, bounds: Sequence[int]) -> Result:
    """Return the splits of the rows (row_id, split)."""
    splits = split_log(engine, tables["log"], recipe.split, bounds)
    return None, arrow(engine, f"SELECT * FROM {splits}")


def place_part(engine: Engine, tables: Tables, *, recipe: Recipe) -> Result:
    """Return the placed rows; the summary: the counts of each split, and the columns."""
    log, items = tables["log"], tables["items"]
    needed = engine.create(
        "items", f"SELECT * FROM {items} WHERE id IN (SELECT item_id FROM {log})"
    )
    placed = place(engine, recipe, log, tables["splits"], tables["users"], needed)
    return (count_splits(engine, placed), placed.columns), arrow(engine, f"SELECT * FROM {placed}")


def select_part(engine: Engine, _: Tables, *, query: str) -> Result:
    """Return the rows of a query."""
    return None, arrow(engine, query)


def draw_part(
    engine: Engine,
    tables: Tables,
    *,
    recipe: Recipe,
    first_row_id: int,
    rows_per_part: int,
    num_parts: int,
) -> Result:
    """Return drawn negatives, and their keys (row_id, k) as P tables by ranges of row ids.

    The summary: how many keys each of the tables has [P].

    Args:
        tables: with the pools by number of the split, and of an append `earlier` (user_row, item_row),
            the positives before it, and the `items` that these are.
        first_row_id: of the log.
        rows_per_part: row ids of a range.
    """
    negatives = recipe.interactions.negatives
    assert negatives is not None, "asked for only where there are some"
    pools = [tables[name] for name in sorted(tables) if name.startswith("pool_")]
    earlier = None
    if "earlier" in tables:
        users = f"(SELECT DISTINCT user_id AS id, user_row AS row FROM {tables['placed']})"
        named = named_sql(f"SELECT * FROM {tables['earlier']}", users, tables["items"])
        earlier = engine.create("earlier", named, is_temporary=True)
    drawn = draw_negatives(engine, negatives, tables["placed"], pools, earlier)
    part = f"CAST((row_id - {first_row_id}) // {rows_per_part} AS INTEGER)"
    keys = f"SELECT row_id, k, {part} AS {PART} FROM {drawn}"
    parts = _parts(engine, keys, num_parts)
    return [part.num_rows for part in parts], arrow(engine, f"SELECT * FROM {drawn}"), *parts


def number_part(
    engine: Engine,
    tables: Tables,
    *,
    first_row_id: int,
    num_rows: Sequence[int],
) -> Result:
    """Return the numbers of drawn negatives, as P tables (row_id, k, number) by where they were.

    Args:
        num_rows: rows of `keys` from each partition, in order [P].
    """
    keys = tables["keys"]
    part_N = np.repeat(np.arange(len(num_rows), dtype=np.int32), num_rows)
    whole = arrow(engine, f"SELECT * FROM {keys}").append_column(PART, pa.array(part_N))
    known = engine.register("known_keys", whole)
    numbered = numbered_sql(keys, first_row_id)
    rows = f"SELECT n.*, w.{PART} FROM ({numbered}) n JOIN {known} w USING (row_id, k)"
    return None, *_parts(engine, rows, len(num_rows))


def add_part(engine: Engine, tables: Tables) -> Result:
    """Return the placed rows with the drawn negatives; the summary: the counts of each split."""
    placed = engine.create("placed", f"SELECT * FROM {tables['placed']}")
    add_negatives(engine, placed, tables["drawn"], f"SELECT * FROM {tables['numbers']}")
    return count_splits(engine, placed), arrow(engine, f"SELECT * FROM {placed}")


# Histories and files


def histories_part(
    engine: Engine, tables: Tables, *, history: HistorySpec, last_rows: NDArray[np.int64]
) -> Result:
    """Return the ends of the rows' histories, and of each stored split each sequence's items by user row.

    Args:
        last_rows: last user row of each range but the last [P - 1].
    """
    ends: list[pa.Table] = []
    stored: list[pa.Table] = []
    for split in stored_splits(history):
        sequences = build_sequences(engine, tables["placed"], history, split)
        ends.append(arrow(engine, ends_sql(sequences, history.sequences)))
        for name in history.sequences:
            rows = arrow(engine, stored_sql(sequences, name))
            stored += split_by_range(rows, "key", last_rows)
        engine.drop(sequences)
    return None, pa.concat_tables(ends), *stored


def sort_stored(engine: Engine, tables: Tables) -> Result:
    """Return the stored items of a range of user rows, by user row; a user's keep their order."""
    rows = arrow(engine, f"SELECT * FROM {tables['stored']}")
    order_N = np.argsort(rows.column("key").to_numpy(), kind="stable")
    return None, rows.take(pa.array(order_N)).combine_chunks()


def rows_part(
    engine: Engine,
    tables: Tables,
    *,
    recipe: Recipe,
    features: Mapping[str, FeatureRows | DenseColumn],
    num_parts: int,
) -> Result:
    """Return the rows of files as P tables by ranges of the order hash; the summary: longest lists."""
    placed = engine.create("placed", f"SELECT * FROM {tables['placed']}")
    needed = {name: _needed(engine, rows, placed) for name, rows in features.items()}
    rows = split_rows(engine, recipe.interactions, placed, tables.get("ends"), needed)
    order = order_hash(recipe.split.seed, "p.row_id")
    # The upper half of the hash: a product with the whole of it would not fit its type.
    part = f"CAST((({order} >> 32) * {num_parts}) >> 32 AS INTEGER)"
    query = f"SELECT {', '.join(rows.columns)}, p.split AS {SPLIT}, {part} AS {PART} FROM {rows.relation}"
    return rows.longest, *_parts(engine, query, num_parts)


def _needed(
    engine: Engine, rows: FeatureRows | DenseColumn, placed: Table
) -> FeatureRows | DenseColumn:
    """Return a feature that reads these rows, with the part of its vocabulary that they need."""
    if isinstance(rows, DenseColumn):
        return rows
    column = rows.spec.name
    own = f"SELECT row_id AS key, {quoted(column)} AS value FROM {placed}"
    rows = FeatureRows(spec=rows.spec, relation=own, vocabulary=rows.vocabulary)
    if rows.vocabulary is None:
        return rows
    query = f"SELECT * FROM {rows.vocabulary} WHERE id IN (SELECT id FROM ({rows.ids()}))"
    vocabulary = engine.create("needed", query)
    return FeatureRows(spec=rows.spec, relation=own, vocabulary=vocabulary)


def sort_part(engine: Engine, tables: Tables, *, recipe: Recipe, num_splits: int) -> Result:
    """Return the rows of a range of the order hash in their order, a table for each split.

    The summary: the rows of each.
    """
    order = f"{order_hash(recipe.split.seed)}, row_id"
    splits = [
        arrow(
            engine,
            f"SELECT * EXCLUDE ({SPLIT}) FROM {tables['rows']} WHERE {SPLIT} = {index} ORDER BY {order}",
        )
        for index in range(num_splits)
    ]
    return [table.num_rows for table in splits], *splits


class FileCut(NamedTuple):
    """Rows of a file, of ordered tables."""

    first: int
    last: int
    """The tables that hold them: from the first to the one before the last."""
    skipped_rows: int
    """Rows of the first table that are of another file."""
    num_rows: int


def write_file(engine: Engine, tables: Tables, *, path: Path, cut: FileCut) -> Result:
    """Write rows of a cut's tables as a Parquet file.

    The file appears whole: a worker that is killed leaves nothing in its place.
    """
    query = f"SELECT * FROM {tables['rows']} LIMIT {cut.num_rows} OFFSET {cut.skipped_rows}"
    with new_file(path) as beside:
        written = write_part(row_groups(engine.batches(query)), beside)
    assert written == cut.num_rows, f"{path} has {written} rows, not {cut.num_rows}"
    return (None,)


def file_cuts(rows: Sequence[int], most_rows: int) -> Iterator[FileCut]:
    """Yield the files of ordered tables.

    Args:
        rows: of each table.
        most_rows: of a file; all but the last have as many.
    """
    ends = np.cumsum(rows)
    total = int(ends[-1])
    for start in range(0, total, most_rows):
        stop = min(start + most_rows, total)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left")) + 1
        before = int(ends[first - 1]) if first else 0
        yield FileCut(first, last, start - before, stop - start)


def total_counts(found: Iterable[Mapping[int, SplitCounts]]) -> dict[int, SplitCounts]:
    """Return the counts of each split, of those of all partitions."""
    total: dict[int, SplitCounts] = {}
    for counts in found:
        for split, added in counts.items():
            total[split] = total.get(split, SplitCounts()) + added
    return total
