"""Forks: processes that a loaded process makes of itself, one for each message of the front process.

In: over a socket, arguments and one end of a new socket pair. Out: the process id of a fork, which talks
over that end. There are two loaded processes: the zygote (zygote.py), which has imported everything, and
its fork that has opened a bundle (worker.py), of which workers are forks: they share its memory. Neither
starts a thread, which a fork would lose.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from recsys.serving.server.frames import dumps, loads, receive, send

_SET_DEATH_SIGNAL = 1
_MAX_ARGUMENT_BYTES = 65_536


def ask_for_fork(control: socket.socket, arguments: Any) -> tuple[int, socket.socket]:
    """Return the process id of a new fork and this end of its socket pair; blocks.

    Raises:
        OSError, EOFError: the loaded process is gone.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            socket.send_fds(control, [dumps(arguments)], [theirs.fileno()])
            return receive(control), ours
    except BaseException:
        ours.close()
        raise


def fork_for_each(control: socket.socket, run: Callable[[socket.socket, Any], None]) -> None:
    """Fork for each message, until the other end closes.

    Args:
        run: called in the fork with its end of the socket pair and the arguments; the fork ends with it.
    """
    while True:
        _reap()
        if not select.select([control], [], [], 1.0)[0]:
            continue
        content, descriptors, _, _ = socket.recv_fds(control, _MAX_ARGUMENT_BYTES, 1)
        if not content:
            return
        connection = socket.socket(fileno=descriptors[0])
        pid = os.fork()
        if pid == 0:
            control.close()
            _run(run, connection, loads(content))
        connection.close()
        send(control, pid)


def wait_for_forks() -> None:
    """Return when every fork of this process has ended: they end with it."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def _run(
    run: Callable[[socket.socket, Any], None], connection: socket.socket, arguments: Any
) -> None:
    """Run a fork to its end; it ends with the process that it was forked from, too."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        run(connection, arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap() -> None:
    """Take note of ended forks, so that the kernel forgets them."""
    pid = -1
    while pid:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
