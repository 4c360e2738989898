"""Histories of a window: what is known last of every user, and how much of it each new row may see.

In: prepared data, and the placed rows of a window. Out: `history/latest/`, the last positives of every
user, and `history/<window>/`, those of the window's users followed by their own. The rows before the
window are read once, by the first append; later ones start from `history/latest/`.

A row of a window sees its user's strictly earlier positives of all earlier splits, and with scope
`past` those of the window too: to a window, all splits before it are training. Users are taken in blocks:
memory follows neither their number nor that of their positives. Shapes: U users, B users of a block.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.history import ends_sql, stand_in_time_sql
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
from recsys.schema import HistorySpec, Manifest

LATEST = "history/latest"
_NUM_TIED = "num_tied.npy"


@dataclass(frozen=True, kw_only=True)
class LastPositives:
    """The positives before a window, the last of each user, as files that every process can read."""

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
        """Positives of that second [U], memory-mapped: rows of the same second do not see them."""
        return read_array(self.folder / _NUM_TIED, PREPARE_AGAIN, mmap=True)


@dataclass(frozen=True, kw_only=True)
class AddedPositives:
    """The positives of a window."""

    sequences: Sequences
    """Item rows of every user, oldest first."""
    users: Iterable[pa.RecordBatch]
    """Users (key) with rows in the window."""
    tied: Iterable[pa.RecordBatch]
    """Positives of its last second by user (key, value); each user once."""
    end: int | None
    """That second; None: the log has no times."""


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


def positives_sql(recipe: Recipe, files: Sequence[tuple[int, Path]]) -> str:
    """SQL of (row_id, user_row, item_row, ts) of the positives of files, of known users and items.

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
            f"read_parquet([{own}])) log WHERE label = 1 AND user_row > 0 AND item_row > 0"
        )
    return " UNION ALL ".join(parts)


def read_last_positives(
    engine: Engine, recipe: Recipe, manifest: Manifest, prepared: Path
) -> LastPositives:
    """Return the last positives of every user of prepared data."""
    end = last_second(manifest)
    if manifest.chain:
        return LastPositives(folder=prepared / LATEST, end=end)
    query = positives_sql(recipe, split_files(manifest, prepared))
    positives = engine.create("positives", f"{query} ORDER BY user_row, ts, row_id")
    found = write_last_positives(
        engine,
        engine.batches(sequence_sql(positives)),
        _later(engine, tied_sql(positives, end)),
        manifest.num_user_rows,
        end,
    )
    engine.drop(positives)
    return found


def sequence_sql(positives: Table) -> str:
    """SQL of (key, value), user and item rows, of positives in their order."""
    return f"SELECT user_row AS key, item_row AS value FROM {positives}"


def tied_sql(positives: Table, second: int | None) -> str:
    """SQL of (key, value): how many positives of a second each user has; None: there are no times."""
    where = "false" if second is None else f"ts = {second}"
    return f"SELECT user_row AS key, count(*) AS value FROM {positives} WHERE {where} GROUP BY user_row"


def write_last_positives(
    engine: Engine,
    batches: Iterable[pa.RecordBatch],
    tied: Iterable[pa.RecordBatch],
    num_users: int,
    end: int | None,
) -> LastPositives:
    """Write the positives of prepared data (key, value) by key as files of the engine's folder.

    Args:
        tied: how many of them are of the second `end`, by user (key, value).
        num_users: rows of users, unknown row included.
    """
    folder = written_lists(engine, batches, num_users)
    num_tied_U = new_array(folder / _NUM_TIED, np.int64, (num_users,))
    _add(num_tied_U, tied)
    return LastPositives(folder=folder, end=end)


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
    last: LastPositives,
    num_users: int,
    prepared: Path,
) -> tuple[Table, int]:
    """Write the sequences of a window's users, and the last positives of all users after it.

    Args:
        placed: the window's rows, with row_id, label, user_row, item_row and ts.
        num_users: rows of users, unknown row included.

    Returns:
        The table (row_id, history_end): how many leading entries of the user's sequence a row may see;
        rows of unknown users have no line. And the number of positives in the window.
    """
    sequence, positives = window_sequence(engine, placed, history)
    ends = window_ends(engine, sequence, last)
    end = None
    if last.end is not None:
        (end,) = engine.one(f"SELECT max(ts) FROM {placed}")
    folder = written_lists(engine, engine.batches(sequence_sql(positives)), num_users)
    added = AddedPositives(
        sequences=read_sequences(folder),
        users=_later(engine, window_users_sql(sequence)),
        tied=_later(engine, tied_sql(positives, end)),
        end=end,
    )
    write_window(engine, history, window, last, added, num_users, prepared)
    num_positives = engine.count(positives)
    engine.drop(sequence, positives)
    return ends, num_positives


