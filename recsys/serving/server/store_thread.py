"""Thread of the event store: group commit of what waits, and news from the store for the event loop.

In: writes as functions of a transaction. Out: their results, after the commit; and the
likes and added items of all hosts, this one's at its commit, others' within LOOK_SECONDS. One thread
does both, so that a result comes after its own news.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from recsys.serving.server.log import log
from recsys.serving.server.metrics import Metrics
from recsys.serving.store import AddedItem, Like, Store, StoreError, Transaction

LOOK_SECONDS = 0.5
MAX_GROUP = 256

T = TypeVar("T")
_Write = tuple[Callable[[Transaction], Any], "asyncio.Future[Any]"]


class StoreThread:
    """The one writer of this host."""

    def __init__(
        self,
        place: str,
        metrics: Metrics,
        on_news: Callable[[list[Like], list[AddedItem], list[Like]], None],
    ):
        """Start the thread; to be called within the event loop.

        Args:
            place: of the event store.
            on_news: called within the loop with new likes, added items and hidden items in the order of
                their numbers.

        Raises:
            UserError: the store cannot be opened.
        """
        self.place = place
        self._store = Store.open(place)
        self._metrics = metrics
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._since: float | None = None
        self._asked_since: float | None = None
        self._last_like = self._last_item = self._last_hidden = 0
        self._thread = threading.Thread(target=self._run, name="event store", daemon=True)
        self._thread.start()

    def write(self, function: Callable[[Transaction], T]) -> "asyncio.Future[T]":
        """Call a function with a transaction that others share; return its result once durable.

        The future raises StoreError where the store does not answer.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put((function, future))
        return future

    def follow(self, since: float) -> "asyncio.Future[None]":
        """Report likes after a time (seconds since 1970); done when those in the store are reported."""
        self._asked_since = since
        return self.write(lambda _: None)

    async def read(self, function: Callable[[Store], T]) -> T:
        """Return the result of a reading function of the store, called in a thread of its own.

        Raises:
            StoreError: the store does not answer.
        """
        return await asyncio.to_thread(function, self._store)

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)
        self._store.close()

    def _run(self) -> None:
        is_open = True
        while is_open:
            group, is_open = self._group()
            outcomes = self._commit(group) if group else []
            self._look()
            for (_, future), outcome in zip(group, outcomes, strict=True):
                self._loop.call_soon_threadsafe(_settle, future, outcome)

    def _group(self) -> tuple[list[_Write], bool]:
        """Return what waits, and whether more may come; waits LOOK_SECONDS for the first."""
        group: list[_Write] = []
        try:
            while len(group) < MAX_GROUP:
                write = self._waiting.get(timeout=LOOK_SECONDS) if not group else self._next()
                if write is None:
                    return group, False
                group.append(write)
        except queue.Empty:
            return group, True
        return group, True

    def _next(self) -> _Write | None:
        return self._waiting.get_nowait()

    def _commit(self, group: list[_Write]) -> list[Any]:
        """Return the result of every write, or the error that it met."""
        try:
            with self._store.writing() as transaction:
                results = [function(transaction) for function, _ in group]
            return results
        except Exception as error:
            if len(group) > 1:
                # One that the database refuses must not take the others with it.
                return [outcome for write in group for outcome in self._commit([write])]
            self._metrics.store_errors.inc()
            log("store error", detail=str(error))
            return [error]

    def _look(self) -> None:
        """Hand new likes and items to the event loop."""
        asked = self._asked_since
        if asked is None:
            return
        if self._since is None or asked < self._since:
            self._since, self._last_like = asked, 0
        try:
            likes = self._store.likes_after(self._last_like, since=self._since)
            items = self._store.items_after(self._last_item)
            hidden = self._store.hidden_after(self._last_hidden)
        except StoreError as error:
            self._metrics.store_errors.inc()
            log("store error", detail=str(error))
            return
        if likes or items or hidden:
            self._last_like = likes[-1].sequence if likes else self._last_like
            self._last_item = items[-1].sequence if items else self._last_item
            self._last_hidden = hidden[-1].sequence if hidden else self._last_hidden
            self._loop.call_soon_threadsafe(self._on_news, likes, items, hidden)


def _settle(future: "asyncio.Future[Any]", outcome: Any) -> None:
    if future.done():  # the request was given up meanwhile
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
