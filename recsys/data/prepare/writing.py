"""Query results as files: Parquet, arrays by row, and lists by key, streamed in bounded pieces."""

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.prepare.engine import Engine, Table
from recsys.data.sql import literal
from recsys.files import new_array

ROW_GROUP_ROWS = 65_536
"""Rows of a Parquet row group."""
PART_ROWS = 64 * ROW_GROUP_ROWS
"""Rows after which the interactions of a split go on in another file."""


def write_array(
    engine: Engine,
    query: str,
    path: Path,
    num_rows: int,
    dtype: type[np.generic],
    fill: float = 0,
) -> None:
    """Write SQL of (key, value) as an array [num_rows] by key; `fill` where a key is missing."""
    values = new_array(path, dtype, (num_rows,))
    if fill:
        values[:] = fill
    for batch in engine.batches(query):
        values[batch.column("key").to_numpy()] = batch.column("value").to_numpy()


def write_lists(
    engine: Engine,
    query: str,
    values_file: Path,
    offsets_file: Path,
    num_rows: int,
    weights_file: Path | None = None,
) -> tuple[int, int]:
    """Write SQL of (key, value) by key as values [V] and as offsets [num_rows + 1].

    A key's values are values[offsets[key] : offsets[key + 1]]. The query runs once, and memory holds one
    record batch at a time.

    Args:
        weights_file: takes the query's column `weight` [V]; None: it has none.

    Returns:
        V, and the most values of a key.
    """
    return write_list_batches(
        engine.batches(query), values_file, offsets_file, num_rows, weights_file
    )


def write_list_batches(
    batches: Iterable[pa.RecordBatch],
    values_file: Path,
    offsets_file: Path,
    num_rows: int,
    weights_file: Path | None = None,
) -> tuple[int, int]:
    """Write batches of (key, value) by key as `write_lists` does a query's.

    Values are appended to their file, offsets are memory-mapped.
    """
    offsets = new_array(offsets_file, np.int64, (num_rows + 1,))
    columns: dict[str, tuple[Path, type[np.generic]]] = {"value": (values_file, np.int32)}
    if weights_file is not None:
        columns["weight"] = (weights_file, np.float32)
    total = 0
    with ExitStack() as files:
        streams = {
            name: files.enter_context(open(file, "wb")) for name, (file, _) in columns.items()
        }
        for name, (_, dtype) in columns.items():
            _write_header(streams[name], dtype, total)
        for batch in batches:
            for name, (_, dtype) in columns.items():
                written = batch.column(name).to_numpy().astype(dtype, copy=False)
                streams[name].write(written.data)
            total += batch.num_rows
            keys, counts = np.unique(batch.column("key").to_numpy(), return_counts=True)
            offsets[keys + 1] += counts
        for name, (_, dtype) in columns.items():
            streams[name].seek(0)
            _write_header(streams[name], dtype, total)
    longest = int(offsets.max())
    np.cumsum(offsets, out=offsets)
    return total, longest


def _write_header(stream: BinaryIO, dtype: type[np.generic], num_values: int) -> None:
    """Write the header of a .npy file of one axis; numpy leaves space in it for the axis to grow."""
    head = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (num_values,)}
    np.lib.format.write_array_header_1_0(stream, head)


def list_table(engine: Engine, query: str) -> Table:
    """Return a table (key, value list) made of SQL of (key, value) by key.

    Other columns of the query become lists too. The table is a file: the database's list() keeps
    every list in memory.
    """
    path = engine.scratch / f"{engine.unused('lists')}.parquet"
    reader = engine.batches(query)
    schema = pa.schema([
        (field.name, field.type if field.name == "key" else pa.list_(field.type))
        for field in reader.schema
    ])
    with pq.ParquetWriter(path, schema) as writer:
        for table in lists_by_key(reader):
            writer.write_table(table.cast(schema))
    return Table(f"read_parquet({literal(str(path))})", tuple(schema.names))


def write_vocabulary(engine: Engine, vocabulary: Table, name: str, folder: Path) -> None:
    """Write `vocab/<name>.parquet`: row, id, count."""
    vocabulary.needs("row", "id", "count")
    (folder / "vocab").mkdir(exist_ok=True)
    query = f"SELECT row, id, count FROM {vocabulary} ORDER BY row"
    write_parquet(engine, query, folder / "vocab" / f"{name}.parquet")


def write_parquet(
    engine: Engine, query: str, path: Path, names: list[str] | None = None, count: int | None = None
) -> int:
    """Stream a query into one Parquet file; return its rows.

    Args:
        names: of the file's columns, where they differ from the query's.
        count: rows that there must be.
    """
    reader = engine.batches(query)
    return _write_groups(reader.schema, row_groups(reader), path, names, count)


