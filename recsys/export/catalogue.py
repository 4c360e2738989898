"""Export of users, catalogue and vocabularies: prepared data as the files that a bundle serves from.

In: prepared/. Out: `users/`, `vocab/` and `catalogue/` of a bundle, as the files of these names in
recsys/bundle describe them. Everything is streamed.
Shapes: U users, N items, P liked items of a row group or block, K keys of lists, V values of lists.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.bundle.catalogue import BATCH_ROWS
from recsys.bundle.users import user_features
from recsys.bundle.vocabulary import write_vocabulary
from recsys.data.dataset import read_columns
from recsys.data.specs import vocabulary_file
from recsys.export.items import copy_features
from recsys.files import PREPARE_AGAIN, new_array, read_array, reading, write_array
from recsys.schema import UNKNOWN_ROW, Manifest

_CARD = ("item_id", "title", "artist", "tags", "content", "text", "image")


def served_manifest(prepared: Path, manifest: Manifest) -> Manifest:
    """Return the manifest's part that encodes ids and values of requests.

    Manifests of earlier versions do not name the files of vocabularies, which are there.
    """
    tables = []
    for table in manifest.tables:
        file = vocabulary_file(table.name)
        is_unnamed = table.kind == "vocab" and table.vocabulary is None
        if is_unnamed and (prepared / file).is_file():
            table = dataclasses.replace(table, vocabulary=file)
        tables.append(table)
    return dataclasses.replace(
        manifest,
        tables=tuple(tables),
        checksums={},
        recipe={},
        image_root=None,
        files=(),
        raw_columns={},
    )


def write_vocabularies(folder: Path, prepared: Path, manifest: Manifest) -> int:
    """Write the vocabulary of every table that has one, and return how many ids they hold."""
    num_ids = 0
    for table in manifest.tables:
        if table.vocabulary is None:
            continue
        blocks = _ids(prepared / table.vocabulary)
        write_vocabulary(folder, table.name, num_rows=table.num_rows, blocks=blocks)
        num_ids += table.num_rows - 1
    return num_ids


def _ids(path: Path) -> Iterator[tuple[NDArray, Sequence[str]]]:
    with reading(path, PREPARE_AGAIN):
        file = pq.ParquetFile(path, memory_map=True)
        for batch in file.iter_batches(BATCH_ROWS, columns=["row", "id"]):
            yield batch.column("row").to_numpy(), batch.column("id").to_pylist()


def write_users(folder: Path, prepared: Path, manifest: Manifest, last_time_U: NDArray) -> None:
    """Write the users' features, histories and times of their last interactions [U]."""
    folder.mkdir(parents=True)
    copy_features(folder, prepared / "users", user_features(manifest))
    if manifest.history is not None:
        for name in manifest.history.sequences:
            history = prepared / manifest.last_histories(name)
            for part in ("values", "offsets"):
                shutil.copyfile(history / f"{part}.npy", folder / f"{name}.{part}.npy")
        write_likers(folder, manifest.num_item_rows)
    write_array(folder / "last_time.npy", last_time_U)
    write_seen(folder, prepared, manifest)


def write_likers(folder: Path, num_items: int) -> None:
    """Write the users whose history holds each item: the histories' inverted file.

    A block of histories is held in memory, and two numbers an item.

    Args:
        folder: `users/` of a bundle in the making, with the histories.
        num_items: N, unknown row 0 included.
    """
    counts_N = np.zeros(num_items, np.int64)
    for _, items_P in _histories(folder):
        counts_N += np.bincount(items_P, minlength=num_items)
    offsets = np.concatenate([[0], np.cumsum(counts_N)])
    write_array(folder / "likers.offsets.npy", offsets)
    values = new_array(folder / "likers.values.npy", np.int32, (int(offsets[-1]),))
    next_N = offsets[:-1].copy()
    for users_P, items_P in _histories(folder):
        _fill(values, next_N, items_P, users_P)
    if len(values):
        values.flush()


