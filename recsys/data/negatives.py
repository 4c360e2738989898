"""Negatives for a log of positives only: items the user never interacted with, seeded.

Drawn in SQL, so that a log of any length fits; called by prepare after the split.
"""

import duckdb

from recsys.data.recipe import NegativesRecipe

_ROUNDS = 30


def draw_negatives(
    connection: duckdb.DuckDBPyConnection, recipe: NegativesRecipe, rows_in: int
) -> int:
    """Append drawn rows (label 0, row ids from `rows_in` on) to `placed`; return how many.

    For every positive, `per_positive` different items, uniform over the catalogue or in proportion to
    an item's training positives, redrawn while the user interacted with the item in any split. A user
    who knows nearly every item may get fewer. Everything else of a drawn row is its positive's, the
    context too: a context that only positives have would give the label away.
    """
    if recipe.strategy == "uniform":
        pool = "SELECT row - 1 AS place, row AS item_row FROM item_vocab"
    else:
        pool = (
            "SELECT row_number() OVER (ORDER BY row_id) - 1 AS place, item_row FROM placed "
            "WHERE split = 0 AND item_row > 0"
        )
    connection.execute(f"CREATE TEMP TABLE pool AS {pool}")
    (size,) = connection.execute("SELECT count(*) FROM pool").fetchall()[0]
    connection.execute(
        "CREATE TEMP TABLE known AS SELECT DISTINCT user_row, user_id, item_row FROM placed"
    )
    connection.execute(
        f"CREATE TEMP TABLE wanted AS SELECT row_id, user_row, user_id, k FROM placed, "
        f"range({recipe.per_positive}) AS r(k) WHERE label = 1"
    )
    connection.execute(
        "CREATE TEMP TABLE drawn (row_id BIGINT, user_id VARCHAR, k BIGINT, item_row INTEGER)"
    )
    for attempt in range(_ROUNDS):
        key = f"concat('{recipe.seed}:{attempt}:', w.row_id, ':', w.k)"
        # One item once per positive; what collides with a known or drawn item waits for the next
        # round.
        connection.execute(
            f"INSERT INTO drawn SELECT row_id, user_id, min(k), item_row FROM (SELECT w.row_id, "
            f"w.user_id, w.k, p.item_row FROM wanted w "
            f"JOIN pool p ON p.place = md5_number_lower({key}) % {size}) c "
            f"WHERE NOT EXISTS (SELECT 1 FROM known n WHERE n.user_id = c.user_id AND "
            f"n.item_row = c.item_row) AND NOT EXISTS (SELECT 1 FROM drawn d WHERE "
            f"d.row_id = c.row_id AND d.item_row = c.item_row) GROUP BY row_id, user_id, item_row"
        )
        connection.execute(
            "DELETE FROM wanted w WHERE EXISTS "
            "(SELECT 1 FROM drawn d WHERE d.row_id = w.row_id AND d.k = w.k)"
        )
        (left,) = connection.execute("SELECT count(*) FROM wanted").fetchall()[0]
        if not left:
            break
    connection.execute(
        f"INSERT INTO placed SELECT p.* REPLACE ("
        f"{rows_in} + row_number() OVER (ORDER BY d.row_id, d.k) - 1 AS row_id, "
        f"CAST(0 AS UTINYINT) AS label, d.item_row AS item_row) "
        f"FROM drawn d JOIN placed p ON p.row_id = d.row_id"
    )
    (count,) = connection.execute("SELECT count(*) FROM drawn").fetchall()[0]
    for table in ("pool", "known", "wanted", "drawn"):
        connection.execute(f"DROP TABLE {table}")
    return count
