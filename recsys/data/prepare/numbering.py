"""Numbering: users and items as rows of their tables, and the log with these rows.

In: the log and its splits. Out: the vocabularies (id, row, count) and the table `placed`, one line an
interaction: row_id, label, user_id, user_row, item_row, ts, split and the interaction features; also
item_id where negatives will be drawn.
"""

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.history import stand_in_time_sql
from recsys.data.prepare.inputs import Catalogue
from recsys.data.prepare.vocab import build_vocabulary
from recsys.data.recipe import SPLITS, InteractionsRecipe, Recipe, SplitRecipe
from recsys.data.sql import quoted
from recsys.errors import UserError


def number_ids(
    engine: Engine,
    log: Table,
    splits: Table,
    side: str,
    *,
    min_count: int,
    catalogue: Catalogue | None,
) -> Table:
    """Return the vocabulary of users or items: (id, row, count), rows from 1 by falling count.

    It has the ids of training rows and of the catalogue, never one known from valid or test alone:
    such an id is unknown at serving too. A user whom the users file lacks is still known by training
    rows; an item's absence has its own rule (`interactions.unknown_items`).

    Args:
        log: with row_id and `<side>_id`.
        splits: (row_id, split).
        min_count: training rows that an id needs if no catalogue has it.
    """
    log.needs("row_id", f"{side}_id")
    splits.needs("row_id", "split")
    train = f"FROM ({training_rows(log, splits)})"
    if catalogue is None:
        return build_vocabulary(
            engine, f"{side}_vocab", f"SELECT {side}_id AS id {train}", min_count
        )
    trained = f"SELECT {side}_id AS id, count(*) AS n {train} GROUP BY id"
    join = "FULL JOIN" if side == "user" else "LEFT JOIN"
    return engine.create(
        f"{side}_vocab",
        f"SELECT id, CAST(row_number() OVER (ORDER BY n DESC, id) AS INTEGER) AS row, n AS count FROM "
        f"(SELECT id, coalesce(n, 0) AS n FROM (SELECT {quoted(catalogue.id_column)} AS id, true "
        f"AS listed FROM {catalogue.source.view}) {join} ({trained}) USING (id) "
        f"WHERE listed OR n >= {min_count})",
    )


def training_rows(log: Table, splits: Table) -> str:
    """SQL of the training rows of a log."""
    return f"SELECT log.* FROM {log} log JOIN {splits} USING (row_id) WHERE split = 0"


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


def check_splits(engine: Engine, placed: Table, recipe: Recipe) -> None:
    """Refuse splits without rows.

    Raises:
        UserError: names each of them.
    """
    problems = Problems()
    for index, name in enumerate(SPLITS):
        if not engine.count(placed, f"split = {index}"):
            problems.found.append(
                f"split {name!r} is empty with split.strategy={recipe.split.strategy}, "
                f"fractions {recipe.split.fractions}; change split, or give more rows"
            )
    problems.raise_if_any()


def check_training_classes(
    engine: Engine, placed: Table, log: InteractionsRecipe, split: SplitRecipe, num_drawn: int
) -> None:
    """Refuse a training split of one class, of which nothing can be learned.

    Args:
        num_drawn: negatives drawn for all splits.

    Raises:
        UserError: it has no positives or no negatives; says which rule of the recipe to change.
    """
    num_rows, num_positives = engine.one(
        f"SELECT count(*), count(*) FILTER (WHERE label = 1) FROM {placed} WHERE split = 0"
    )
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


def count_unknown(engine: Engine, placed: Table, log: InteractionsRecipe) -> dict[str, int]:
    """Return the rows whose user or item has the unknown row 0, where there are any."""
    counts = {}
    for side, column in (("user", log.user_id), ("item", log.item_id)):
        if column and (count := engine.count(placed, f"{side}_row = 0")):
            counts[f"{side}_id"] = count
    return counts
