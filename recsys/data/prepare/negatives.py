"""Negatives for a log of positives only: items without a positive of the user so far, seeded.

In: `placed` and the items' vocabulary. Out: the drawn items, a few for each positive. Drawn in SQL, so
that a log of any length fits.
"""

from collections.abc import Iterable, Iterator

from recsys.data.prepare.engine import Engine, Table
from recsys.data.recipe import NegativesRecipe

_ROUNDS = 30


def draw_negatives(
    engine: Engine,
    recipe: NegativesRecipe,
    placed: Table,
    pools: Iterable[Table],
    earlier: Table | None = None,
) -> Table:
    """Return drawn items (row_id of the positive, user_id, k, item_id, item_row).

    For every positive, `per_positive` different items are drawn that the user has no positive of in
    the positive's split or an earlier one. Later splits are never looked at: if training negatives
    avoided the positives of the test split, a model could recognise those as the items that were never
    a training negative. A training negative may therefore be a positive of a later split.

    - `uniform`: every item of the catalogue, and of the log up to this split, is drawn equally often.
    - `popularity`: in proportion to an item's positives in this split, so that the popularity of
      training does not tell a split's positives from its negatives.

    A positive that repeats an item of an earlier split gets repeats as negatives: other items that the
    user had in an earlier split and not in this one, each equally often. Otherwise every repeated item
    would be a positive. (An item liked twice within one split gets none: under history scope `past`
    the second row's history has the first, and no negative's has.)

    Items are compared by id: those that share the unknown row 0 are drawn too, otherwise row 0 would
    always be a positive. A user who knows nearly every item, or who repeats all of them, may get fewer.

    Args:
        placed: positives alone, with row_id, user_id, item_id, item_row and split: all rows of a user,
            and not necessarily all users.
        pools: of each split in turn, the items that negatives are drawn from, of all users
            (`item_pools`).
        earlier: of an append, the positives of all earlier splits (user_id, item_id, item_row); those
            of an unknown user or item are not among them. The rows of `placed` are all of split 0.
    """
    placed.needs("row_id", "user_id", "item_id", "item_row", "split")
    drawn = engine.create(
        "drawn",
        "SELECT 0::BIGINT AS row_id, '' AS user_id, 0::BIGINT AS k, '' AS item_id, "
        "0::INTEGER AS item_row WHERE false",
        is_temporary=True,
    )
    for split, pool in enumerate(pools):
        known = _known(engine, placed, split, earlier)
        _draw_for(engine, recipe, _wanted(engine, recipe, placed, known, split), pool, known, drawn)
        engine.drop(known)
    return drawn


def numbered_sql(drawn: Table, first_row_id: int) -> str:
    """SQL of the numbers of drawn items (row_id, k, number): the row ids that they get."""
    return (
        f"SELECT row_id, k, {first_row_id} + row_number() OVER (ORDER BY row_id, k) - 1 AS number "
        f"FROM {drawn}"
    )


def add_negatives(engine: Engine, placed: Table, drawn: Table, numbers: str) -> None:
    """Append the drawn rows to `placed`: label 0, and row ids of their own.

    Everything else of a drawn row is its positive's, the time and the context too: a context that only
    positives have would reveal the label.

    Args:
        numbers: SQL of the row ids (row_id of the positive, k, number).
    """
    engine.append(
        placed,
        f"SELECT p.* REPLACE (n.number AS row_id, CAST(0 AS UTINYINT) AS label, d.item_id AS item_id, "
        f"d.item_row AS item_row) FROM {drawn} d JOIN ({numbers}) n ON n.row_id = d.row_id AND n.k = d.k "
        f"JOIN {placed} p ON p.row_id = d.row_id",
    )


def item_pools(
    engine: Engine, recipe: NegativesRecipe, placed: Table, items: Table, num_splits: int
) -> Iterator[Table]:
    """Yield the items that each split's negatives are drawn from; a pool is dropped with the next one.

    Args:
        placed: the rows of all users, with row_id, item_id, item_row and split.
        items: vocabulary (id, row).

    Returns:
        Tables (place, item_id, item_row), places from 0.
    """
    for split in range(num_splits):
        pool = engine.create("pool", pool_sql(recipe, placed, items, split), is_temporary=True)
        yield pool
        engine.drop(pool)


def pool_sql(recipe: NegativesRecipe, placed: Table, items: Table, split: int) -> str:
    """SQL of the items that a split's negatives are drawn from: (place, item_id, item_row), from 0."""
    if recipe.strategy == "uniform":
        return (
            f"SELECT row_number() OVER (ORDER BY item_row, item_id) - 1 AS place, item_id, item_row "
            f"FROM (SELECT id AS item_id, row AS item_row FROM {items} "
            f"UNION SELECT item_id, item_row FROM {placed} WHERE split <= {split})"
        )
    return (
        f"SELECT row_number() OVER (ORDER BY row_id) - 1 AS place, item_id, item_row "
        f"FROM {placed} WHERE split = {split}"
    )