def _histories(folder: Path) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield user and item rows [P] of histories by ascending user, each pair once."""
    values, offsets = (
        read_array(folder / f"history.{part}.npy", PREPARE_AGAIN, mmap=True)
        for part in ("values", "offsets")
    )
    for start in range(0, len(offsets) - 1, BATCH_ROWS):
        bounds = np.asarray(offsets[start : start + BATCH_ROWS + 1])
        users_P = np.repeat(np.arange(start, start + len(bounds) - 1), np.diff(bounds))
        pairs_P2 = np.stack([users_P, values[bounds[0] : bounds[-1]]], axis=1)
        pairs_P2 = np.unique(pairs_P2, axis=0)
        yield pairs_P2[:, 0], pairs_P2[:, 1]


def _fill(values: NDArray, next_K: NDArray, keys_P: NDArray, values_P: NDArray) -> None:
    """Put values [P] into the next places of their keys' lists, in order, and move these places on.

    Args:
        values: lists of all keys end to end [V].
        next_K: next free place of each key's list [K].
    """
    order = np.argsort(keys_P, kind="stable")
    found, firsts, counts = np.unique(keys_P[order], return_index=True, return_counts=True)
    # The rows of a key are end to end: the first goes to the key's next place, and so on.
    places_P = np.repeat(next_K[found] - firsts, counts) + np.arange(len(order))
    values[places_P] = values_P[order]
    next_K[found] += counts


def write_seen(folder: Path, prepared: Path, manifest: Manifest) -> int:
    """Write the items that every user liked in the log, all splits together; return how many.

    The log is read twice, and memory holds a row group of it and two numbers a user.
    """
    num_users = manifest.num_user_rows
    if not num_users:
        return 0
    counts_U = np.zeros(num_users, np.int64)
    for users_P, _ in _positives(prepared, manifest):
        counts_U += np.bincount(users_P, minlength=num_users)
    offsets = np.concatenate([[0], np.cumsum(counts_U)])
    write_array(folder / "seen.offsets.npy", offsets)
    values = new_array(folder / "seen.values.npy", np.int32, (int(offsets[-1]),))
    next_U = offsets[:-1].copy()
    for users_P, items_P in _positives(prepared, manifest):
        _fill(values, next_U, users_P, items_P)
    if len(values):
        values.flush()
    return len(values)


def _positives(prepared: Path, manifest: Manifest) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield user and item rows [P] of liked items of known users, one row group at a time."""
    for split in manifest.splits:
        columns = ["label", "user_row", "item_row"]
        for group in read_columns(prepared, manifest, split, columns):
            label, users, items = (group.column(name).to_numpy() for name in columns)
            is_seen = (label == 1) & (users > UNKNOWN_ROW) & (items > UNKNOWN_ROW)
            yield users[is_seen], items[is_seen]


def interaction_times(
    prepared: Path, manifest: Manifest
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return users' last [U] and items' first [N] times in the log; 0 where there is none."""
    last_U = np.zeros(manifest.num_user_rows, np.int64)
    latest = np.iinfo(np.int64).max
    first_N = np.full(manifest.num_item_rows, latest)
    for split, spec in manifest.splits.items():
        if spec.timestamp_min is None:
            continue
        columns = ["row_id", "timestamp", "item_row"]
        columns += ["user_row"] * bool(manifest.num_user_rows)
        for group in read_columns(prepared, manifest, split, columns):
            table = group.filter(
                pa.array(manifest.is_interaction(group.column("row_id").to_numpy()))
            )
            times = table.column("timestamp").to_numpy()
            np.minimum.at(first_N, table.column("item_row").to_numpy(), times)
            if manifest.num_user_rows:
                np.maximum.at(last_U, table.column("user_row").to_numpy(), times)
    first_N[first_N == latest] = 0
    return last_U, first_N


def write_catalogue(folder: Path, prepared: Path, first_time_N: NDArray[np.int64]) -> list[str]:
    """Write items.arrow; return its columns: those of which the data has anything."""
    folder.mkdir(parents=True)
    path = prepared / "items.parquet"
    with reading(path, PREPARE_AGAIN):
        file = pq.ParquetFile(path, memory_map=True)
        names = [name for name in _CARD if name in file.schema_arrow.names]
        kept = [name for name in names if _holds_anything(file, name)]
    schema = pa.schema([*(file.schema_arrow.field(n) for n in kept), ("first_time", pa.int64())])
    start = 0
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for batch in _batches(file, kept):
            times = first_time_N[start : start + batch.num_rows]
            first = pa.array(times, mask=times == 0)
            out.write_batch(pa.record_batch([*batch.columns, first], schema=schema))
            start += batch.num_rows
    return schema.names


def _batches(file: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield batches of BATCH_ROWS rows each, the last one excepted: a reader computes with that."""
    rest: list[pa.RecordBatch] = []
    num_rest = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=names):
        rest.append(batch)
        num_rest += batch.num_rows
        while num_rest >= BATCH_ROWS:
            whole = pa.Table.from_batches(rest).combine_chunks()
            yield whole.slice(0, BATCH_ROWS).to_batches()[0]
            rest = whole.slice(BATCH_ROWS).to_batches()
            num_rest -= BATCH_ROWS
    if num_rest:
        yield pa.Table.from_batches(rest).combine_chunks().to_batches()[0]


def _holds_anything(file: pq.ParquetFile, name: str) -> bool:
    return any(
        column.null_count < len(column)
        for batch in file.iter_batches(BATCH_ROWS, columns=[name])
        for column in [batch.column(0)]
    )