def _later(engine: Engine, query: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a query, which runs when the first is asked for: one runs at a time."""
    yield from engine.batches(query)


def window_sequence(engine: Engine, placed: Table, history: HistorySpec) -> tuple[Table, Table]:
    """Return the window's rows of known users in order, and those of them that are positives.

    The columns: (row_id, user_row, item_row, ts, is_positive, is_held, reads).
    """
    placed.needs("row_id", "label", "user_row", "item_row", "ts")
    sequence = engine.create(
        "sequence",
        f"SELECT row_id, user_row, item_row, ts, label = 1 AND item_row > 0 AS is_positive, CAST("
        f"{'label = 1 AND item_row > 0' if history.scope == 'past' else 'false'} AS INTEGER) AS "
        f"is_held, true AS reads FROM {placed} WHERE user_row > 0 ORDER BY user_row, ts, row_id",
    )
    return sequence, engine.create("positives", f"SELECT * FROM {sequence} WHERE is_positive")


def window_users_sql(sequence: Table) -> str:
    """SQL of the known users of a window (key)."""
    return f"SELECT DISTINCT user_row AS key FROM {sequence}"


def window_ends(engine: Engine, sequence: Table, last: LastPositives) -> Table:
    """Return the table (row_id, history_end) of the rows of a window."""
    users = engine.batches(f"{window_users_sql(sequence)} ORDER BY key").read_all()
    users_K = users.column("key").to_numpy().astype(np.int64)
    num_tied_U = last.num_tied
    was_known_K = users_K < len(num_tied_U)
    num_tied_K = np.zeros(len(users_K), dtype=np.int64)
    num_tied_K[was_known_K] = num_tied_U[users_K[was_known_K]]
    before = engine.create_from(
        "before",
        pa.table({
            "user_row": users_K,
            "num_stored": last.sequences.lengths(users_K),
            "num_tied": num_tied_K,
        }),
    )
    unseen = "0" if last.end is None else f"CASE WHEN q.ts = {last.end} THEN num_tied ELSE 0 END"
    ends = engine.create(
        "ends",
        f"SELECT e.row_id, CAST(e.history_end + num_stored - {unseen} AS INTEGER) AS history_end "
        f"FROM ({ends_sql(sequence, ('history',))}) e JOIN {sequence} q ON q.row_id = e.row_id "
        f"JOIN {before} b ON b.user_row = q.user_row",
    )
    engine.drop(before)
    return ends


def write_window(
    engine: Engine,
    history: HistorySpec,
    window: str,
    last: LastPositives,
    added: AddedPositives,
    num_users: int,
    prepared: Path,
) -> None:
    """Write the sequences of a window's users, and the last positives of all users after it.

    Args:
        num_users: rows of users, unknown row included.
    """
    flags = engine.scratch / f"{engine.unused('in_window')}.npy"
    in_window_U = new_array(flags, np.bool_, (num_users,))
    for batch in added.users:
        in_window_U[batch.column("key").to_numpy()] = True
    before, new = last.sequences, added.sequences

    def in_window(rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        total_B = before.lengths(rows_B) + new.lengths(rows_B)
        return np.where(in_window_U[rows_B], total_B, 0)

    write_sequences(prepared / history.folder(window), before, new, num_users, in_window)
    latest = prepared / LATEST
    latest.mkdir(parents=True)
    num_tied_U = new_array(latest / _NUM_TIED, np.int64, (num_users,))
    _add(num_tied_U, added.tied)
    if added.end == last.end:
        num_before_U = last.num_tied
        for rows_B in row_blocks(len(num_before_U)):
            num_tied_U[rows_B] += num_before_U[rows_B]

    def latest_of(rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        total_B = before.lengths(rows_B) + new.lengths(rows_B)
        return np.minimum(total_B, history.max_length + num_tied_U[rows_B])

    write_sequences(latest, before, new, num_users, latest_of)
