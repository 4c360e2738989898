"""The load generator against a stub server whose times and errors are known."""

import asyncio
import json
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import UserError
from recsys.serving.load.client import Connection, get, post
from recsys.serving.load.config import LoadTestConfig
from recsys.serving.load.loops import Sample, Target, closed_loop, open_loop
from recsys.serving.load.measure import measurements
from recsys.serving.load.population import Population, read_population
from recsys.serving.load.result import row_of, table
from recsys.serving.load.server import Server, server_under_load, session_processes
from recsys.serving.load.workload import make_requests

STUB = Path(__file__).with_name("stub_server.py")
ITEMS = [f"i{n}" for n in range(1000)]


def started(bundle: str, **keys):
    """The stub as the program that serves, in a process of its own."""
    return server_under_load(LoadTestConfig(bundle=bundle, **keys), program=STUB)


def measured(loop, bundle: str, **keys) -> Sample:
    """One measurement of a stub that answers three items."""
    with started(bundle) as server:
        request = post(server.address, "score", {"items": ["a"] * 3}, 3)
        return asyncio.run(loop(Target(server.host, server.port, [request]), **keys))


def test_closed_loop_asks_again_when_the_answer_is_there():
    sample = measured(closed_loop, "seconds=0.05", connections=1, seconds=1.0)
    assert not sample.errors
    assert 10 <= len(sample.latencies) <= 20  # 1 s over 50 ms, on a machine that is not idle
    assert sample.seconds_of().min() >= 0.05
    assert sum(sample.latencies) <= sample.seconds


def test_connections_of_a_closed_loop_ask_at_the_same_time():
    sample = measured(closed_loop, "seconds=0.05", connections=3, seconds=1.0)
    # The stub answers one after the other: each waits for the two others.
    assert np.median(sample.seconds_of()) >= 0.13


def test_open_loop_counts_the_time_that_a_request_waits():
    """Arrivals at twice the rate that the server answers wait longer and longer."""
    keys = {"rate": 40.0, "seconds": 1.0, "seed": 3}
    slow = measured(open_loop, "seconds=0.05", **keys)
    fast = measured(open_loop, "seconds=0", **keys)
    assert not slow.errors and not fast.errors
    assert len(slow.latencies) == len(fast.latencies), "arrivals do not depend on the answers"
    assert 20 <= len(slow.latencies) <= 65  # Poisson, mean 40: within 4 standard deviations
    assert slow.seconds_of().max() >= 0.4
    assert np.median(fast.seconds_of()) < 0.05
    assert slow.seconds > fast.seconds, "all are waited for"


@pytest.mark.parametrize(
    ("bundle", "error"),
    [
        ("error_every=3", "HTTP 503"),
        ("cut_every=3", "IncompleteReadError"),
        ("missing_item=1", "2 items instead of 3"),
    ],
)
def test_wrong_answers_are_counted_by_what_is_wrong(bundle, error):
    sample = measured(closed_loop, bundle, connections=1, seconds=0.3)
    assert set(sample.errors) == {error} and sample.errors[error] >= 1
    row = row_of(
        sample,
        route="score",
        candidates=3,
        loop="closed",
        offered=1,
        cpu_seconds=None,
    )
    assert row.errors == dict(sample.errors) and row.requests == len(sample.latencies)


def test_server_that_is_gone_is_an_error_of_every_request():
    with started("seconds=0") as server:
        address = server.host, server.port
    target = Target(*address, [post(server.address, "score", {"items": ["a"]}, 1)])
    sample = asyncio.run(closed_loop(target, connections=1, seconds=0.1))
    assert not sample.latencies and set(sample.errors) == {"ConnectionRefusedError"}


def test_answer_without_length_is_refused_by_name():
    async def ask() -> None:
        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Connection("127.0.0.1", port) as connection:
                await connection.ask(get(f"127.0.0.1:{port}", "/v1/version"))

    with pytest.raises(UserError, match="no Content-Length"):
        asyncio.run(ask())


def test_processor_time_and_memory_are_those_of_all_processes_of_the_server():
    with started("child=60") as server:
        assert server.process is not None
        ends = time.monotonic() + 20
        while len(session_processes(server.process)) < 2 and time.monotonic() < ends:
            time.sleep(0.05)
        assert len(session_processes(server.process)) == 2, "the stub and its child"
        assert 0.3 <= server.cpu_seconds() < 10
        assert 2**20 < server.memory_bytes() < 2**30
        # One of them alone has less.
        assert server.memory_bytes() > Server("", 0, "", server.process).memory_bytes() / 2


