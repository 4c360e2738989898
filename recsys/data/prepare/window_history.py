"""Histories of a window: what is known last of every user, and how much of it each new row may see.

In: prepared data, and the placed rows of a window. Out, of each sequence (schema.HISTORIES):
`<sequence>/latest/`, the last items of every user, and `<sequence>/<window>/`, those of the window's
users followed by their own. The rows before the window are read once, by the first append; later ones
start from `<sequence>/latest/`.

A row of a window sees its user's strictly earlier items of all earlier splits, and with scope `past`
those of the window too: to a window, all splits before it are training. Users are taken in blocks:
memory follows neither their number nor that of their items. Shapes: U users, B users of a block.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.history import ends_sql, held_column, is_item_sql, stand_in_time_sql
from recsys.data.prepare.sequences import (
    Sequences,
    read_sequences,
    row_blocks,
    write_sequences,
)
from recsys.data.prepare.writing import write_list_batches
from recsys.data.recipe import Recipe
from recsys.data.sql import literal
from recsys.files import PREPARE_AGAIN, new_array, read_array
from recsys.schema import HistorySpec, Manifest, end_column, latest_folder

_NUM_TIED = "num_tied.npy"


@dataclass(frozen=True, kw_only=True)
class LastItems:
    """The items of a sequence before a window, the last of each user, as files of every process."""

    folder: Path
    """With the lists values.npy and offsets.npy, and num_tied.npy."""
    end: int | None
    """Last second before the window; None: the log has no times."""

    @property
    def sequences(self) -> Sequences:
        """Item rows of every user, oldest first, memory-mapped."""
        return read_sequences(self.folder)

    @property
    def num_tied(self) -> NDArray[np.int64]:
        """Items of that second [U], memory-mapped: rows of the same second do not see them."""
        return read_array(self.folder / _NUM_TIED, PREPARE_AGAIN, mmap=True)


@dataclass(frozen=True, kw_only=True)
class AddedItems:
    """The items of a sequence that a window adds."""

    sequences: Sequences
    """Item rows of every user, oldest first."""
    tied: Iterable[pa.RecordBatch]
    """Items of the window's last second by user (key, value); each user once."""


@dataclass(frozen=True, kw_only=True)
class AddedWindow:
    """The additions of a window to the sequences."""

    users: Iterable[pa.RecordBatch]
    """Users (key) with rows in the window."""
    end: int | None
    """Last second of the window; None: the log has no times."""
    items: Mapping[str, AddedItems]
    """By sequence."""


def last_second(manifest: Manifest) -> int | None:
    """Return the time of the last row of prepared data; None where the log has no times."""
    times = [spec.timestamp_max for spec in manifest.splits.values()]
    return max((time for time in times if time is not None), default=None)


def split_files(manifest: Manifest, prepared: Path) -> list[tuple[int, Path]]:
    """Return the files of all splits in time, each with the number of its split."""
    return [
        (index, prepared / file)
        for index, name in enumerate(manifest.splits_in_time)
        for file in manifest.splits[name].files
    ]


def items_sql(recipe: Recipe, files: Sequence[tuple[int, Path]], name: str = "history") -> str:
    """SQL of (row_id, user_row, item_row, ts) of a sequence's items in files, of known users.

    Args:
        files: each with the number of its split, as of `split_files`.
    """
    has_times = recipe.interactions.timestamp is not None
    ts = "timestamp" if has_times else stand_in_time_sql(recipe.split.seed)
    parts = []
    for split in sorted({index for index, _ in files}):
        own = ", ".join(literal(str(file)) for index, file in files if index == split)
        parts.append(
            f"SELECT row_id, user_row, item_row, {ts} AS ts FROM (SELECT *, {split} AS split FROM "
            f"read_parquet([{own}])) log WHERE {is_item_sql(name)} AND user_row > 0"
        )
    return " UNION ALL ".join(parts)


def stored_last_items(manifest: Manifest, prepared: Path) -> dict[str, LastItems]:
    """Return the last items of every user by sequence, as an append left them; empty before the first."""
    if not manifest.chain or manifest.history is None:
        return {}
    end = last_second(manifest)
    return {
        name: LastItems(folder=prepared / latest_folder(name), end=end)
        for name in manifest.history.sequences
    }


