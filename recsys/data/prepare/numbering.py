"""Numbering: users and items as rows of their tables, and the log with these rows.

In: the log and its splits. Out: the vocabularies (id, row, count) and the table `placed`, one line an
interaction: row_id, label, user_id, user_row, item_row, ts, split and the interaction features; also
item_id where negatives will be drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.growth import create_vocabulary, row_number_sql
from recsys.data.prepare.history import stand_in_time_sql
from recsys.data.prepare.vocab import build_vocabulary
from recsys.data.recipe import SPLITS, InteractionsRecipe, Recipe, SplitRecipe
from recsys.data.sql import quoted
from recsys.errors import UserError


def number_ids(
    engine: Engine, trained: str, side: str, *, min_count: int, listed: str | None
) -> Table:
    """Return the vocabulary of users or items: (id, row, count), rows from 1 by falling count.

    It has the ids of training rows and of the catalogue, never one known from valid or test alone:
    such an id is unknown at serving too. A user whom the users file lacks is still known by training
    rows; an item's absence has its own rule (`interactions.unknown_items`).

    Args:
        trained: SQL of the different ids of training rows and their rows (id, n).
        min_count: training rows that an id needs if no catalogue has it.
        listed: SQL of the ids of the catalogue (id); None: there is none.

    Raises:
        UserError: there are more ids than rows can be numbered.
    """
    key = f"interactions.{side}_min_count"
    if listed is None:
        return build_vocabulary(engine, f"{side}_vocab", trained, min_count, key)
    join = "FULL JOIN" if side == "user" else "LEFT JOIN"
    return create_vocabulary(
        engine,
        f"{side}_vocab",
        f"SELECT id, {row_number_sql()} AS row, n AS count FROM "
        f"(SELECT id, coalesce(n, 0) AS n FROM (SELECT id, true AS listed FROM ({listed})) "
        f"{join} ({trained}) USING (id) "
        f"WHERE listed OR n >= {min_count})",
        key,
    )


def training_ids(log: Table, splits: Table, side: str) -> str:
    """SQL of the ids of users or items of the training rows of a log (id), one for each row."""
    log.needs("row_id", f"{side}_id")
    splits.needs("row_id", "split")
    return f"SELECT {side}_id AS id FROM {log} log JOIN {splits} USING (row_id) WHERE split = 0"


def without_ids(engine: Engine, side: str) -> Table:
    """Return the empty vocabulary of a log that has no users or no items."""
    query = "SELECT '' AS id, 0::INTEGER AS row, 0::BIGINT AS count WHERE false"
    return engine.create(f"{side}_vocab", query)


def place(
    engine: Engine, recipe: Recipe, log: Table, splits: Table, users: Table, items: Table
) -> Table:
    """Return the table `placed`: the log with splits and rows; unknown ids have row 0.

    Args:
        users, items: vocabularies (id, row, count).
    """
    log.needs("row_id", "user_id", "item_id", "ts", "label", *recipe.interactions.features)
    features = "".join(f", log.{quoted(name)}" for name in recipe.interactions.features)
    features = ", sample_weight" * bool(recipe.interactions.weight) + features
    ids = "log.user_id, log.item_id" if recipe.interactions.negatives else "log.user_id"
    ts = "ts" if recipe.interactions.timestamp else stand_in_time_sql(recipe.split.seed)
    return engine.create(
        "placed",
        f"SELECT log.row_id, label, {ids}, coalesce(u.row, 0) AS user_row, coalesce(i.row, 0) AS "
        f"item_row, {ts} AS ts, split{features} FROM {log} log JOIN {splits} USING (row_id) "
        f"LEFT JOIN {users} u ON log.user_id = u.id LEFT JOIN {items} i ON log.item_id = i.id",
    )


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Counts of the rows of one split."""

    num_rows: int = 0
    num_positives: int = 0
    num_unknown_users: int = 0
    num_unknown_items: int = 0
    timestamp_min: int | None = None
    timestamp_max: int | None = None

    def __add__(self, other: "SplitCounts") -> "SplitCounts":
        times = [
            [t for t in pair if t is not None]
            for pair in (
                (self.timestamp_min, other.timestamp_min),
                (self.timestamp_max, other.timestamp_max),
            )
        ]
        return SplitCounts(
            num_rows=self.num_rows + other.num_rows,
            num_positives=self.num_positives + other.num_positives,
            num_unknown_users=self.num_unknown_users + other.num_unknown_users,
            num_unknown_items=self.num_unknown_items + other.num_unknown_items,
            timestamp_min=min(times[0], default=None),
            timestamp_max=max(times[1], default=None),
        )


def count_splits(engine: Engine, placed: Table) -> dict[int, SplitCounts]:
    """Return the counts of each split by its number; a split without rows is not there."""
    placed.needs("split", "label", "user_row", "item_row", "ts")
    found = engine.rows(
        f"SELECT split, count(*), count(*) FILTER (WHERE label = 1), count(*) FILTER (WHERE user_row "
        f"= 0), count(*) FILTER (WHERE item_row = 0), min(ts), max(ts) FROM {placed} GROUP BY split"
    )
    return {
        split: SplitCounts(
            num_rows=num_rows,
            num_positives=num_positives,
            num_unknown_users=num_unknown_users,
            num_unknown_items=num_unknown_items,
            timestamp_min=first,
            timestamp_max=last,
        )
        for split, num_rows, num_positives, num_unknown_users, num_unknown_items, first, last in found
    }


def check_splits(counts: Mapping[int, SplitCounts], recipe: Recipe) -> None:
    """Refuse splits without rows.

    Raises:
        UserError: names each of them.
    """
    problems = Problems()
    for index, name in enumerate(SPLITS):
        if index not in counts:
            problems.found.append(
                f"split {name!r} is empty with split.strategy={recipe.split.strategy}, "
                f"fractions {recipe.split.fractions}; change split, or give more rows"
            )
    problems.raise_if_any()


def check_training_classes(
    counts: SplitCounts, log: InteractionsRecipe, split: SplitRecipe, num_drawn: int
) -> None:
    """Refuse a training split of one class, of which nothing can be learned.

    Args:
        counts: of the training split.
        num_drawn: negatives drawn for all splits.

    Raises:
        UserError: it has no positives or no negatives; says which rule of the recipe to change.
    """
    num_rows, num_positives = counts.num_rows, counts.num_positives
    if 0 < num_positives < num_rows:
        return
    if log.negatives:
        rule = (
            f"of interactions.negatives {num_drawn:,} could be drawn, none of them for train: its "
            f"users know every item; list more items in items.file, or leave users out of the log"
        )
    else:
        lacking = "change" if num_positives == 0 else "set interactions.negatives, or change"
        rule = f"{lacking} interactions.label={log.label!r} or split.strategy={split.strategy}"
    raise UserError(
        f"split train has {num_rows:,} rows and no "
        f"{'negatives' if num_positives else 'positives'}, so nothing can be learned: {rule}"
    )


def count_unknown(counts: Mapping[int, SplitCounts], log: InteractionsRecipe) -> dict[str, int]:
    """Return the rows whose user or item has the unknown row 0, where there are any."""
    total = sum(counts.values(), SplitCounts())
    unknown = {}
    if log.user_id and total.num_unknown_users:
        unknown["user_id"] = total.num_unknown_users
    if log.item_id and total.num_unknown_items:
        unknown["item_id"] = total.num_unknown_items
    return unknown
