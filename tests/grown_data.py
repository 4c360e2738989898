"""Prepared data grown by hand: new users and items follow, and windows of later rows are new splits."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.files import sha256_of
from recsys.schema import Ancestor, Manifest, SplitSpec, read_manifest, write_manifest

NEW_USERS, NEW_ITEMS = 4, 6


def grow(workspace: Path, *, windows: int = 1, first: int = 1) -> Manifest:
    """Append windows, numbered from `first` on: rows of split test, later, a third of new ids.

    Row i of the third is of new user i modulo 4 and new item i modulo 6; new users have no history.
    """
    prepared, before = workspace / "prepared", read_manifest(workspace)
    num_users, num_items = before.num_user_rows, before.num_item_rows
    for side, count in (("user", NEW_USERS), ("item", NEW_ITEMS)):
        _grow_side(prepared, side, count)
    test_histories = prepared / before.history.folder("test")
    offsets = np.load(test_histories / "offsets.npy")
    new = num_users + NEW_USERS + 1 - len(offsets)
    offsets = np.concatenate([offsets, np.repeat(offsets[-1:], new)])
    numbers = range(first, first + windows)
    for name in ["latest", *(f"window_{number:04d}" for number in numbers)]:
        (prepared / "history" / name).mkdir(exist_ok=True)
        shutil.copyfile(test_histories / "values.npy", prepared / "history" / name / "values.npy")
        np.save(prepared / "history" / name / "offsets.npy", offsets)
    rows = pa.concat_tables(pq.read_table(prepared / f) for f in before.splits["test"].files)
    splits = dict(before.splits)
    for number in numbers:
        name = f"window_{number:04d}"
        splits[name] = _write_window(prepared, name, rows, number, before, num_users, num_items)
    more = {"user_id": NEW_USERS, "item_id": NEW_ITEMS}
    manifest = dataclasses.replace(
        before,
        tables=tuple(
            dataclasses.replace(table, num_rows=table.num_rows + more.get(table.name, 0))
            for table in before.tables
        ),
        splits=splits,
        num_user_rows=num_users + NEW_USERS,
        num_item_rows=num_items + NEW_ITEMS,
        items_checksum=sha256_of(prepared / "vocab" / "item_id.parquet"),
        rows_in=before.rows_in + windows * rows.num_rows,
        chain=(
            *before.chain,
            Ancestor(
                identity=before.identity,
                table_rows={table.name: table.num_rows for table in before.tables},
                splits=tuple(before.splits),
            ),
        ),
        checksums={
            path.relative_to(prepared).as_posix(): sha256_of(path)
            for path in sorted(prepared.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        },
    )
    write_manifest(prepared, manifest)
    return manifest


def _grow_side(prepared: Path, side: str, count: int) -> None:
    """Append new ids to the vocabulary, the table and the arrays of users or items."""
    for file in (prepared / "vocab" / f"{side}_id.parquet", prepared / f"{side}s.parquet"):
        table = pq.read_table(file)
        last = table.slice(table.num_rows - count)
        names = [f"new-{side}-{len(table) + number}" for number in range(count)]
        for name in ("id", f"{side}_id"):
            if name in last.column_names:
                at = last.column_names.index(name)
                last = last.set_column(at, table.schema.field(name), [pa.array(names)])
        if "row" in last.column_names:
            rows = np.arange(count) + 1 + int(table.column("row").to_numpy().max())
            at, of = last.column_names.index("row"), table.schema.field("row")
            last = last.set_column(at, of, [pa.array(rows).cast(of.type)])
        pq.write_table(pa.concat_tables([table, last]), file)
    for file in sorted((prepared / f"{side}s").glob("*.npy")):
        values = np.load(file)
        is_list = file.with_name(file.name.replace(".values.", ".offsets.")).is_file()
        if file.name.endswith(".offsets.npy"):
            np.save(file, np.concatenate([values, np.repeat(values[-1:], count)]))
        elif file.name.endswith("_count.npy") or not is_list:
            np.save(file, np.concatenate([values, values[-count:]]))


def _write_window(
    prepared: Path,
    name: str,
    rows: pa.Table,
    number: int,
    before: Manifest,
    num_users: int,
    num_items: int,
) -> SplitSpec:
    count = rows.num_rows
    columns = {c: rows.column(c).to_numpy(zero_copy_only=False).copy() for c in rows.column_names}
    columns["row_id"] = 1_000_000 * number + np.arange(count)
    is_new = np.arange(count) % 3 == 0
    columns["user_row"][is_new] = num_users + np.arange(count)[is_new] % NEW_USERS
    columns["item_row"][is_new] = num_items + np.arange(count)[is_new] % NEW_ITEMS
    if "history_end" in columns:
        columns["history_end"][is_new] = 0
    span = columns["timestamp"].max() - columns["timestamp"].min() + 1
    columns["timestamp"] += number * span
    table = pa.table({
        c: pa.array(values).cast(rows.schema.field(c).type) for c, values in columns.items()
    })
    file = f"interactions/{name}/part-00000.parquet"
    (prepared / file).parent.mkdir()
    pq.write_table(table, prepared / file)
    return SplitSpec(
        num_rows=count,
        num_positives=int(columns["label"].sum()),
        files=(file,),
        file_rows=(count,),
        timestamp_min=int(columns["timestamp"].min()),
        timestamp_max=int(columns["timestamp"].max()),
    )