def test_server_is_ended_with_the_block_and_writes_nothing_into_the_workspace(tmp_path):
    with started("seconds=0") as server:
        process = server.process
        assert server.version == "stub-1-00000000"
    assert session_processes(process) == []
    assert list(tmp_path.iterdir()) == []


def test_server_that_does_not_start_is_refused_with_its_own_words():
    with pytest.raises(UserError, match=r"(?s)did not become ready.*stub: no such bundle"):
        with started("fails=1"):
            pytest.fail("it started")


def test_server_is_bound_to_its_cores_and_the_load_to_the_others():
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    seen = {}

    def measure() -> None:  # in a thread, whose own affinity changes
        with started("seconds=0", server_cores=cores[:1]) as server:
            seen["server"] = os.sched_getaffinity(server.process)
            seen["load"] = os.sched_getaffinity(0)
        seen["after"] = os.sched_getaffinity(0)

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    expected = {"server": set(cores[:1]), "load": set(cores[1:]), "after": set(cores)}
    assert seen == expected


def test_requests_are_seeded_and_name_people_and_visitors():
    server = Server("127.0.0.1", 1, "v")
    population = Population([f"u{n}" for n in range(50)], ITEMS)
    config = LoadTestConfig(url="http://127.0.0.1:1", visitors=0.25)
    made = make_requests(config, server, population, "score", 100)
    assert made == make_requests(config, server, population, "score", 100)
    bodies = [json.loads(r.message.partition(b"\r\n\r\n")[2]) for r in made]
    assert all(len(set(b["items"])) == 100 and set(b["items"]) <= set(ITEMS) for b in bodies)
    assert all(("user" in b) != ("likes" in b) for b in bodies)
    assert 0.2 < np.mean(["likes" in b for b in bodies]) < 0.3
    assert all(r.num_items == 100 for r in made)
    with pytest.raises(UserError, match="candidates=2000: the catalogue has 1,000"):
        make_requests(config, server, population, "score", 2000)


@pytest.mark.slow
def test_open_loop_takes_a_share_of_the_rate_that_the_closed_one_finds():
    keys = {"seconds": 0.5, "warmup_seconds": 0.1, "candidates": [5], "k": 3, "connections": 1}
    with started("seconds=0.02") as server:
        config = LoadTestConfig(url=f"http://{server.address}", **keys)
        population = read_population(config, server)
        assert len(population.items) == 500 and not population.users
        rows = list(measurements(config, server, population))
    assert [(r.route, r.candidates, r.loop) for r in rows] == [
        *(("score", 5, "closed"), ("score", 5, "open")),
        *(("recommend", 5, "closed"), ("recommend", 5, "open")),
    ]
    assert rows[1].offered == pytest.approx(0.7 * rows[0].requests_per_second)
    assert not any(row.errors for row in rows)
    lines = table(rows).splitlines()
    assert len(lines) == 5 and lines[0].split()[0] == "route"
    assert lines[1].split()[:4] == ["score", "5", "closed", "1"]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({}, "nothing to measure: give bundle="),
        ({"url": "https://127.0.0.1:80"}, "expected http://HOST:PORT"),
        ({"url": "http://192.0.2.7:80"}, "add remote=true for another machine"),
        ({"bundle": "b", "loops": ["open"]}, "give rate="),
        ({"bundle": "b", "routes": []}, r"routes=\[\]: expected at least one"),
        ({"bundle": "b", "server_cores": []}, "expected at least one core"),
        ({"url": "http://localhost:1", "server_cores": [0]}, "start one with bundle="),
    ],
)
def test_settings_that_measure_nothing_are_refused(keys, sentence):
    (problem,) = LoadTestConfig(**keys).problems()
    assert re.search(sentence, problem)


def test_job_measures_a_server_that_runs_and_writes_table_and_json(command, tmp_path):
    out = tmp_path / "results" / "load.json"
    with started("seconds=0.01") as server:
        done = command(
            "loadtest",
            f"url=http://{server.address}",
            "candidates=[4]",
            "routes=[score]",
            "seconds=0.3",
            "warmup_seconds=0",
            f"out={out}",
        )
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout and "requests/s" in done.stdout
    result = json.loads(out.read_text())
    assert result["bundle"] == "stub-1-00000000" and result["machine"]["cores"] >= 1
    assert [row["loop"] for row in result["rows"]] == ["closed", "open"]
    assert result["rows"][0]["p50_ms"] >= 10
    assert result["rows"][0]["requests_per_core_second"] is None


def test_job_says_that_nobody_listens(job):
    done = job("loadtest", "url=http://127.0.0.1:9")
    assert done.returncode == 1
    assert "url=http://127.0.0.1:9: no server is ready there" in done.stderr
