"""Histories: each user's earlier positives, stored once, and how many of them each row may see.

In: `placed`. Out: the stored sequences as files, and a table (row_id, history_end). One rule for every
split strategy: a row sees those positives of its user that are strictly earlier (rows of the same
second do not see each other) and in the splits of the scope:

- scope `train`: the training split;
- scope `past`: the row's own split and earlier ones. With `time` and `per_user_time` these are all
  earlier positives; with `random` and `given`, training rows see training positives alone.

Without times (scope `train` only), training rows get a seeded order, and rows of valid and test come
after them and see all training positives. So no training row sees a positive of valid or test, and no
row sees one of its own time or later.

With history.negative_length, the user's items of label 0 are a second sequence by the same rule.

Each row may see a leading part of a stored sequence. Only `past` with `random` or `given`, whose
splits overlap in time, needs one set of sequences for each split.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.split import order_hash
from recsys.data.prepare.writing import write_list_batches
from recsys.data.recipe import SPLITS, Recipe
from recsys.schema import HISTORIES, HistorySpec, end_column


def are_stored_by_split(scope: str, strategy: str) -> bool:
    """Return whether each split has its own sequences."""
    return scope == "past" and strategy in ("random", "given")


def stand_in_time_sql(seed: int) -> str:
    """SQL of a time for a log without any, over (row_id, split): seeded, split after split."""
    return f"CAST({order_hash(seed, 'log.row_id')} >> 3 AS BIGINT) + (CAST(split AS BIGINT) << 61)"


def history_spec(recipe: Recipe) -> HistorySpec | None:
    """Return the manifest's history entry, None without users, items or length."""
    log, history = recipe.interactions, recipe.history
    if not (log.user_id and log.item_id and history.max_length):
        return None
    return HistorySpec(
        max_length=history.max_length,
        recent_length=history.recent_length,
        negative_length=history.negative_length,
        scope=history.scope,
        is_by_split=are_stored_by_split(history.scope, recipe.split.strategy),
    )


def write_histories(
    engine: Engine, history: HistorySpec, placed: Table, num_user_rows: int, prepared: Path
) -> tuple[Table, dict[str, int]]:
    """Write the stored sequences, values and offsets [num_user_rows + 1] by user row.

    Args:
        placed: with row_id, label, user_row, item_row, ts and split.

    Returns:
        The table (row_id, <name>_end...): how many leading entries of each of the user's sequences the
        row may see; rows of unknown users have no line. And the number of stored items, by sequence.
    """
    placed.needs("row_id", "label", "user_row", "item_row", "ts", "split")
    names = history.sequences
    none = ", ".join(f"0::INTEGER AS {end_column(name)}" for name in names)
    ends = engine.create("ends", f"SELECT 0::BIGINT AS row_id, {none} WHERE false")
    num_stored = dict.fromkeys(names, 0)
    for split in stored_splits(history):
        rows = build_sequences(engine, placed, history, split)
        engine.append(ends, ends_sql(rows, names))
        for name in names:
            stored = engine.batches(stored_sql(rows, name))
            folder = prepared / history.folder(split, name)
            num_values = write_stored(stored, folder, num_user_rows)
            num_stored[name] = max(num_stored[name], num_values)
        engine.drop(rows)
    return ends, num_stored


def stored_splits(history: HistorySpec) -> tuple[str, ...]:
    """Return the splits by which sequences are stored."""
    return SPLITS if history.is_by_split else SPLITS[-1:]


def stored_sql(rows: Table, name: str) -> str:
    """SQL of the stored items of a sequence, in its order: (key, value), user and item rows."""
    return f"SELECT user_row AS key, item_row AS value FROM {rows} WHERE {held_column(name)} = 1"


def items_text(num_items: Mapping[str, int]) -> str:
    """Return how many items of each sequence there are, for the job's report."""
    kinds = {1: "positives", 0: "negatives"}
    texts = [f"{count:,} {kinds[HISTORIES[name]]}" for name, count in num_items.items()]
    return " and ".join(texts or ["0 positives"])


def is_item_sql(name: str) -> str:
    """SQL of whether a row's item is of a sequence, over (label, item_row)."""
    return f"label = {HISTORIES[name]} AND item_row > 0"


def held_column(name: str) -> str:
    """Return the column that says whether a row's item is stored in a sequence: 1 or 0."""
    return f"is_held{name.removeprefix('history')}"


def write_stored(batches: Iterable[pa.RecordBatch], folder: Path, num_user_rows: int) -> int:
    """Write stored items (key, value) by user row into a new folder; return their number."""
    folder.mkdir(parents=True)
    num_values, _ = write_list_batches(
        batches, folder / "values.npy", folder / "offsets.npy", num_user_rows
    )
    return num_values


def build_sequences(engine: Engine, placed: Table, history: HistorySpec, split: str) -> Table:
    """Return users' rows in order: (row_id, user_row, item_row, ts, is_held..., reads).

    Args:
        split: whose rows read the sequence; where splits have none of their own, all rows do.
    """
    index = SPLITS.index(split)
    last = 0 if history.scope == "train" else index if history.is_by_split else len(SPLITS) - 1
    reads = f"split = {index}" if history.is_by_split else "true"
    held = ", ".join(
        f"CAST({is_item_sql(name)} AND split <= {last} AS INTEGER) AS {held_column(name)}"
        for name in history.sequences
    )
    return engine.create(
        "sequences",
        f"SELECT row_id, user_row, item_row, ts, {held}, "
        f"{reads} AS reads FROM {placed} WHERE user_row > 0 ORDER BY user_row, ts, row_id",
    )


def ends_sql(rows: Table, names: Sequence[str]) -> str:
    """SQL of (row_id, <name>_end...) of the rows that read the sequences.

    Windows without PARTITION BY and ORDER BY pass over the sorted table once, row by row: time and
    memory do not depend on how many rows a user has, as they would with one window for each user.
    """
    rows.needs("row_id", "user_row", "ts", "reads", *map(held_column, names))
    # `before_<name>` never falls, so its last value at the first row of a moment, or of a user, is the
    # largest so far.
    over = "OVER (ROWS UNBOUNDED PRECEDING)"
    before = ", ".join(
        f"sum({held_column(name)}) {over} - {held_column(name)} AS before_{name}" for name in names
    )
    counted = (
        f"SELECT row_id, reads, {before}, "
        f"user_row IS DISTINCT FROM lag(user_row) OVER () AS begins_user, "
        f"ts IS DISTINCT FROM lag(ts) OVER () AS begins_time FROM {rows}"
    )
    ends = ", ".join(
        f"CAST(max(CASE WHEN begins_user OR begins_time THEN before_{name} END) {over} "
        f"- max(CASE WHEN begins_user THEN before_{name} END) {over} AS INTEGER) AS {end_column(name)}"
        for name in names
    )
    columns = ", ".join(end_column(name) for name in names)
    return (
        f"SELECT row_id, {columns} FROM (SELECT row_id, reads, {ends} FROM ({counted})) WHERE reads"
    )
