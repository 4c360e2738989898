"""Load on a server: a closed loop of connections, or Poisson arrivals; latencies and errors of both.

Input: prepared requests. Output: Sample, a record of one measurement. Called by measure.py.
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

    async def ask_again(ends: float) -> None:
        async with Connection(target.host, target.port) as connection:
            while (began := time.perf_counter()) < ends:
                if not await _ask(connection, *counter.next(), sample, began):
                    await asyncio.sleep(0.01)  # a server that is gone fails at once

    with _without_collections():
        starts = time.perf_counter()
        await asyncio.gather(*(ask_again(starts + seconds) for _ in range(connections)))
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

    async def answer_arrivals() -> None:
        async with Connection(target.host, target.port) as connection:
            while (began := await arrived.get()) is not None:
                await _ask(connection, *counter.next(), sample, began)

    with _without_collections():
        # As many as arrive while the slowest answer that we wait for is computed, up to the bound.
        askers = [
            asyncio.create_task(answer_arrivals())
            for _ in range(min(MAX_CONNECTIONS, max(8, int(rate))))
        ]
        rng = np.random.default_rng(seed)
        starts = time.perf_counter()
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


async def _ask(
    connection: Connection, request: Request, is_read: bool, sample: Sample, began: float
) -> bool:
    """Ask, and add the latency or the error to the sample; return whether the answer was right.

    Args:
        is_read: read the answer as JSON, after its latency is taken, and count its items.
        began: time from which the latency counts.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            status, body = await connection.ask(request)
    except TimeoutError:
        error = f"no answer within {_TIMEOUT_SECONDS:.0f} s"
    except (OSError, EOFError) as failure:
        error = type(failure).__name__
    else:
        latency = time.perf_counter() - began
        error = _fault(status, body, request.num_items if is_read else 0)
    if error:
        sample.errors[error] += 1
        return False
    sample.latencies.append(latency)
    return True


def _fault(status: int, body: bytes, num_items: int) -> str:
    """Return what is wrong with an answer, or ""; items are not counted where `num_items` is 0."""
    if status != 200:
        return f"HTTP {status}"
    found = len(json.loads(body)["items"]) if num_items else 0
    return "" if found == num_items else f"{found} items instead of {num_items}"


@contextmanager
def _without_collections() -> Iterator[None]:
    """Stop garbage collection meanwhile: its pauses would be taken for the server's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
