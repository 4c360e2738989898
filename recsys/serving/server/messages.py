"""Messages between the front process, the processes that open bundles, and their workers.

Called by pool.py, link.py, opened.py and worker.py. The front process imports this file and not
worker.py, which imports torch.
"""

from dataclasses import dataclass
from typing import Any

from recsys.serving.store import AddedItem, Like

REFUSED, NOT_FOUND, OK, FAILED = 422, 404, 200, 500


@dataclass(frozen=True)
class WorkerArguments:
    """How a bundle is opened for workers."""

    opener: str
    """Class of the recommender, as MODULE:CLASS."""
    folder: str
    """Bundle."""
    store: str
    """Event store, from which items added after training are read."""


@dataclass(frozen=True, slots=True)
class Opened:
    """First message of a process that opened a bundle and answered requests for practice."""


@dataclass(frozen=True, slots=True)
class Ready:
    """First message of a worker."""

    version: str
    """Version of the bundle."""
    since: float
    """Seconds since 1970 up to which the bundle's histories reach."""
    last_item: int
    """Sequence number of the last added item that the worker has applied."""


@dataclass(frozen=True, slots=True)
class Refused:
    """First and last message of a process that cannot open its bundle."""

    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of one method."""

    method: str
    requests: list[Any]
    newer: dict[str, list[Like]]
    """Likes of the requests' users that the bundle may not know yet, oldest first."""


@dataclass(frozen=True, slots=True)
class NewItems:
    """Items that were added after the worker started, by sequence number."""

    items: list[AddedItem]


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to one request."""

    status: int
    """HTTP status."""
    body: Any
    """JSON of an answer as bytes; the sentence of a refusal; the value of another method."""
    version: str | None = None
    """Bundle that answered."""
