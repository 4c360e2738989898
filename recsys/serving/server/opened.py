"""Opened bundle: the front process's end of the process that opened a bundle and forks its workers."""

import asyncio
import os
import signal
import socket
from dataclasses import dataclass

from recsys.errors import UserError
from recsys.serving.server.forks import ask_for_fork
from recsys.serving.server.frames import receive_async
from recsys.serving.server.link import Link
from recsys.serving.server.messages import Opened, Refused, WorkerArguments
from recsys.serving.server.target import Target
from recsys.serving.server.zygote import Zygote


@dataclass(eq=False)
class OpenedBundle:
    """A process that has one bundle open."""

    target: Target
    control: socket.socket

    @classmethod
    async def start(
        cls, zygote: Zygote, arguments: WorkerArguments, target: Target, seconds: float
    ) -> "OpenedBundle":
        """Fork the process, and wait until it has opened its bundle.

        Args:
            seconds: that it may take, and later each fork of a worker.

        Raises:
            UserError: the bundle is refused, with the reason.
            OSError, EOFError: the zygote is gone, or the process ended or took too long.
        """
        pid, control = await asyncio.to_thread(zygote.fork, arguments)
        try:
            first = await asyncio.wait_for(_first_message(control), seconds)
            if isinstance(first, Refused):
                raise UserError(first.reason)
        except BaseException as error:
            control.close()
            if isinstance(error, TimeoutError):
                os.kill(pid, signal.SIGKILL)
            raise
        control.settimeout(seconds)
        return cls(target, control)

    async def worker(self) -> Link:
        """Fork a worker, which says when it is ready.

        Raises:
            OSError, EOFError: the process is gone, or does not answer.
        """
        pid, connection = await asyncio.to_thread(ask_for_fork, self.control, None)
        reader, writer = await asyncio.open_connection(sock=connection)
        return Link(pid, self.target, reader, writer)

    def close(self) -> None:
        """Let the process end as soon as the last of its workers has ended."""
        self.control.close()


async def _first_message(control: socket.socket) -> Opened | Refused:
    reader, writer = await asyncio.open_connection(sock=control.dup())
    try:
        message: Opened | Refused = await receive_async(reader)
    finally:
        writer.close()
    return message
