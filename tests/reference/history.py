"""Histories the slow way: one row after another, looking at all others."""

import hashlib

SPLITS = ("train", "valid", "test")


def visible_items(rows, row, scope, label=1, seed=0):
    """Items of the user's earlier rows of a label that `row` may see, in time order.

    rows: dicts with user, item, time (None where there is none), label, split, row_id. Without times
    a training row sees what comes before it in the order of the md5 of seed and row id, and a row of
    valid or test all of training.
    """
    if row["user"] == 0:
        return []
    latest = "train" if scope == "train" else row["split"]
    held = [
        r
        for r in rows
        if r["user"] == row["user"]
        and r["label"] == label
        and r["item"] > 0
        and SPLITS.index(r["split"]) <= SPLITS.index(latest)
        and moment(r, seed) < moment(row, seed)
    ]
    held.sort(key=lambda r: (moment(r, seed), r["row_id"]))
    return [r["item"] for r in held]


def moment(row, seed):
    """When a row happened; without times, splits one after another."""
    if row["time"] is not None:
        return row["time"]
    digest = hashlib.md5(f"{seed}:{row['row_id']}".encode()).digest()
    return SPLITS.index(row["split"]), int.from_bytes(digest[8:], "little")
