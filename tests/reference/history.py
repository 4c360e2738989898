"""Histories the slow way: one row after another, looking at all others."""


def visible_positives(rows, row, scope):
    """Items of the user's earlier positives that `row` may see, in time order.

    rows: dicts with user, item, time (None where there is none), label, split, order.
    """
    if row["user"] == 0:
        return []
    held = [
        r
        for r in rows
        if r["user"] == row["user"]
        and r["label"] == 1
        and r["item"] > 0
        and (scope == "past" or r["split"] == "train")
    ]
    held.sort(key=lambda r: (r["time"], r["row_id"]))
    if scope == "past" or row["split"] == "train":
        held = [r for r in held if r["time"] < row["time"]]
    return [r["item"] for r in held]