def _known(engine: Engine, placed: Table, split: int, earlier: Table | None) -> Table:
    """Return the users' positives up to a split: (user_id, item_id, item_row, is_earlier, is_now)."""
    positives = f"SELECT user_id, item_id, item_row, split FROM {placed} WHERE split <= {split}"
    if earlier:
        positives += f" UNION ALL SELECT user_id, item_id, item_row, {split - 1} FROM {earlier}"
    return engine.create(
        "known",
        f"SELECT user_id, item_id, any_value(item_row) AS item_row, bool_or(split < {split}) AS "
        f"is_earlier, bool_or(split = {split}) AS is_now FROM ({positives}) GROUP BY user_id, item_id",
        is_temporary=True,
    )


def _wanted(
    engine: Engine, recipe: NegativesRecipe, placed: Table, known: Table, split: int
) -> Table:
    """Return a line for each negative of a split: (row_id, user_id, k, is_repeat)."""
    return engine.create(
        "wanted",
        f"SELECT p.row_id, p.user_id, k, n.is_earlier AS is_repeat FROM {placed} p JOIN {known} n "
        f"ON n.user_id = p.user_id AND n.item_id = p.item_id, range({recipe.per_positive}) AS r(k) "
        f"WHERE p.split = {split}",
        is_temporary=True,
    )


def _draw_for(
    engine: Engine, recipe: NegativesRecipe, wanted: Table, pool: Table, known: Table, drawn: Table
) -> None:
    """Append to `drawn` the negatives of one split, and drop `wanted`."""
    # Negatives of repeats are drawn from here: all users' items, numbered, one user after the other.
    had = engine.create(
        "had",
        f"SELECT row_number() OVER () - 1 AS place, * FROM (SELECT user_id, item_id, item_row "
        f"FROM {known} WHERE is_earlier AND NOT is_now ORDER BY user_id, item_id)",
        is_temporary=True,
    )
    users_had = engine.create(
        "users_had",
        f"SELECT user_id, min(place) AS first, count(*) AS num_items FROM {had} GROUP BY user_id",
        is_temporary=True,
    )
    for attempt in range(_ROUNDS):
        draw_sql = f"md5_number_lower(concat('{recipe.seed}:{attempt}:', w.row_id, ':', w.k))"
        allowed = _allowed(engine, draw_sql, wanted, pool, known, (had, users_had))
        # Each item once per positive; negatives that collide with a known or drawn item wait for
        # the next round.
        engine.append(
            drawn,
            f"SELECT row_id, user_id, min(k), item_id, item_row FROM {allowed} c "
            f"WHERE NOT EXISTS (SELECT 1 FROM {drawn} d WHERE d.row_id = c.row_id AND "
            f"d.item_id = c.item_id) GROUP BY row_id, user_id, item_id, item_row",
        )
        engine.drop(allowed)
        engine.delete(
            wanted,
            f"EXISTS (SELECT 1 FROM {drawn} d WHERE d.row_id = {wanted}.row_id AND "
            f"d.k = {wanted}.k)",
        )
        if not engine.count(wanted):
            break
    engine.drop(wanted, had, users_had)


def _allowed(
    engine: Engine,
    draw_sql: str,
    wanted: Table,
    pool: Table,
    known: Table,
    had: tuple[Table, Table],
) -> Table:
    """Return one round's candidates (row_id, user_id, k, item_id, item_row) of the wanted negatives.

    Args:
        draw_sql: SQL of a pseudo-random number for a row `w` of `wanted`.
        had: users' items of earlier splits by place, and the first place of each user.
    """
    size = engine.count(pool)
    items_had, users_had = had
    # In steps: joins side by side need memory for each at once.
    chosen = engine.create(
        "chosen",
        f"SELECT w.row_id, w.user_id, w.k, p.item_id, p.item_row FROM {wanted} w "
        f"JOIN {pool} p ON p.place = {draw_sql} % {size} WHERE NOT w.is_repeat",
        is_temporary=True,
    )
    allowed = engine.create(
        "allowed",
        f"SELECT * FROM {chosen} c WHERE NOT EXISTS (SELECT 1 FROM {known} n "
        f"WHERE n.user_id = c.user_id AND n.item_id = c.item_id)",
        is_temporary=True,
    )
    engine.append(
        allowed,
        f"SELECT w.row_id, w.user_id, w.k, h.item_id, h.item_row FROM "
        f"(SELECT w.*, u.first + {draw_sql} % u.num_items AS place FROM {wanted} w "
        f"JOIN {users_had} u ON u.user_id = w.user_id WHERE w.is_repeat) w "
        f"JOIN {items_had} h ON h.place = w.place",
    )
    engine.drop(chosen)
    return allowed
