"""Users' earlier positives: stored sequences per user, and how far into them each row may look.

Called by prepare. One rule for every split strategy: a row sees its user's positives strictly before
its time (rows of one second do not see each other) of

- scope `train`: the training split;
- scope `past`: the row's own split and earlier ones. With `time` and `per_user_time` these are all
  earlier positives; with `random` and `given`, training rows see training positives alone.

Without times (scope `train` only), training rows come in a seeded order and rows of valid and test
behind them: they see all training positives. So no training row sees a positive of valid or test, and
no row one of its own time or later.

What a row may see is a leading part of a stored sequence. Only `past` with `random` or `given`, whose
splits do not follow one another in time, needs sequences of each split's own.
"""

import duckdb

from recsys.data.prepare.split import order_hash
from recsys.data.recipe import SPLITS

STORED = "SELECT user_row AS key, item_row AS value FROM sequence WHERE is_held = 1"
"""SQL of the stored positives by user, in the order of the table `sequence`."""


def are_stored_by_split(scope: str, strategy: str) -> bool:
    """Return whether each split has sequences of its own."""
    return scope == "past" and strategy in ("random", "given")


def stand_in_time_sql(seed: int) -> str:
    """SQL of a time for a log without any, over (row_id, split): seeded, split after split."""
    return f"CAST({order_hash(seed, 'log.row_id')} >> 3 AS BIGINT) + (CAST(split AS BIGINT) << 61)"


def build_sequence(
    connection: duckdb.DuckDBPyConnection, scope: str, strategy: str, split: str
) -> None:
    """Create the table `sequence` of users' rows in order, and add its readers to the table `ends`.

    `ends` gets (row_id, history_end): the leading entries of the user's stored positives that the row
    may see. Rows of unknown users see nothing and have no line there.

    Args:
        split: whose rows read the sequence; where splits have none of their own, all rows do.
    """
    is_by_split = are_stored_by_split(scope, strategy)
    index = SPLITS.index(split)
    last = 0 if scope == "train" else index if is_by_split else len(SPLITS) - 1
    reads = f"split = {index}" if is_by_split else "true"
    connection.execute(
        f"CREATE OR REPLACE TABLE sequence AS SELECT row_id, user_row, item_row, ts, "
        f"CAST(label = 1 AND item_row > 0 AND split <= {last} AS INTEGER) AS is_held, "
        f"{reads} AS reads FROM placed WHERE user_row > 0 ORDER BY user_row, ts, row_id"
    )
    # Windows without PARTITION BY and ORDER BY pass over the sorted table once, row by row: time and
    # memory do not depend on how many rows a user has, as they would with one window for each user.
    # `before` never falls, so its last value at the first row of a moment, or of a user, is the
    # largest so far.
    over = "OVER (ROWS UNBOUNDED PRECEDING)"
    counted = (
        f"SELECT row_id, reads, sum(is_held) {over} - is_held AS before, "
        f"user_row IS DISTINCT FROM lag(user_row) OVER () AS begins_user, "
        f"ts IS DISTINCT FROM lag(ts) OVER () AS begins_time FROM sequence"
    )
    of_time = f"max(CASE WHEN begins_user OR begins_time THEN before END) {over}"
    of_user = f"max(CASE WHEN begins_user THEN before END) {over}"
    connection.execute(
        f"INSERT INTO ends SELECT row_id, history_end FROM (SELECT row_id, reads, "
        f"CAST({of_time} - {of_user} AS INTEGER) AS history_end FROM ({counted})) WHERE reads"
    )
