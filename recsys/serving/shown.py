"""Shown part of a bundle: thumbnails, users and their histories, without the model and without torch.

Read by the front process for the gallery, which must not wait for a worker.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.bundle.catalogue import Catalogue
from recsys.bundle.histories import Histories
from recsys.bundle.map import Map
from recsys.bundle.spec import read_spec
from recsys.bundle.truth import Truth
from recsys.bundle.vocabulary import Vocabulary
from recsys.schema import UNKNOWN_ROW

MAX_HISTORY = 200


@dataclass(frozen=True, slots=True)
class Person:
    """User of a list of users."""

    id: str
    likes: int
    """Items of the history that the bundle holds."""


@dataclass(frozen=True, slots=True)
class ShownItem:
    """Item as a page shows it."""

    id: str
    title: str | None
    artist: str | None
    tags: list[str]
    has_picture: bool
    """Whether there is a thumbnail; false: the picture is masked, or missing."""


@dataclass(frozen=True, slots=True)
class TrueItem:
    """Item with the oracle's probability that a user likes it."""

    id: str
    title: str | None
    artist: str | None
    probability: float


class Shown:
    """Catalogue, users and histories of one bundle."""

    def __init__(self, folder: Path):
        """Map the files.

        Raises:
            UserError: no bundle there, or a damaged one; names the file.
        """
        spec = read_spec(folder)
        self.version = spec.name
        self.map = Map(folder / "map", spec)
        self.num_items = spec.manifest.num_item_rows - 1
        self._items = Vocabulary(folder / "vocab", "item_id", spec.id_type("item_id"))
        self._catalogue = Catalogue(folder / "catalogue", spec)
        has_users = spec.manifest.num_user_rows > 0
        self._users = (
            Vocabulary(folder / "vocab", "user_id", spec.id_type("user_id")) if has_users else None
        )
        has_history = spec.manifest.history is not None
        self._histories = Histories(folder / "users") if has_history else None
        has_likers = "users/likers.values.npy" in spec.sizes
        self._likers = Histories(folder / "users", "likers") if has_likers else None
        self.takes_pictures = (folder / "encoders" / "image").is_dir()
        """Whether the bundle has an encoder for uploaded pictures."""
        self._truth = Truth(folder / "truth") if (folder / "truth").is_dir() else None

    @property
    def has_truth(self) -> bool:
        """Whether the oracle's probabilities are known, as in the drawn world."""
        return self._truth is not None

    def items(self, start: int, limit: int) -> list[ShownItem]:
        """Return up to `limit` items of the files from a place on, from 0, in the order of their rows."""
        rows = range(1 + start, min(1 + start + limit, self._items.num_rows))
        return [self.item(self._items.id_of(row)) for row in rows]

    def truth(self, user: str, limit: int) -> list[TrueItem]:
        """Return the oracle's probabilities of a user's items, without the history; [] where not known.

        Every n-th is returned where there are more than `limit`.
        """
        if self._truth is None or self._users is None or user not in self._users:
            return []
        probabilities_N = self._truth.probabilities(self._users[user])
        is_asked_N = ~np.isnan(probabilities_N)
        is_asked_N[UNKNOWN_ROW] = False
        if self._histories is not None:
            is_asked_N[self._histories.of(self._users[user])] = False
        rows = np.flatnonzero(is_asked_N)
        rows = rows[:: -(-len(rows) // limit) or 1]
        shown = [(self._catalogue.card(int(row)), float(probabilities_N[row])) for row in rows]
        return [TrueItem(c["item_id"], c.get("title"), c.get("artist"), p) for c, p in shown]

    def picture(self, item: str) -> bytes | None:
        """Return an item's thumbnail (JPEG); None where it has none or is unknown."""
        row = self._items.get(item, UNKNOWN_ROW)
        return None if row == UNKNOWN_ROW else self._catalogue.picture(row)

    def knows_item(self, item: str) -> bool:
        """Return whether the bundle has an item."""
        return item in self._items

    def item(self, item: str) -> ShownItem:
        """Return an item's entry; one that the bundle lacks has its id alone."""
        row = self._items.get(item, UNKNOWN_ROW)
        if row == UNKNOWN_ROW:
            return ShownItem(item, None, None, [], False)
        card = self._catalogue.card(row)
        return ShownItem(
            id=item,
            title=card.get("title"),
            artist=card.get("artist"),
            tags=list(card.get("tags") or []),
            has_picture=self._catalogue.picture(row) is not None,
        )

    def at(self, row: int) -> ShownItem:
        """Return the entry of an item's row, which the bundle has."""
        return self.item(self._items.id_of(row))

    def people(self, prefix: str, limit: int) -> list[Person]:
        """Return up to `limit` users whose ids begin with a text, in the order of their rows."""
        found = [] if self._users is None else self._users.starting_with(prefix, limit)
        return [Person(id, self._num_likes(id)) for id in found]

    def anybody(self, limit: int) -> list[Person]:
        """Return up to `limit` different users by chance, of those with a history if there are any."""
        if self._users is None or self._users.num_rows < 2:
            return []
        rows = range(1, self._users.num_rows)
        drawn = random.sample(rows, min(8 * limit, len(rows)))
        found = [Person(id, self._num_likes(id)) for row in drawn if (id := self._users.id_of(row))]
        return sorted(found, key=lambda person: person.likes == 0)[:limit]

    def knows_user(self, user: str) -> bool:
        """Return whether the bundle has a user."""
        return self._users is not None and user in self._users

    def history(self, user: str) -> list[str]:
        """Return the items that a user liked, oldest first, MAX_HISTORY at most; [] for unknown users."""
        if self._users is None or self._histories is None or user not in self._users:
            return []
        rows = self._histories.of(self._users[user])[-MAX_HISTORY:].tolist()
        return [self._items.id_of(row) for row in rows if row != UNKNOWN_ROW]

    def likers(self, item: str) -> list[str]:
        """Return the users whose history holds an item, by row; [] for an unknown item."""
        row = self._items.get(item, UNKNOWN_ROW)
        if row == UNKNOWN_ROW or self._users is None or self._histories is None:
            return []
        found = self._histories.holding(row) if self._likers is None else self._likers.of(row)
        return [self._users.id_of(user) for user in found.tolist() if user != UNKNOWN_ROW]

    def _num_likes(self, user: str) -> int:
        if self._users is None or self._histories is None:
            return 0
        return len(self._histories.of(self._users[user]))
