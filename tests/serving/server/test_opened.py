"""The process that has a bundle open: what happens where it does not answer."""

import asyncio
import signal
import socket
import subprocess

import pytest

from recsys.errors import UserError
from recsys.serving.server.frames import send
from recsys.serving.server.messages import Opened, Refused, WorkerArguments
from recsys.serving.server.opened import OpenedBundle
from recsys.serving.server.target import Target


class Zygote:
    """Forks a process that sleeps; a test holds its end of the socket pair."""

    def __init__(self):
        self.process = subprocess.Popen(["sleep", "60"])
        self.ours, self.theirs = socket.socketpair()

    def fork(self, arguments):
        return self.process.pid, self.ours


@pytest.fixture
def zygote():
    made = Zygote()
    yield made
    made.process.kill()
    made.process.wait()
    made.theirs.close()


def start(zygote, seconds):
    arguments = WorkerArguments("none:None", "bundle", "events.db")
    return OpenedBundle.start(zygote, arguments, Target("bundle", 0), seconds)


def test_a_process_that_takes_too_long_to_open_its_bundle_is_killed(zygote):
    with pytest.raises(TimeoutError):
        asyncio.run(start(zygote, 0.05))
    assert zygote.process.wait(10) == -signal.SIGKILL


def test_a_refusal_is_an_error_with_its_reason(zygote):
    send(zygote.theirs, Refused("a reason"))
    with pytest.raises(UserError, match="a reason"):
        asyncio.run(start(zygote, 10))
    assert zygote.process.poll() is None


def test_a_process_that_forks_no_worker_is_not_waited_for_for_ever(zygote):
    async def run():
        send(zygote.theirs, Opened())
        opened = await start(zygote, 0.2)
        with pytest.raises(TimeoutError):
            await opened.worker()
        opened.close()

    asyncio.run(run())


def test_the_end_of_the_process_is_noticed(zygote):
    zygote.theirs.close()
    with pytest.raises(EOFError):
        asyncio.run(start(zygote, 10))
