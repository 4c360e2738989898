"""Negatives for a log of positives only: items without a positive of the user so far, seeded.

Drawn in SQL, so that a log of any length fits; called by prepare after the split.
"""

import duckdb

from recsys.data.recipe import SPLITS, NegativesRecipe

_ROUNDS = 30


def draw_negatives(
    connection: duckdb.DuckDBPyConnection, recipe: NegativesRecipe, rows_in: int
) -> int:
    """Append drawn rows (label 0, row ids from `rows_in` on) to `placed`; return how many.

    For every positive, `per_positive` different items that the user has no positive of in the
    positive's split or an earlier one. What is made for a split knows that split and earlier ones,
    never a later one: if training negatives avoided the positives of the test split, never to have
    been a training negative would give these away. So a training negative may turn out to be a
    positive later.

    - `uniform`: every item of the catalogue, and of the log up to this split, is drawn equally often.
    - `popularity`: in proportion to an item's positives in this split, so that the popularity of
      training does not tell a split's positives from its negatives.

    A positive that repeats an item of an earlier split has negatives of its kind: other items that
    the user has had in an earlier split and not in this one, each equally often. Else to have had an
    item would mean to like it. (An item liked twice within one split has none: under history scope
    `past` the second row sees the first, and no negative of it does.)

    Items are told apart by id: those that share the unknown row 0 are drawn too, else row 0 would be
    positive always. A user who knows nearly every item, or who repeats all of them, may get fewer.
    Everything else of a drawn row is its positive's, the time and the context too: a context that only
    positives have would give the label away.
    """
    connection.execute(
        "CREATE TEMP TABLE drawn (row_id BIGINT, user_id VARCHAR, k BIGINT, item_id VARCHAR, "
        "item_row INTEGER)"
    )
    for split in range(len(SPLITS)):
        _draw_for(connection, recipe, split)
    connection.execute(
        f"INSERT INTO placed SELECT p.* REPLACE ("
        f"{rows_in} + row_number() OVER (ORDER BY d.row_id, d.k) - 1 AS row_id, "
        f"CAST(0 AS UTINYINT) AS label, d.item_id AS item_id, d.item_row AS item_row) "
        f"FROM drawn d JOIN placed p ON p.row_id = d.row_id"
    )
    (count,) = connection.execute("SELECT count(*) FROM drawn").fetchall()[0]
    connection.execute("DROP TABLE drawn")
    return count


def _draw_for(connection: duckdb.DuckDBPyConnection, recipe: NegativesRecipe, split: int) -> None:
    """Add to `drawn` the negatives of one split; `placed` holds positives alone."""
    if recipe.strategy == "uniform":
        pool = (
            "SELECT row_number() OVER (ORDER BY item_row, item_id) - 1 AS place, item_id, item_row "
            "FROM (SELECT id AS item_id, row AS item_row FROM item_vocab "
            f"UNION SELECT item_id, item_row FROM placed WHERE split <= {split})"
        )
    else:
        pool = (
            "SELECT row_number() OVER (ORDER BY row_id) - 1 AS place, item_id, item_row "
            f"FROM placed WHERE split = {split}"
        )
    connection.execute(f"CREATE TEMP TABLE pool AS {pool}")
    (size,) = connection.execute("SELECT count(*) FROM pool").fetchall()[0]
    connection.execute(
        f"CREATE TEMP TABLE known AS SELECT user_id, item_id, any_value(item_row) AS item_row, "
        f"bool_or(split < {split}) AS is_earlier, bool_or(split = {split}) AS is_now FROM placed "
        f"WHERE split <= {split} GROUP BY user_id, item_id"
    )
    connection.execute(
        f"CREATE TEMP TABLE wanted AS SELECT p.row_id, p.user_id, k, n.is_earlier AS is_repeat "
        f"FROM placed p JOIN known n ON n.user_id = p.user_id AND n.item_id = p.item_id, "
        f"range({recipe.per_positive}) AS r(k) WHERE p.split = {split}"
    )
    # What a repeat's negatives come from: the items of each user side by side, numbered through.
    connection.execute(
        "CREATE TEMP TABLE had AS SELECT row_number() OVER () - 1 AS place, * FROM (SELECT user_id, "
        "item_id, item_row FROM known WHERE is_earlier AND NOT is_now ORDER BY user_id, item_id)"
    )
    connection.execute(
        "CREATE TEMP TABLE users_had AS SELECT user_id, min(place) AS first, count(*) AS num_items "
        "FROM had GROUP BY user_id"
    )
    for attempt in range(_ROUNDS):
        luck = f"md5_number_lower(concat('{recipe.seed}:{attempt}:', w.row_id, ':', w.k))"
        # In steps: joins side by side need memory for each at once.
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE chosen AS SELECT w.row_id, w.user_id, w.k, p.item_id, "
            f"p.item_row FROM wanted w JOIN pool p ON p.place = {luck} % {size} "
            f"WHERE NOT w.is_repeat"
        )
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE allowed AS SELECT * FROM chosen c WHERE NOT EXISTS "
            "(SELECT 1 FROM known n WHERE n.user_id = c.user_id AND n.item_id = c.item_id)"
        )
        connection.execute(
            f"INSERT INTO allowed SELECT w.row_id, w.user_id, w.k, h.item_id, h.item_row FROM "
            f"(SELECT w.*, u.first + {luck} % u.num_items AS place FROM wanted w "
            f"JOIN users_had u ON u.user_id = w.user_id WHERE w.is_repeat) w "
            f"JOIN had h ON h.place = w.place"
        )
        # One item once per positive; what collides with a known or drawn item waits for the next
        # round.
        connection.execute(
            "INSERT INTO drawn SELECT row_id, user_id, min(k), item_id, item_row FROM allowed c "
            "WHERE NOT EXISTS (SELECT 1 FROM drawn d WHERE d.row_id = c.row_id AND "
            "d.item_id = c.item_id) GROUP BY row_id, user_id, item_id, item_row"
        )
        connection.execute(
            "DELETE FROM wanted w WHERE EXISTS "
            "(SELECT 1 FROM drawn d WHERE d.row_id = w.row_id AND d.k = w.k)"
        )
        (left,) = connection.execute("SELECT count(*) FROM wanted").fetchall()[0]
        if not left:
            break
    for table in ("pool", "known", "wanted", "had", "users_had", "chosen", "allowed"):
        connection.execute(f"DROP TABLE {table}")
