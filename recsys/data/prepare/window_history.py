"""Histories of a window: what is known last of every user, and how much of it each new row may see.

In: prepared data, and the placed rows of a window. Out: `history/latest/`, the last positives of every
user, and `history/<window>/`, those of the window's users followed by their own. The rows before the
window are read once, by the first append; later ones start from `history/latest/`.

A row of a window sees its user's strictly earlier positives of all earlier splits, and with scope
`past` those of the window too: to a window, all splits before it are training. Shapes: U users, V values.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.dataset import jagged
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.history import ends_sql, stand_in_time_sql
from recsys.data.prepare.writing import write_lists
from recsys.data.recipe import Recipe
from recsys.data.sql import literal
from recsys.files import PREPARE_AGAIN, new_array, read_array
from recsys.schema import HistorySpec, Manifest

LATEST = "history/latest"
_BLOCK_USERS = 65_536


@dataclass(frozen=True)
class Sequences:
    """Item rows of users, oldest first: those of user u are values[offsets[u] : offsets[u + 1]]."""

    values: NDArray[np.int32]
    """[V]"""
    offsets: NDArray[np.int64]
    """[U + 1]"""

    def lengths(self, num_users: int) -> NDArray[np.int64]:
        """Return the lengths [num_users]; users who came later have none."""
        lengths_U = np.zeros(num_users, dtype=np.int64)
        lengths_U[: len(self.offsets) - 1] = np.diff(self.offsets)
        return lengths_U

    def of(self, keys_K: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the values of some keys end to end, and how many each has [K]."""
        offsets = np.asarray(self.offsets)
        return jagged(self.values, offsets[keys_K], offsets[keys_K + 1])

    def ends(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the ends of the sequences of users [start, stop) among the values."""
        return np.asarray(self.offsets)[
            np.minimum(np.arange(start, stop) + 1, len(self.offsets) - 1)
        ]


@dataclass(frozen=True, kw_only=True)
class LastPositives:
    """The positives before a window, the last of each user."""

    sequences: Sequences
    num_tied_U: NDArray[np.int64]
    """Last positives of the last second before the window [U]: rows of that second do not see them."""
    end: int | None
    """That second; None: the log has no times."""


def last_second(manifest: Manifest) -> int | None:
    """Return the time of the last row of prepared data; None where the log has no times."""
    times = [spec.timestamp_max for spec in manifest.splits.values()]
    return max((time for time in times if time is not None), default=None)


def read_last_positives(
    engine: Engine, recipe: Recipe, manifest: Manifest, prepared: Path
) -> LastPositives:
    """Return the last positives of every user of prepared data."""
    end = last_second(manifest)
    if manifest.chain:
        names = ("values", "offsets", "num_tied")
        values, offsets, num_tied_U = (
            read_array(prepared / LATEST / f"{name}.npy", PREPARE_AGAIN, mmap=True)
            for name in names
        )
        return LastPositives(sequences=Sequences(values, offsets), num_tied_U=num_tied_U, end=end)
    num_users = manifest.num_user_rows
    query = positives_sql(recipe, manifest, prepared)
    positives = engine.create("positives", f"{query} ORDER BY user_row, ts, row_id")
    sequences = _sequences(
        engine, f"SELECT user_row AS key, item_row AS value FROM {positives}", num_users
    )
    num_tied_U = _num_at(engine, positives, end, num_users)
    engine.drop(positives)
    return LastPositives(sequences=sequences, num_tied_U=num_tied_U, end=end)


def positives_sql(recipe: Recipe, manifest: Manifest, prepared: Path) -> str:
    """SQL of (row_id, user_row, item_row, ts) of the positives of all splits."""
    has_times = recipe.interactions.timestamp is not None
    ts = "timestamp" if has_times else stand_in_time_sql(recipe.split.seed)
    parts = []
    for index, name in enumerate(manifest.splits_in_time):
        files = ", ".join(literal(str(prepared / file)) for file in manifest.splits[name].files)
        parts.append(
            f"SELECT row_id, user_row, item_row, {ts} AS ts FROM (SELECT *, {index} AS split FROM "
            f"read_parquet([{files}])) log WHERE label = 1 AND user_row > 0 AND item_row > 0"
        )
    return " UNION ALL ".join(parts)


def _sequences(engine: Engine, query: str, num_users: int) -> Sequences:
    """Return the sequences of SQL of (key, value) by key, as files of the engine's folder."""
    folder = engine.scratch / engine.unused("sequences")
    folder.mkdir()
    values, offsets = folder / "values.npy", folder / "offsets.npy"
    write_lists(engine, query, values, offsets, num_users)
    return Sequences(*(read_array(path, PREPARE_AGAIN, mmap=True) for path in (values, offsets)))


def _num_at(
    engine: Engine, positives: Table, second: int | None, num_users: int
) -> NDArray[np.int64]:
    """Return how many positives of a second each user has [num_users]."""
    num_U = np.zeros(num_users, dtype=np.int64)
    if second is not None:
        query = (
            f"SELECT user_row AS key, count(*) AS value FROM {positives} WHERE ts = {second} "
            f"GROUP BY key"
        )
        for batch in engine.batches(query):
            num_U[batch.column("key").to_numpy()] = batch.column("value").to_numpy()
    return num_U


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
    placed.needs("row_id", "label", "user_row", "item_row", "ts")
    sequence = engine.create(
        "sequence",
        f"SELECT row_id, user_row, item_row, ts, label = 1 AND item_row > 0 AS is_positive, CAST("
        f"{'label = 1 AND item_row > 0' if history.scope == 'past' else 'false'} AS INTEGER) AS "
        f"is_held, true AS reads FROM {placed} WHERE user_row > 0 ORDER BY user_row, ts, row_id",
    )
    positives = engine.create("positives", f"SELECT * FROM {sequence} WHERE is_positive")
    added = _sequences(
        engine, f"SELECT user_row AS key, item_row AS value FROM {positives}", num_users
    )
    ends = _ends(engine, sequence, last, num_users)
    in_window_U = np.zeros(num_users, dtype=bool)
    for batch in engine.batches(f"SELECT DISTINCT user_row FROM {sequence}"):
        in_window_U[batch.column(0).to_numpy()] = True
    total_U = last.sequences.lengths(num_users) + added.lengths(num_users)
    folder = prepared / history.folder(window)
    write_sequences(folder, last.sequences, added, np.where(in_window_U, total_U, 0))
    end = None
    if last.end is not None:
        (end,) = engine.one(f"SELECT max(ts) FROM {placed}")
    num_tied_U = _num_at(engine, positives, end, num_users)
    if end == last.end:
        num_tied_U[: len(last.num_tied_U)] += last.num_tied_U
    write_sequences(
        prepared / LATEST,
        last.sequences,
        added,
        np.minimum(total_U, history.max_length + num_tied_U),
    )
    new_array(prepared / LATEST / "num_tied.npy", np.int64, (num_users,))[:] = num_tied_U
    num_positives = engine.count(positives)
    engine.drop(sequence, positives)
    return ends, num_positives


def _ends(engine: Engine, sequence: Table, last: LastPositives, num_users: int) -> Table:
    """Return the table (row_id, history_end) of the rows of a window."""
    lengths_U = last.sequences.lengths(num_users)
    num_tied_U = np.zeros(num_users, dtype=np.int64)
    num_tied_U[: len(last.num_tied_U)] = last.num_tied_U
    users = engine.rows(f"SELECT DISTINCT user_row FROM {sequence}")
    users_K = np.array(users, dtype=np.int64).reshape(-1)
    before = engine.create_from(
        "before",
        pa.table({
            "user_row": users_K,
            "num_stored": lengths_U[users_K],
            "num_tied": num_tied_U[users_K],
        }),
    )
    unseen = "0" if last.end is None else f"CASE WHEN q.ts = {last.end} THEN num_tied ELSE 0 END"
    ends = engine.create(
        "ends",
        f"SELECT e.row_id, CAST(e.history_end + num_stored - {unseen} AS INTEGER) AS history_end "
        f"FROM ({ends_sql(sequence)}) e JOIN {sequence} q ON q.row_id = e.row_id "
        f"JOIN {before} b ON b.user_row = q.user_row",
    )
    engine.drop(before)
    return ends


def write_sequences(
    folder: Path,
    first: Sequences,
    then: Sequences,
    num_kept_U: NDArray[np.int64],
    prefix: str = "",
    name: str = "values",
) -> None:
    """Write values.npy and offsets.npy of each user's two sequences end to end, the last of them.

    Args:
        folder: made where it is not there.
        prefix: of the names of the files.
        name: of the file of values, in the place of `values`.
        num_kept_U: how many values of each user are kept [U], at most as many as there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_users = len(num_kept_U)
    offsets = new_array(folder / f"{prefix}offsets.npy", np.int64, (num_users + 1,))
    np.cumsum(num_kept_U, out=offsets[1:])
    kind = first.values.dtype.type
    values: NDArray = new_array(folder / f"{prefix}{name}.npy", kind, (int(offsets[-1]),))
    then_U = np.minimum(then.lengths(num_users), num_kept_U)
    for start in range(0, num_users, _BLOCK_USERS):
        stop = min(start + _BLOCK_USERS, num_users)
        then_B = then_U[start:stop]
        first_B = num_kept_U[start:stop] - then_B
        starts_B = np.asarray(offsets[start:stop])
        for sequences, lengths_B, places_B in (
            (first, first_B, starts_B),
            (then, then_B, starts_B + first_B),
        ):
            ends_B = sequences.ends(start, stop)
            found, _ = jagged(sequences.values, ends_B - lengths_B, ends_B)
            values[_places(places_B, lengths_B)] = found


def _places(starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return starts[i], starts[i] + 1, ... of every i, lengths[i] of them, end to end."""
    firsts_B = np.cumsum(lengths_B) - lengths_B
    return np.repeat(starts_B - firsts_B, lengths_B) + np.arange(int(lengths_B.sum()))
