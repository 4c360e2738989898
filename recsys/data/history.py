"""Users' earlier positives: one stored sequence per user, and how far into it each row may look.

Called by prepare. No row sees a positive of its own time or later, and in scope `train` no row sees a
positive of valid or test.
"""

from recsys.data.split import order_hash


def stored_sql(scope: str, has_time: bool, seed: int) -> str:
    """SQL of (user_row, item_row) of every stored positive, in the order of the sequences.

    Without timestamps a seeded per-row number stands in for the time.
    """
    held = "split = 0" if scope == "train" else "true"
    time = "ts, row_id" if has_time else f"{order_hash(seed)}, row_id"
    return (
        f"SELECT user_row, item_row FROM placed WHERE label = 1 AND user_row > 0 AND item_row > 0 "
        f"AND {held} ORDER BY user_row, {time}"
    )


def history_end_sql(scope: str, has_time: bool, seed: int) -> str:
    """SQL of (row_id, history_end): leading entries of the user's sequence that the row may see.

    - scope `train`: a training row sees the stored positives strictly before its time; a row of valid
      or test sees all of them.
    - scope `past`: every row sees the stored positives strictly before its time.
    """
    held = "label = 1 AND item_row > 0" + (" AND split = 0" if scope == "train" else "")
    if has_time:
        # RANGE up to 1 before: rows of the same second are not in the frame.
        frame = "ORDER BY ts RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
    else:
        frame = (
            f"ORDER BY {order_hash(seed)}, row_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
        )
    # No FILTER: with it the database's time grows with the square of a user's rows.
    stored = f"count(CASE WHEN {held} THEN 1 END)"
    before = f"{stored} OVER (PARTITION BY user_row {frame})"
    whole = f"{stored} OVER (PARTITION BY user_row)"
    chosen = before if scope == "past" else f"CASE WHEN split = 0 THEN {before} ELSE {whole} END"
    return (
        f"SELECT row_id, CAST(CASE WHEN user_row = 0 THEN 0 ELSE {chosen} END AS INTEGER) "
        f"AS history_end FROM placed"
    )
