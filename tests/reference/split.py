"""Splits the slow way: users one by one, rows sorted by hand."""

import hashlib
import math

import pandas as pd


def split_by_each_users_time(
    log: pd.DataFrame, fractions: tuple[float, float, float], seed: int = 0
) -> pd.Series:
    """Name the split of every row; `log` has user_id, item_id, time, in file order.

    Rows of one user and second are in the order of the md5 of seed, user and item.
    """

    def luck(user: object, item: object) -> int:
        digest = hashlib.md5(f"{seed}:{user}\n{item}".encode()).digest()
        return int.from_bytes(digest[8:], "little")

    log = log.assign(luck=[luck(*ids) for ids in zip(log["user_id"], log["item_id"], strict=True)])
    split = pd.Series("", index=log.index)
    for _, rows in log.groupby("user_id"):
        ordered = rows.sort_values(["time", "luck"], kind="stable").index
        num_train = math.floor(round(fractions[0] * len(ordered), 9))
        num_seen = math.floor(round((fractions[0] + fractions[1]) * len(ordered), 9))
        split[ordered[:num_train]] = "train"
        split[ordered[num_train:num_seen]] = "valid"
        split[ordered[num_seen:]] = "test"
    return split


def split_by_time(log: pd.DataFrame, fractions: tuple[float, float, float]) -> pd.Series:
    """Name the split of every row by two bounds on one clock, each a time that occurs."""
    times = sorted(log["time"])

    def bound(share: float) -> int:
        return times[max(math.ceil(round(share * len(times), 9)) - 1, 0)]

    low, high = bound(fractions[0]), bound(fractions[0] + fractions[1])
    return log["time"].map(lambda t: "train" if t <= low else "valid" if t <= high else "test")
