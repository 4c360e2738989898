"""Negatives for a log of positives only: items the user never interacted with, seeded.

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

    Items are told apart by id: those that share the unknown row 0 are drawn too, else row 0 would be
    positive always. A user who knows nearly every item may get fewer. Everything else of a drawn row
    is its positive's, the time and the context too: a context that only positives have would give the
    label away. A positive that repeats one of an earlier split has no negatives of its kind, see
    `count_repeats`.
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


def count_repeats(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the positives of valid and test whose user has the item in an earlier split already.

    Drawn negatives never are such items, so that a user knows an item tells these labels.
    """
    numbers = ", ".join(
        f"count(CASE WHEN split = {index} THEN 1 END) AS num_{name}"
        for index, name in enumerate(SPLITS)
    )
    (count,) = connection.execute(
        f"SELECT coalesce(sum(CASE WHEN num_train > 0 THEN num_valid + num_test WHEN num_valid > 0 "
        f"THEN num_test ELSE 0 END), 0) FROM (SELECT {numbers} FROM placed WHERE label = 1 "
        f"GROUP BY user_id, item_id)"
    ).fetchall()[0]
    return int(count)


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
        f"CREATE TEMP TABLE known AS SELECT DISTINCT user_id, item_id FROM placed "
        f"WHERE split <= {split}"
    )
    connection.execute(
        f"CREATE TEMP TABLE wanted AS SELECT row_id, user_id, k FROM placed, "
        f"range({recipe.per_positive}) AS r(k) WHERE split = {split}"
    )
    for attempt in range(_ROUNDS):
        key = f"concat('{recipe.seed}:{attempt}:', w.row_id, ':', w.k)"
        # In steps: joins side by side need memory for each at once.
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE chosen AS SELECT w.row_id, w.user_id, w.k, p.item_id, "
            f"p.item_row FROM wanted w JOIN pool p ON p.place = md5_number_lower({key}) % {size}"
        )
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE allowed AS SELECT * FROM chosen c WHERE NOT EXISTS "
            "(SELECT 1 FROM known n WHERE n.user_id = c.user_id AND n.item_id = c.item_id)"
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
    for table in ("pool", "known", "wanted", "chosen", "allowed"):
        connection.execute(f"DROP TABLE {table}")
