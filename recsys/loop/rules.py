"""Rules that choose pictures without a model: at random, by popularity, and by the truth (the oracle).

Called by arm.py, which asks them as it asks a server.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.demo.days import DayWorld
from recsys.loop.visits import Visit

_RANDOM = 33
"""Stream of random numbers, apart from the world's and the visitors'."""


class Rule:
    """One rule in one world."""

    def __init__(self, name: str, world: DayWorld, likes: Iterable[tuple[int, int]]):
        """Start from the log before day 1.

        Args:
            name: `random`, `popularity` or `oracle`.
            likes: (user, picture) of its bookmarks.
        """
        self.name, self.world = name, world
        self._likes_N = np.zeros(len(world.item_day))
        for _, item in likes:
            self._likes_N[item] += 1

    def choose(self, day: int, user: int, size: int, seen: Sequence[int]) -> tuple[list[int], str]:
        """Return the pictures shown to a visitor, best first, of those there are; and no version.

        Args:
            seen: pictures that this visitor was shown before; they are left out.
        """
        left = np.setdiff1d(self.world.items_until(day), np.asarray(seen, np.int64))
        score_N = self._scores(day, user)
        return left[np.argsort(-score_N[left], kind="stable")][:size].tolist(), ""

    def tell(self, day: int, place: int, visit: Visit) -> None:
        """Take a visitor's bookmarks into account, at once."""
        self._likes_N[visit.liked] += 1

    def add_items(self, items: Sequence[int], pictures: Path) -> None:
        """Do nothing: a rule knows which pictures are there."""

    def wait_for(self, version: str) -> None:
        """Do nothing: a rule has no bundle."""

    def _scores(self, day: int, user: int) -> NDArray[np.float64]:
        """Return the score of every picture [N], by which the rule sorts them."""
        if self.name == "oracle":
            return self.world.probabilities(day)[user]
        if self.name == "popularity":
            return self._likes_N
        rng = np.random.default_rng([self.world.seed, _RANDOM, day, user])
        return rng.random(len(self._likes_N))
