"""The pool's queue: which requests share a batch, which worker gets it, and when."""

import asyncio
import json

from recsys.serving.requests import ScoreRequest
from recsys.serving.server.config import ServeConfig
from recsys.serving.server.frames import loads, packed
from recsys.serving.server.likes import NewerLikes
from recsys.serving.server.link import Link
from recsys.serving.server.messages import OK, Ready, Reply
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.pool import Pool
from recsys.serving.server.target import Target

TARGET = Target("bundle", 0)


class Writer:
    """Keeps the number of requests of each batch that a worker is sent."""

    def __init__(self, noted: list | None = None):
        self.sizes: list[int] = []
        self.noted = noted

    def write(self, frame: bytes) -> None:
        self.sizes.append(len(loads(frame[8:]).requests))
        if self.noted is not None:
            self.noted.append("batch")


def pool_of(writers: list[Writer], **keys) -> Pool:
    """A pool of ready workers that answer nothing by themselves."""
    config = ServeConfig(bundle="bundle", workers=max(len(writers), 1), **keys)
    pool = Pool(config, "none:None", None, NewerLikes(), Metrics())
    for pid, writer in enumerate(writers):
        link = Link(pid, TARGET, asyncio.StreamReader(), writer, Ready("a", 0.0, 0))
        pool._links.append(link)
    return pool


def ask(pool: Pool) -> "asyncio.Future[Reply]":
    return pool.ask("score", ScoreRequest(items=["i"]))


async def turns(count: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_requests_of_turns_that_follow_each_other_share_a_batch():
    async def run():
        writer = Writer()
        pool = pool_of([writer])
        for _ in range(3):
            ask(pool)
            await turns(1)
        assert writer.sizes == []
        await turns(3)
        assert writer.sizes == [3]

    asyncio.run(run())


def test_a_full_batch_is_sent_at_once():
    async def run():
        writer = Writer()
        pool = pool_of([writer], max_batch=2)
        ask(pool)
        ask(pool)
        assert writer.sizes == [2]

    asyncio.run(run())


def test_waiting_requests_are_shared_out_over_free_workers():
    async def run():
        writers = [Writer() for _ in range(3)]
        pool = pool_of(writers)
        for _ in range(5):
            ask(pool)
        await turns(4)
        assert sorted(writer.sizes for writer in writers) == [[1], [2], [2]]

    asyncio.run(run())


def test_an_answer_goes_out_before_the_next_batch_is_begun():
    async def run():
        noted: list[str] = []
        pool = pool_of([Writer(noted)])
        (link,) = pool._links

        async def client() -> None:
            await ask(pool)
            noted.append("answer")

        listening = asyncio.create_task(pool._listen(link))
        first = asyncio.create_task(client())
        await turns(4)
        second = asyncio.create_task(client())
        await turns(4)
        assert noted == ["batch"], "the second waits for company"
        link.reader.feed_data(packed([Reply(OK, b"{}")]))
        await first
        await turns(4)
        assert noted == ["batch", "answer", "batch"]
        for task in (listening, second):
            task.cancel()

    asyncio.run(run())


def test_a_fault_that_keeps_a_worker_from_starting_is_logged_and_tried_again(capsys, monkeypatch):
    async def run():
        pool = pool_of([])

        async def open_bundle(target):
            raise RuntimeError("an unexpected fault")

        monkeypatch.setattr(pool, "_open", open_bundle)
        pool.target = TARGET
        await pool._start(TARGET)
        assert pool._starting is None
        assert pool._failures[TARGET] == 1

    asyncio.run(run())
    error, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert error["event"] == "error"
    assert "RuntimeError: an unexpected fault" in error["traceback"]
    assert (failed["event"], failed["folder"]) == ("worker failed", "bundle")
