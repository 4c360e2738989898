"""Nearest-neighbour accuracy: how often a picture's nearest neighbour has the same artist or content.

Nearest neighbours by cosine, exact. Called by embedding/image/heads.py on pictures that no training
has seen.
Shapes: N pictures, E vector width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PIECE = 1024


@dataclass(frozen=True, kw_only=True)
class NeighbourAccuracy:
    """Share of pictures whose nearest neighbour is of the same kind."""

    share: float
    """Share of the counted pictures; NaN if none counts."""
    count: int
    """Pictures with a neighbour of the same kind to be found."""


def nearest_neighbour_accuracy(
    vectors_NE: np.ndarray,
    same: Sequence[str | None],
    apart: Sequence[str | None],
    of: np.ndarray | None = None,
) -> NeighbourAccuracy:
    """Return how often a picture's nearest neighbour with another `apart` has the same `same`.

    With same=artists, apart=contents: is the nearest picture of another content by the same artist;
    the other way round: does the nearest picture by another artist show the same content. A null in
    `apart` differs from everything. Pictures with a null `same`, or without another picture of the
    same `same` among those they may find, do not count.

    Args:
        of: bool [N], the pictures that ask; null: all. All pictures may be found.
    """
    unit_NE = vectors_NE.astype(np.float32)
    unit_NE = unit_NE / np.maximum(np.linalg.norm(unit_NE, axis=1, keepdims=True), 1e-9)
    same_N, apart_N = _codes(same), _codes(apart)
    asking = np.flatnonzero((same_N >= 0) & (of if of is not None else True))
    hits = count = 0
    for start in range(0, len(asking), _PIECE):
        rows = asking[start : start + _PIECE]
        score_PN = unit_NE[rows] @ unit_NE.T
        barred_PN = (apart_N[rows, None] == apart_N[None]) & (apart_N[rows, None] >= 0)
        barred_PN[np.arange(len(rows)), rows] = True
        score_PN[barred_PN] = -np.inf
        equal_PN = (same_N[rows, None] == same_N[None]) & ~barred_PN
        counts_P = equal_PN.any(axis=1)
        nearest_P = score_PN.argmax(axis=1)
        hits += int((equal_PN[np.arange(len(rows)), nearest_P] & counts_P).sum())
        count += int(counts_P.sum())
    return NeighbourAccuracy(share=hits / count if count else float("nan"), count=count)


def _codes(names: Sequence[str | None]) -> np.ndarray:
    """Return int64 [N]: a number per distinct name, -1 for null."""
    numbers: dict[str, int] = {}
    return np.array([
        numbers.setdefault(name, len(numbers)) if name is not None else -1 for name in names
    ])
