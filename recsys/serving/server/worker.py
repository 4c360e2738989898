"""Worker: one process that answers batches of requests from one bundle.

In: over its socket, batches of requests of one method. Out: their answers as JSON, in
the same order. A worker is a fork of the process that opened its bundle, and answers from no other; a new
bundle is a new process. It ends when the front process closes the socket. Called by zygote.py.
"""

import gc
import importlib
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from recsys.errors import UserError
from recsys.serving.requests import (
    Explanation,
    ItemCard,
    NewItem,
    Recommendations,
    RecommendRequest,
    ScoreRequest,
    Scores,
    SearchRequest,
    SimilarItems,
    UnknownIdError,
)
from recsys.serving.server.forks import fork_for_each, wait_for_forks
from recsys.serving.server.frames import receive, send
from recsys.serving.server.log import log
from recsys.serving.server.messages import (
    FAILED,
    NOT_FOUND,
    OK,
    REFUSED,
    Batch,
    NewItems,
    Opened,
    Ready,
    Refused,
    Reply,
    WorkerArguments,
)
from recsys.serving.store import AddedItem, Like, Store


def open_bundle(connection: socket.socket, arguments: WorkerArguments) -> None:
    """Open a bundle, say so, and fork a worker for each message until the other end closes.

    The bundle is in memory once, however many workers there are.
    """
    store = Store.open(arguments.store)
    try:
        worker = Worker(_class_of(arguments.opener).open(arguments.folder))
        worker.apply(store)
        worker.practise()
    except UserError as error:
        send(connection, Refused(str(error)))
        return
    finally:
        store.close()
    # Everything that lives as long as the worker is left out of every collection from here on.
    gc.collect()
    gc.freeze()
    send(connection, Opened())
    fork_for_each(connection, lambda ours, _: work(ours, worker, arguments.store))
    wait_for_forks()


def work(connection: socket.socket, worker: "Worker", place: str) -> None:
    """Say that the worker is ready, and answer batches until the other end closes.

    Args:
        place: of the event store, which may have items that were added since the bundle was opened.
    """
    store = Store.open(place)
    worker.apply(store)
    store.close()
    send(connection, Ready(worker.version, worker.since, worker.last_item))
    while True:
        try:
            message = receive(connection)
        except EOFError:
            return
        if isinstance(message, NewItems):
            worker.add(message.items)
            send(connection, None)
        else:
            send(connection, worker.answer(message))


def _class_of(opener: str) -> Any:
    module, _, name = opener.partition(":")
    return getattr(importlib.import_module(module), name)


class Worker:
    """A recommender, and its answers to batches."""

    def __init__(self, recommender: Any):
        self.recommender = recommender
        self.version: str = recommender.version
        self.since: float = recommender.since
        self.last_item = 0
        """Sequence number of the last added item that it knows."""
        self._newer: Mapping[str, list[Like]] = {}
        recommender.later_likes = self._likes_of
        self._methods: dict[str, Callable[[Any], Any]] = {
            "recommend": lambda request: recommender.recommend_many([request])[0],
            "score": lambda request: recommender.score_many([request])[0],
            "similar": recommender.similar_request,
            "search": recommender.search_request,
            "explain": recommender.explain_request,
            "card": recommender.card,
            "taste": lambda request: recommender.taste(request),
            "encode": self._encode,
        }
        self._batched: dict[str, Callable[[list[Any]], list[Any]]] = {
            "recommend": recommender.recommend_many,
            "score": recommender.score_many,
        }

    def _likes_of(self, user: str) -> list[tuple[str, float]]:
        return [(like.item, like.time) for like in self._newer.get(user, ())]

    def answer(self, batch: Batch) -> list[Reply]:
        """Answer the requests of a batch; one that is refused or fails does not touch the others."""
        self._newer = batch.newer
        if batch.method in self._batched and len(batch.requests) > 1:
            try:
                found = self._batched[batch.method](batch.requests)
                return [Reply(OK, _as_json(answer), self.version) for answer in found]
            except Exception:
                # One request alone says which of them it was, and why.
                return [self._answer_one(batch.method, request) for request in batch.requests]
        return [self._answer_one(batch.method, request) for request in batch.requests]

    def _answer_one(self, method: str, request: Any) -> Reply:
        try:
            answer = self._methods[method](request)
        except UnknownIdError as error:
            return Reply(NOT_FOUND, str(error))
        except UserError as error:
            return Reply(REFUSED, str(error))
        except Exception:
            return Reply(FAILED, traceback.format_exc())
        body = _as_json(answer) if type(answer) in _WRITERS else answer
        return Reply(OK, body, self.version)

    def _encode(self, item: NewItem) -> bytes:
        return self.recommender.encode_item(item).to_bytes()

    def apply(self, store: Store) -> None:
        """Make items known that were added to a store since the last one that is known."""
        self.add(store.items_after(self.last_item))

    def add(self, items: Sequence[AddedItem]) -> None:
        """Make added items known, in the order of their numbers.

        An item that was encoded by another bundle is encoded anew by this one.
        """
        for item in items:
            try:
                self.recommender.apply_stored(item)
            except UserError as error:  # another bundle may lack an encoder or a feature
                log("item left out", item=item.id, version=self.version, reason=str(error))
            except Exception:  # one item that nobody can read must not end every worker there is
                log("item fault", item=item.id, traceback=traceback.format_exc())
            self.last_item = item.sequence

    def practise(self) -> None:
        """Answer requests for practice, so that the first real ones find everything loaded.

        A number of rows that is met for the first time costs 5 ms (recsys.bundle.dense.padded_rows).
        """
        (found,) = self.recommender.recommend_many([RecommendRequest(k=1)])
        likes = [item.id for item in found.items]
        # What routes of liked items read is made when it is first asked for: here, for all workers.
        self.recommender.recommend_many([RecommendRequest(k=1, likes=likes)])
        for num_items in range(16, 1025, 16):
            self.recommender.score_many([ScoreRequest(items=["a"] * num_items)])
        self._answer_one("search", SearchRequest(words="a", k=1))  # refused without a text encoder


_WRITERS = {
    kind: TypeAdapter(kind)
    for kind in (Recommendations, Scores, SimilarItems, Explanation, ItemCard)
}


def _as_json(answer: Any) -> bytes:
    return _WRITERS[type(answer)].dump_json(answer)