def read_last_items(
    engine: Engine, recipe: Recipe, manifest: Manifest, prepared: Path
) -> dict[str, LastItems]:
    """Return the last items of every user of prepared data with histories, by sequence."""
    assert manifest.history is not None, "asked for only where there is a history"
    last, end = stored_last_items(manifest, prepared), last_second(manifest)
    for name in manifest.history.sequences if not last else ():
        query = items_sql(recipe, split_files(manifest, prepared), name)
        items = engine.create("items", f"{query} ORDER BY user_row, ts, row_id")
        last[name] = write_last_items(
            engine,
            engine.batches(sequence_sql(items)),
            _later(engine, tied_sql(items, end)),
            manifest.num_user_rows,
            end,
        )
        engine.drop(items)
    return last


def sequence_sql(items: Table) -> str:
    """SQL of (key, value), user and item rows, of items in their order."""
    return f"SELECT user_row AS key, item_row AS value FROM {items}"


def tied_sql(items: Table, second: int | None) -> str:
    """SQL of (key, value): how many items of a second each user has; None: there are no times."""
    where = "false" if second is None else f"ts = {second}"
    return f"SELECT user_row AS key, count(*) AS value FROM {items} WHERE {where} GROUP BY user_row"


def write_last_items(
    engine: Engine,
    batches: Iterable[pa.RecordBatch],
    tied: Iterable[pa.RecordBatch],
    num_users: int,
    end: int | None,
) -> LastItems:
    """Write a sequence's items of prepared data (key, value) by key as files of the engine's folder.

    Args:
        tied: how many of them are of the second `end`, by user (key, value).
        num_users: rows of users, unknown row included.
    """
    folder = written_lists(engine, batches, num_users)
    num_tied_U = new_array(folder / _NUM_TIED, np.int64, (num_users,))
    _add(num_tied_U, tied)
    return LastItems(folder=folder, end=end)


def written_lists(engine: Engine, batches: Iterable[pa.RecordBatch], num_users: int) -> Path:
    """Write batches of (key, value) by key as lists [num_users]; return their new folder."""
    folder = engine.scratch / engine.unused("sequences")
    folder.mkdir()
    write_list_batches(batches, folder / "values.npy", folder / "offsets.npy", num_users)
    return folder


def _add(counts_U: NDArray[np.int64], batches: Iterable[pa.RecordBatch]) -> None:
    """Add (key, value) to an array; each key once."""
    for batch in batches:
        counts_U[batch.column("key").to_numpy()] += batch.column("value").to_numpy()


def write_window_histories(
    engine: Engine,
    history: HistorySpec,
    window: str,
    placed: Table,
    last: Mapping[str, LastItems],
    num_users: int,
    prepared: Path,
) -> tuple[Table, dict[str, int]]:
    """Write the sequences of a window's users, and the last items of all users after it.

    Args:
        placed: the window's rows, with row_id, label, user_row, item_row and ts.
        last: by sequence.
        num_users: rows of users, unknown row included.

    Returns:
        The table (row_id, <sequence>_end...): how many leading entries of each of the user's sequences
        a row may see; rows of unknown users have no line. And the window's items by sequence.
    """
    rows, items = window_sequences(engine, placed, history)
    ends = window_ends(engine, rows, last)
    end = None
    if last["history"].end is not None:
        (end,) = engine.one(f"SELECT max(ts) FROM {placed}")
    added = {}
    for name, own in items.items():
        folder = written_lists(engine, engine.batches(sequence_sql(own)), num_users)
        tied = _later(engine, tied_sql(own, end))
        added[name] = AddedItems(sequences=read_sequences(folder), tied=tied)
    users = _later(engine, window_users_sql(rows))
    new = AddedWindow(users=users, end=end, items=added)
    write_window(engine, history, window, last, new, num_users, prepared)
    num_items = {name: engine.count(own) for name, own in items.items()}
    engine.drop(rows, *items.values())
    return ends, num_items


