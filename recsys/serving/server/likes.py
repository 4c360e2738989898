"""Newer likes: liked items by user that the served bundle may not know, in memory.

Filled from the event store by store_thread.py, read for every request by pool.py.
"""

from collections.abc import Iterable

from recsys.serving.store import Like

MAX_PER_USER = 200


class NewerLikes:
    """The most recent likes of every user, at most MAX_PER_USER."""

    def __init__(self) -> None:
        self._by_user: dict[str, dict[str, Like]] = {}

    def add(self, likes: Iterable[Like]) -> None:
        """Add likes in the order of their sequence; a repeated item moves to the end."""
        for like in likes:
            of_user = self._by_user.setdefault(like.user, {})
            of_user.pop(like.item, None)
            of_user[like.item] = like
            if len(of_user) > MAX_PER_USER:
                del of_user[next(iter(of_user))]

    def of(self, user: str | None, since: float) -> list[Like]:
        """Return a user's likes by time, oldest first; those up to `since` (seconds) are left out."""
        of_user = self._by_user.get(user) if user is not None else None
        if of_user is None:
            return []
        return sorted((k for k in of_user.values() if k.time > since), key=lambda like: like.time)

    def likers(self, item: str, since: float) -> list[str]:
        """Return the users who like an item, those up to `since` (seconds) left out."""
        found = ((user, of_user.get(item)) for user, of_user in self._by_user.items())
        return [user for user, like in found if like is not None and like.time > since]

    def forget(self, until: float) -> None:
        """Drop the likes up to a time, in seconds since 1970."""
        for user in list(self._by_user):
            kept = {i: like for i, like in self._by_user[user].items() if like.time > until}
            if kept:
                self._by_user[user] = kept
            else:
                del self._by_user[user]
