"""The hold-out rule: which contents and entities an encoder never sees in training.

A name is held out by its own hash, so the same ones stay apart on any machine, after any new
`prepare`, whatever else the catalogue holds. Called by embedding/image/sample.py and
embedding/text/pairs.py.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def tenths_problems(tenths: int) -> list[str]:
    """Return a text for a share that is not between 0 and 9 tenths."""
    fits = 0 <= tenths <= 9
    return [] if fits else [f"held_out_tenths={tenths}: expected 0 (train on everything) to 9"]


def held_out(names: Sequence[str | None], tenths: int) -> np.ndarray:
    """Return bool [N]: md5(name), read as one number, modulo 10 is below `tenths`.

    A null or empty name is never held out.

    Args:
        tenths: 0 (nothing is held out) to 9.
    """
    return np.array([bool(name) and _number(str(name)) % 10 < tenths for name in names], dtype=bool)


def _number(name: str) -> int:
    return int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16)
