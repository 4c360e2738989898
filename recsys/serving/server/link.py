"""Link: the front process's end of one worker."""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys.serving.server.frames import packed, receive_async
from recsys.serving.server.messages import Ready, Reply
from recsys.serving.server.target import Target


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way through the pool."""

    method: str
    request: Any
    user: str | None
    future: "asyncio.Future[Reply]"
    deadline: float
    """On the clock time.monotonic()."""
    is_suspect: bool = False
    """It was in a batch that a worker died of: it goes alone from now on."""
    num_deaths: int = 0
    """Workers that died while they answered it alone."""


@dataclass(eq=False, slots=True)
class Sent:
    """A message that a worker has not answered yet."""

    jobs: list[Job]
    """Empty for added items."""
    started: float
    """When the worker could begin, on the clock time.monotonic()."""


@dataclass(eq=False)
class Link:
    """A worker process, its socket, and what it was sent."""

    pid: int
    target: Target
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ready: Ready | None = None
    outstanding: deque[Sent] = field(default_factory=deque)
    is_retiring: bool = False

    async def wait_until_ready(self) -> Ready:
        """Return the worker's first message.

        Raises:
            OSError, EOFError: it ended before it was ready.
        """
        self.ready = await receive_async(self.reader)
        assert isinstance(self.ready, Ready), "a worker's first message"
        return self.ready

    def can_take(self, *, is_full: bool) -> bool:
        """Return whether a batch may be sent.

        Args:
            is_full: nothing can join it any more. Such a batch may wait for the one that is computed, so
                that no time is lost; others wait at the front for company, which shares a batch's costs.
        """
        return not self.is_retiring and len(self.outstanding) < (2 if is_full else 1)

    @property
    def since(self) -> float:
        """Time up to which the bundle's histories reach, in seconds since 1970."""
        assert self.ready is not None, "a worker that is not ready has no histories"
        return self.ready.since

    def send(self, message: Any, jobs: Sequence[Job] = ()) -> None:
        """Send a message; `outstanding` keeps its jobs until the worker has answered."""
        self.outstanding.append(Sent(list(jobs), time.monotonic()))
        self.writer.write(packed(message))

    async def next_replies(self) -> tuple[Sent, list[Reply] | None]:
        """Return the oldest message and the worker's answer to it.

        Raises:
            OSError, EOFError: the worker is gone.
        """
        replies = await receive_async(self.reader)
        sent = self.outstanding.popleft()
        if self.outstanding:
            self.outstanding[0].started = time.monotonic()
        return sent, replies

    def close(self) -> None:
        """Let the worker end as soon as it reads that nothing more will come."""
        self.writer.close()

    def kill(self) -> None:
        """End a worker that does not answer."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.close()
