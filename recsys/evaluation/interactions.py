"""Interactions by item or user: how many of them have how many, as the report of an evaluation shows it.

In: items (users) by their number of interactions. Out: the distribution, its median and its head. Called
by data.py of this folder and the report. Shapes: C different numbers of interactions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interactions:
    """Distribution of interactions over the items (users) that have any."""

    counts_C: NDArray[np.int64]
    """Numbers of interactions, ascending, above 0."""
    owners_C: NDArray[np.int64]
    """Items (users) that have each of them, at least one."""
    num_without: int
    """Items (users) that have none."""

    @classmethod
    def of(cls, owners: Mapping[int, int]) -> "Interactions":
        """Return the distribution of items (users) by their number of interactions, 0 among them."""
        counts = sorted(count for count in owners if count)
        numbers = [owners[count] for count in counts]
        return cls(np.array(counts, np.int64), np.array(numbers, np.int64), owners.get(0, 0))

    @property
    def median(self) -> float:
        """Median of those that have any; nan where none has."""
        ends_C = np.cumsum(self.owners_C)
        if not ends_C.size:
            return float("nan")
        middle = (ends_C[-1] - 1) // 2, ends_C[-1] // 2
        return float(self.counts_C[np.searchsorted(ends_C, middle, side="right")].mean())

    @property
    def share_of_tenth(self) -> float:
        """Share of the interactions that the tenth with the most has; nan where there are none."""
        num_owners = int(self.owners_C.sum())
        if not num_owners:
            return float("nan")
        num_first = max(1, num_owners // 10)
        before_C = np.cumsum(self.owners_C[::-1]) - self.owners_C[::-1]
        taken_C = np.clip(num_first - before_C, 0, self.owners_C[::-1])
        return float(taken_C @ self.counts_C[::-1] / (self.counts_C @ self.owners_C))
