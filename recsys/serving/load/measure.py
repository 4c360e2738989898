"""Measurements of a load test: every route, number of candidates and loop, one after the other.

Called by launch/loadtest.py.
"""

import asyncio
from collections.abc import Iterator

import uvloop

from recsys.serving.load.config import LoadTestConfig, Route
from recsys.serving.load.loops import Sample, Target, closed_loop, open_loop
from recsys.serving.load.population import Population
from recsys.serving.load.result import Row, row_of
from recsys.serving.load.server import Server
from recsys.serving.load.workload import make_requests

_SHARE_OF_GREATEST_RATE = 0.7
"""Rate of the open loop where none is given: a server at its greatest rate has no latency to speak of."""


def measurements(config: LoadTestConfig, server: Server, population: Population) -> Iterator[Row]:
    """Yield the rows of a load test as they are measured.

    Raises:
        UserError: requests cannot be made, or what listens is no server of ours.
    """
    for route in config.routes:
        for candidates in config.candidates:
            requests = make_requests(config, server, population, route, candidates)
            target = Target(server.host, server.port, requests)
            rate = config.rate
            for loop in sorted(config.loops):  # the closed one first: it finds the rate
                is_closed = loop == "closed"
                offered = config.connections if is_closed else rate
                if not offered:
                    continue  # the closed loop had no right answer
                row = _measure(config, server, target, (route, candidates, loop), float(offered))
                if is_closed and rate is None:
                    rate = _SHARE_OF_GREATEST_RATE * row.requests_per_second
                yield row


def _measure(
    config: LoadTestConfig,
    server: Server,
    target: Target,
    name: tuple[Route, int, str],
    offered: float,
) -> Row:
    """Warm up, measure, and set processor time against the right answers."""
    route, candidates, loop = name

    def run(seconds: float) -> Sample:
        if loop == "closed":
            asked = closed_loop(target, connections=int(offered), seconds=seconds)
        else:
            asked = open_loop(target, rate=offered, seconds=seconds, seed=config.seed)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(asked)

    warm = run(config.warmup_seconds) if config.warmup_seconds else Sample()
    before = server.cpu_seconds()
    sample = run(config.seconds)
    after = server.cpu_seconds()
    sample.errors.update(warm.errors)
    return row_of(
        sample,
        route=route,
        candidates=candidates,
        loop=loop,
        offered=offered,
        cpu_seconds=None if before is None or after is None else after - before,
    )
