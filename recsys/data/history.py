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

from recsys.data.recipe import SPLITS
from recsys.data.split import order_hash


def are_stored_by_split(scope: str, strategy: str) -> bool:
    """Return whether each split has sequences of its own."""
    return scope == "past" and strategy in ("random", "given")


def stand_in_time_sql(seed: int) -> str:
    """SQL of a time for a log without any, over (row_id, split): seeded, split after split."""
    return f"CAST({order_hash(seed, 'log.row_id')} >> 3 AS BIGINT) + (CAST(split AS BIGINT) << 61)"


def stored_sql(scope: str, strategy: str, split: str) -> str:
    """SQL of (user_row, item_row) of the sequences that rows of a split read, in order."""
    return (
        f"SELECT user_row, item_row FROM placed WHERE user_row > 0 AND "
        f"{_is_held(scope, strategy, split)} ORDER BY user_row, ts, row_id"
    )


def history_end_sql(scope: str, strategy: str) -> str:
    """SQL of (row_id, history_end): leading entries of the row's sequence that the row may see."""

    def before(split: str) -> str:
        # RANGE up to 1 before: rows of the same second are not in the frame. No FILTER: with it the
        # database's time grows with the square of a user's rows.
        return (
            f"count(CASE WHEN {_is_held(scope, strategy, split)} THEN 1 END) OVER (PARTITION BY "
            f"user_row ORDER BY ts RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        )

    seen = before("test")
    if are_stored_by_split(scope, strategy):
        cases = " ".join(f"WHEN {i} THEN {before(name)}" for i, name in enumerate(SPLITS))
        seen = f"CASE split {cases} END"
    return (
        f"SELECT row_id, CAST(CASE WHEN user_row = 0 THEN 0 ELSE {seen} END AS INTEGER) "
        f"AS history_end FROM placed"
    )


def _is_held(scope: str, strategy: str, split: str) -> str:
    """SQL condition of the positives in the sequences that rows of a split read."""
    if scope == "train":
        last = 0
    else:
        last = SPLITS.index(split if are_stored_by_split(scope, strategy) else "test")
    return f"label = 1 AND item_row > 0 AND split <= {last}"
