"""Windows of appended days, and the raw files that prepared data has read.

Part of the data manifest (recsys/schema.py), whose `chain` lists the states that appended days grew
from. A run that was made on one of them can be used with the grown data: rows of its tables mean the
same ids, and rows from its number of rows on are unknown to it.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError

FIRST_SPLITS = ("train", "valid", "test")
"""Splits that a first preparation makes; every appended window becomes one more."""
NEXT = "next"
"""Name that stands for the newest window wherever a job takes a split."""
_WINDOW = re.compile(r"window_(\d{4,})")


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A raw file as prepare read it."""

    section: str
    """Section of the recipe that names it, such as `interactions` or `items`."""
    path: str
    """Below data.source."""
    num_bytes: int
    sha256: str


def window_name(number: int) -> str:
    """Return the name of the window that an append adds, the first with number 1: `window_0001`."""
    return f"window_{number:04d}"


def window_number(split: str) -> int:
    """Return the number of a window, 0 for train, valid and test."""
    found = _WINDOW.fullmatch(split)
    return int(found[1]) if found else 0


def is_window(split: str) -> bool:
    """Return whether a split is a window, which prepare append=true adds."""
    return window_number(split) > 0


def in_time_order(splits: Collection[str]) -> list[str]:
    """Return names of splits in time order: train, valid, test, then the windows."""
    first = [name for name in FIRST_SPLITS if name in splits]
    return first + sorted(set(splits) - set(first), key=lambda name: (window_number(name), name))


def resolve_split(asked: str, ordered: Sequence[str]) -> str:
    """Return the name of a split that a job is asked for; `next` is the newest window.

    Args:
        ordered: names of the splits in time order.

    Raises:
        UserError: there is none of that name, or `next` without a window.
    """
    if asked == NEXT:
        if not is_window(ordered[-1]):
            raise UserError(
                f"split={NEXT}: the prepared data has no window yet; expected one appended by "
                f"launch/prepare.py append=true (splits: {', '.join(ordered)})"
            )
        return ordered[-1]
    if asked not in ordered:
        newest = f", or {NEXT} for {ordered[-1]}" if is_window(ordered[-1]) else ""
        raise UserError(f"split={asked}: no such split; there are {', '.join(ordered)}{newest}")
    return asked


def are_read(row_id_N: NDArray[np.int64], states: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which row ids are of rows that were read [N]; the others are drawn negatives.

    Each state numbers the rows that it read first, and those that it drew after them.

    Args:
        states: (rows read, negatives drawn) up to each state, the first one first.
    """
    rows_in, rows_drawn = np.array(states, dtype=np.int64).T
    starts = np.append(0, (rows_in + rows_drawn)[:-1])
    first_drawn = starts + np.diff(rows_in, prepend=0)
    return row_id_N < first_drawn[np.searchsorted(starts, row_id_N, side="right") - 1]
