"""Hidden items: items by user that are not recommended again, in memory.

Filled from the event store by store_thread.py, read for every recommendation by app.py.
"""

from collections.abc import Iterable

from recsys.serving.requests import RecommendRequest
from recsys.serving.store import Like

MAX_PER_USER = 2000


class HiddenItems:
    """Items that users hid, the latest MAX_PER_USER of each; a later like takes an item back."""

    def __init__(self) -> None:
        self._by_user: dict[str, dict[str, int]] = {}

    def add(self, hidden: Iterable[Like], likes: Iterable[Like] = ()) -> None:
        """Add events in the order of their sequence.

        Args:
            hidden: events of the kind `hidden`.
            likes: events of the kind `liked` that came with them.
        """
        for event in hidden:
            of_user = self._by_user.setdefault(event.user, {})
            of_user.pop(event.item, None)
            of_user[event.item] = event.sequence
            if len(of_user) > MAX_PER_USER:
                del of_user[next(iter(of_user))]
        for like in likes:
            of_user = self._by_user.get(like.user, {})
            if of_user.get(like.item, like.sequence) < like.sequence:
                del of_user[like.item]

    def of(self, user: str | None) -> list[str]:
        """Return the items that a user hid, oldest first."""
        return [] if user is None else list(self._by_user.get(user, ()))

    def exclude(self, request: RecommendRequest) -> RecommendRequest:
        """Return a request that leaves out what its user hid."""
        hidden = self.of(request.user)
        if not hidden:
            return request
        excluded = [*request.filters.exclude_items, *hidden]
        filters = request.filters.model_copy(update={"exclude_items": excluded})
        return request.model_copy(update={"filters": filters})
