"""Visitors of a day: who comes, which places of a list they look at, and which pictures they bookmark.

The position-based model of clicks (Craswell et al., WSDM 2008): a visitor looks at place j = 1, 2, ...
with probability j ** -b, and bookmarks a picture that is looked at with its true probability. Luck is
drawn by common random numbers: from (seed, day, user), for every place and every picture, before anybody
knows what is shown. All arms thus meet the same visitors with the same luck, and differ by their lists.
Shapes: K places of a list, N pictures, U users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.demo.days import DayWorld
from recsys.loop.config import VisitorsConfig

_VISITS, _LUCK, _REQUESTS = 30, 31, 32
"""Streams of random numbers, apart from the world's."""


@dataclass(frozen=True)
class Visitors:
    """The visitors of one world."""

    world: DayWorld
    config: VisitorsConfig

    def of_day(self, day: int) -> list[int]:
        """Return the users who come on a day, in the order in which they come."""
        rng = np.random.default_rng([self.world.seed, _VISITS, day])
        user_day = self.world.user_day
        comes = rng.random(len(user_day)) < self.config.visit_rate
        comes = (user_day <= day) & (comes | (user_day == day))
        users = np.flatnonzero(comes)
        return rng.permutation(users).tolist()

    def looks(self, day: int, user: int) -> NDArray[np.bool_]:
        """Return which places the visitor looks at [K]."""
        luck_K, _ = self._luck(day, user)
        return luck_K < examination(self.config.pictures, self.config.position_bias)

    def would_bookmark(self, day: int, user: int) -> NDArray[np.bool_]:
        """Return which pictures the visitor bookmarks once looked at [N]."""
        _, luck_N = self._luck(day, user)
        return luck_N < self.world.probabilities(day)[user]

    def bookmarks(self, day: int, user: int, shown: Sequence[int]) -> list[int]:
        """Return the pictures of a list that the visitor bookmarks, in its order."""
        looks_K, would_N = self.looks(day, user), self.would_bookmark(day, user)
        return [
            item for looks, item in zip(looks_K, shown, strict=False) if looks and would_N[item]
        ]

    def request_seed(self, day: int, user: int) -> int:
        """Return the seed of the request's exploration."""
        rng = np.random.default_rng([self.world.seed, _REQUESTS, day, user])
        return int(rng.integers(1 << 31))

    def _luck(self, day: int, user: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return uniform numbers for every place [K] and every picture [N]."""
        rng = np.random.default_rng([self.world.seed, _LUCK, day, user])
        return rng.random(self.config.pictures), rng.random(len(self.world.item_day))


def examination(num_places: int, exponent: float) -> NDArray[np.float64]:
    """Return the probability that a place is looked at [K]: 1 for the first."""
    return np.arange(1, num_places + 1, dtype=np.float64) ** -exponent
