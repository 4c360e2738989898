"""Extractor: the interface between extraction and an encoder of pictures or texts.

Implemented by embedding/image/extractor.py and embedding/text/extractor.py, called by
embedding/features/pipeline.py from several threads. Shapes: N values of one column, D widths.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


class Extractor(Protocol):
    """Turns the values of one column of items.parquet into vectors of one or more feature tables."""

    column: str
    """Column of items.parquet."""
    dims: dict[str, int]
    """Width of each feature table, by name."""
    row_hash: str
    """Definition of `hashes`, in words; vectors of another definition are made anew."""
    num_threads: int
    """Threads that call `load`."""

    def hashes(self, values: list[str | None]) -> np.ndarray:
        """Return dtype ROW [N]: what each vector is made of; 0 where there is nothing to encode."""
        ...

    def batches(self, values: list[str]) -> list[np.ndarray]:
        """Return the batches of a forward pass, each int [B]: positions in `values`."""
        ...

    def load(self, values: list[str]) -> tuple[Any, list[str | None]]:
        """Return (inputs of those values that can be used, a reason for each that cannot or None)."""
        ...

    def encode(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return {name: float [N, dim]} of the inputs that `load` gave; N > 0."""
        ...


def batched(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield consecutive slices [B, ...] of `values` [N, ...], B at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
