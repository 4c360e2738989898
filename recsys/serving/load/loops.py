"""Load on a server: a closed loop of connections, or Poisson arrivals; latencies and errors of both.

What enters: prepared requests. What leaves: Sample, a record of one measurement. Called by measure.py.
"""

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys.serving.load.client import Connection, Request

MAX_CONNECTIONS = 256
_READ_EVERY = 20
"""Answers between two that are read as JSON, to see that they are right; the others by their status."""
_TIMEOUT_SECONDS = 30.0
"""Time after which a request without an answer is an error."""


@dataclass
class Sample:
    """Latencies and errors of one measurement."""

    latencies: list[float] = field(default_factory=list)
    """Of right answers, in seconds; of the open loop from arrival, so that waiting counts."""
    errors: Counter[str] = field(default_factory=Counter)
    """Number of failed requests by what was wrong."""
    seconds: float = 0.0
    """From the beginning to the last answer."""

    def seconds_of(self) -> NDArray[np.float64]:
        """Return the latencies in seconds [N]."""
        return np.asarray(self.latencies, np.float64)


@dataclass(frozen=True)
class Target:
    """The server, and what it is asked; requests are repeated in their order."""

    host: str
    port: int
    requests: Sequence[Request]


async def closed_loop(target: Target, *, connections: int, seconds: float) -> Sample:
    """Ask over every connection again as soon as the answer is there.

    Args:
        connections: that ask at the same time.
        seconds: in which requests begin.
    """
    sample = Sample()
    counter = _Counter(target.requests)
    starts = time.perf_counter()
    ends = starts + seconds

    async def ask_again() -> None:
        async with Connection(target.host, target.port) as connection:
            while (began := time.perf_counter()) < ends:
                error = await _ask(connection, *counter.next())
                _count(sample, began, error)
                if error:
                    await asyncio.sleep(0.01)  # a server that is gone fails at once

    with _without_collections():
        await asyncio.gather(*(ask_again() for _ in range(connections)))
    sample.seconds = time.perf_counter() - starts
    return sample


async def open_loop(target: Target, *, rate: float, seconds: float, seed: int) -> Sample:
    """Ask at the times of a Poisson process, whether or not earlier requests are answered.

    Args:
        rate: requests a second.
        seconds: in which requests arrive.
        seed: of the arrival times.

    Requests wait for one of MAX_CONNECTIONS, and waiting counts. Arrivals of one millisecond, the event
    loop's resolution, come together.
    """
    sample = Sample()
    counter = _Counter(target.requests)
    arrived: asyncio.Queue[float | None] = asyncio.Queue()
    starts = time.perf_counter()

    async def answer_arrivals() -> None:
        async with Connection(target.host, target.port) as connection:
            while (began := await arrived.get()) is not None:
                error = await _ask(connection, *counter.next())
                _count(sample, began, error)

    with _without_collections():
        # As many as arrive while the slowest answer that we wait for is computed, up to the bound.
        askers = [
            asyncio.create_task(answer_arrivals())
            for _ in range(min(MAX_CONNECTIONS, max(8, int(rate))))
        ]
        rng = np.random.default_rng(seed)
        due, ends = starts + rng.exponential(1 / rate), starts + seconds
        while due < ends:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            arrived.put_nowait(time.perf_counter())
            due += rng.exponential(1 / rate)
        for _ in askers:
            arrived.put_nowait(None)
        await asyncio.gather(*askers)
    sample.seconds = time.perf_counter() - starts
    return sample


class _Counter:
    """Requests in their order, over and over; tells which answers are read as JSON."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests, self._asked = requests, 0

    def next(self) -> tuple[Request, bool]:
        self._asked += 1
        return (
            self._requests[self._asked % len(self._requests)],
            self._asked % _READ_EVERY == 1,
        )


async def _ask(connection: Connection, request: Request, is_read: bool) -> str:
    """Return what was wrong with an answer; empty where nothing was."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            status, body = await connection.ask(request)
    except TimeoutError:
        return f"no answer within {_TIMEOUT_SECONDS:.0f} s"
    except (OSError, EOFError) as error:
        return type(error).__name__
    if status != 200:
        return f"HTTP {status}"
    if is_read and request.num_items:
        found = len(json.loads(body)["items"])
        if found != request.num_items:
            return f"{found} items instead of {request.num_items}"
    return ""


def _count(sample: Sample, began: float, error: str) -> None:
    if error:
        sample.errors[error] += 1
    else:
        sample.latencies.append(time.perf_counter() - began)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Stop garbage collection meanwhile: its pauses would be taken for the server's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