def _later(engine: Engine, query: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a query, which runs when the first is asked for: one runs at a time."""
    yield from engine.batches(query)


def window_sequences(
    engine: Engine, placed: Table, history: HistorySpec
) -> tuple[Table, dict[str, Table]]:
    """Return the window's rows of known users in order, and the items of each sequence among them.

    The columns: (row_id, label, user_row, item_row, ts, is_held..., reads).
    """
    placed.needs("row_id", "label", "user_row", "item_row", "ts")
    names = history.sequences
    held = ", ".join(
        f"CAST({is_item_sql(name) if history.scope == 'past' else 'false'} AS INTEGER) "
        f"AS {held_column(name)}"
        for name in names
    )
    rows = engine.create(
        "sequences",
        f"SELECT row_id, label, user_row, item_row, ts, {held}, true AS reads FROM {placed} "
        f"WHERE user_row > 0 ORDER BY user_row, ts, row_id",
    )
    return rows, {
        name: engine.create(
            "items", f"SELECT user_row, item_row, ts FROM {rows} WHERE {is_item_sql(name)}"
        )
        for name in names
    }


def window_users_sql(rows: Table) -> str:
    """SQL of the known users of a window (key)."""
    return f"SELECT DISTINCT user_row AS key FROM {rows}"


def window_ends(engine: Engine, rows: Table, last: Mapping[str, LastItems]) -> Table:
    """Return the table (row_id, <sequence>_end...) of the rows of a window."""
    users = engine.batches(f"{window_users_sql(rows)} ORDER BY key").read_all()
    users_K = users.column("key").to_numpy().astype(np.int64)
    stored: dict[str, NDArray[np.int64]] = {"user_row": users_K}
    columns = []
    for name, items in last.items():
        stored[f"{name}_stored"] = items.sequences.lengths(users_K)
        stored[f"{name}_tied"] = _num_tied(items, users_K)
        unseen = (
            "0"
            if items.end is None
            else f"CASE WHEN q.ts = {items.end} THEN {name}_tied ELSE 0 END"
        )
        end = end_column(name)
        columns.append(f"CAST(e.{end} + {name}_stored - {unseen} AS INTEGER) AS {end}")
    before = engine.create_from("before", pa.table(stored))
    ends = engine.create(
        "ends",
        f"SELECT e.row_id, {', '.join(columns)} FROM ({ends_sql(rows, tuple(last))}) e "
        f"JOIN {rows} q ON q.row_id = e.row_id JOIN {before} b ON b.user_row = q.user_row",
    )
    engine.drop(before)
    return ends


def _num_tied(last: LastItems, users_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many items some users have of the last second [K]; users who came later have none."""
    num_tied_U = last.num_tied
    was_known_K = users_K < len(num_tied_U)
    num_tied_K = np.zeros(len(users_K), dtype=np.int64)
    num_tied_K[was_known_K] = num_tied_U[users_K[was_known_K]]
    return num_tied_K


def write_window(
    engine: Engine,
    history: HistorySpec,
    window: str,
    last: Mapping[str, LastItems],
    added: AddedWindow,
    num_users: int,
    prepared: Path,
) -> None:
    """Write the sequences of a window's users, and the last items of all users after it.

    Args:
        last: by sequence.
        num_users: rows of users, unknown row included.
    """
    flags = engine.scratch / f"{engine.unused('in_window')}.npy"
    in_window_U = new_array(flags, np.bool_, (num_users,))
    for batch in added.users:
        in_window_U[batch.column("key").to_numpy()] = True
    for name in history.sequences:
        before, new = last[name], added.items[name]
        _write_of_window(prepared / history.folder(window, name), before, new, in_window_U)
        longest, is_same_second = history.lengths[name], added.end == before.end
        latest = prepared / latest_folder(name)
        _write_latest(latest, before, new, num_users, longest, is_same_second)


def _write_of_window(
    folder: Path, last: LastItems, added: AddedItems, in_window_U: NDArray[np.bool_]
) -> None:
    """Write all items of a window's users, those before it and its own."""
    before, new = last.sequences, added.sequences

    def in_window(rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        total_B = before.lengths(rows_B) + new.lengths(rows_B)
        return np.where(in_window_U[rows_B], total_B, 0)

    write_sequences(folder, before, new, len(in_window_U), in_window)


def _write_latest(
    latest: Path,
    last: LastItems,
    added: AddedItems,
    num_users: int,
    longest: int,
    is_same_second: bool,
) -> None:
    """Write the last items of all users after a window, at least the `longest` that a row may see.

    Args:
        is_same_second: whether the window's last second is the last one before it.
    """
    latest.mkdir(parents=True)
    num_tied_U = new_array(latest / _NUM_TIED, np.int64, (num_users,))
    _add(num_tied_U, added.tied)
    if is_same_second:
        num_before_U = last.num_tied
        for rows_B in row_blocks(len(num_before_U)):
            num_tied_U[rows_B] += num_before_U[rows_B]
    before, new = last.sequences, added.sequences

    def latest_of(rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        total_B = before.lengths(rows_B) + new.lengths(rows_B)
        return np.minimum(total_B, longest + num_tied_U[rows_B])

    write_sequences(latest, before, new, num_users, latest_of)