def write_by_row(
    engine: Engine, query: str, path: Path, key: str, *, names: list[str] | None = None, count: int
) -> None:
    """Write a query as one Parquet file in the order of its rows' numbers.

    An external sort, of which a row group is in memory at a time: the database's own ORDER BY keeps all
    texts. The rows are written once more, cut by row group, and each group is put in order.

    Args:
        key: column of the row's number, each of 0 to `count` - 1 once.
        names, count: as of `write_parquet`.
    """
    file = engine.scratch / f"{engine.unused('rows')}.arrow"
    reader = engine.batches(query)
    members = _cut_by_group(reader, key, file)
    with pa.memory_map(str(file)) as source:
        rows = pa.ipc.open_file(source)
        groups = (
            _in_order([rows.get_batch(number) for number in members[group]], key)
            for group in sorted(members)
        )
        _write_groups(reader.schema, groups, path, names, count)
    file.unlink()


def _cut_by_group(reader: pa.RecordBatchReader, key: str, file: Path) -> dict[int, list[int]]:
    """Write batches as an Arrow file, cut by row group; return the numbers of each group's batches."""
    members: dict[int, list[int]] = {}
    number = 0
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(str(file), reader.schema, options=options) as writer:
        for batch in reader:
            group_N = batch.column(key).to_numpy() // ROW_GROUP_ROWS
            for group in np.unique(group_N).tolist():
                writer.write_batch(batch.take(pa.array(np.flatnonzero(group_N == group))))
                members.setdefault(group, []).append(number)
                number += 1
    return members


def _in_order(batches: list[pa.RecordBatch], key: str) -> pa.Table:
    table = pa.Table.from_batches(batches)
    order_N = np.argsort(table.column(key).to_numpy())
    return table.take(pa.array(order_N)).combine_chunks()


def _write_groups(
    schema: pa.Schema,
    groups: Iterable[pa.Table],
    path: Path,
    names: list[str] | None,
    count: int | None,
) -> int:
    """Write row groups as one Parquet file, under other names where given; return its rows."""
    if names:
        schema = pa.schema([pa.field(n, f.type) for n, f in zip(names, schema, strict=True)])
    num_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(pa.table(group.columns, schema=schema))
            num_rows += group.num_rows
    assert count is None or num_rows == count, f"{path} has {num_rows} rows, not {count}"
    return num_rows


def write_parts(
    engine: Engine, query: str, prepared: Path, folder: str
) -> tuple[list[str], list[int]]:
    """Stream a query into Parquet files of whole row groups; return their names and rows.

    Args:
        folder: new, below `prepared`; the names begin with it.
    """
    (prepared / folder).mkdir(parents=True)
    files: list[str] = []
    file_rows: list[int] = []
    groups = row_groups(engine.batches(query))
    for first in groups:
        files.append(part_file(folder, len(files)))
        rest = itertools.islice(groups, part_groups() - 1)
        file_rows.append(write_part(itertools.chain([first], rest), prepared / files[-1]))
    return files, file_rows


def part_groups() -> int:
    """Return the row groups of a file of a split; the last file may have fewer."""
    return -(-PART_ROWS // ROW_GROUP_ROWS)


def part_file(folder: str, number: int) -> str:
    """Return the name of a Parquet file of a split."""
    return f"{folder}/part-{number:05d}.parquet"


def write_part(groups: Iterable[pa.Table], path: Path) -> int:
    """Write row groups of a split as one Parquet file; return its rows."""
    num_rows = 0
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for group in groups:
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(path, group.schema, compression="zstd")
                )
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            num_rows += group.num_rows
    return num_rows


def link(old: Path, new: Path) -> None:
    """Give a finished file a second name; copy it where that is not possible."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except OSError:  # a file system without links, or with few of them for one file
        shutil.copyfile(old, new)


def row_groups(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Cut a stream into tables of ROW_GROUP_ROWS rows; the last is shorter, or empty.

    The database cuts its batches as its threads come along; files must not depend on that.
    """
    held = reader.schema.empty_table()
    for batch in reader:
        held = pa.concat_tables([held, pa.Table.from_batches([batch])])
        while held.num_rows > ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS).combine_chunks()
            held = held.slice(ROW_GROUP_ROWS)
    yield held.combine_chunks()


def lists_by_key(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Turn batches of (key, value, ...) in the order of keys into tables of (key, list, ...)."""
    held: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = pa.concat_tables([held, table] if held else [table]).combine_chunks()
        if table.num_rows:
            keys = table.column("key").to_numpy()
            last = int(np.searchsorted(keys, keys[-1]))  # of this key more may follow
            yield _listed(table.slice(0, last))
            held = table.slice(last)
    if held:
        yield _listed(held.combine_chunks())


def _listed(table: pa.Table) -> pa.Table:
    keys, starts = np.unique(table.column("key").to_numpy(), return_index=True)
    offsets = pa.array(np.append(starts, table.num_rows), pa.int32())
    lists = {
        name: pa.ListArray.from_arrays(offsets, table.column(name).combine_chunks())
        for name in table.column_names
        if name != "key"
    }
    return pa.table({"key": keys, **lists})
