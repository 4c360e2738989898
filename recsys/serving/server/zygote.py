"""Zygote: the process that workers are forked from, with torch and the recommender imported.

    python -m recsys.serving.server.zygote FD MODULE...

In: over the socket FD, the arguments of a worker with the worker's end of a socket pair. Out:
its process id. A forked worker starts in milliseconds and shares the memory of all imports.
The zygote never computes, so that no thread is lost by the fork. It ends when the front process does.
"""

import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.runtime.threads import use_threads
from recsys.serving.server.frames import dumps, loads, receive, send
from recsys.serving.server.messages import WorkerArguments

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SET_DEATH_SIGNAL = 1
_MAX_ARGUMENT_BYTES = 65_536


@dataclass
class Zygote:
    """The front process's handle of its zygote."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    @classmethod
    def start(cls, opener: str, bundle: str) -> "Zygote":
        """Start a zygote; it imports while this process goes on.

        Args:
            opener: class whose `open(folder)` a worker calls, as MODULE:CLASS.
            bundle: folder; the libraries of the encoders that it has are imported too.
        """
        folder = Path(bundle) / "encoders"
        kinds = [kind for kind in ("image", "text") if (folder / kind).is_dir()]
        modules = [opener.partition(":")[0], *(f"embedding.{kind}.encoder" for kind in kinds)]
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "recsys.serving.server.zygote"]
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
            )
        return cls(process, ours)

    def fork(self, arguments: WorkerArguments) -> tuple[int, socket.socket]:
        """Fork a worker, and return its process id and this end of its socket pair; blocks.

        Raises:
            OSError, EOFError: the zygote is gone.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.control, [dumps(arguments)], [theirs.fileno()])
                return receive(self.control), ours
        except BaseException:
            ours.close()
            raise

    def close(self) -> None:
        """End the zygote, and with it every worker that is left."""
        self.control.close()
        self.process.kill()
        self.process.wait()


def main(arguments: Sequence[str]) -> None:
    """Import, then fork a worker for every message until the front process ends."""
    control = socket.socket(fileno=int(arguments[0]))
    # The front process alone decides when workers end: a signal to the whole group is its business.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for module in ("recsys.serving.server.worker", *arguments[1:]):
        importlib.import_module(module)
    if "torch" in sys.modules:  # An opener may do without.
        use_threads(1)
    gc.collect()
    gc.freeze()
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
            _run_worker(connection, loads(content))
        connection.close()
        send(control, pid)


def _run_worker(connection: socket.socket, arguments: Any) -> None:
    """Work until the front process closes the connection, and end the forked process."""
    code = 1
    # Imported by main already; the front process, which imports this file, does without torch.
    from recsys.serving.server.worker import work

    try:
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)  # with the zygote
        work(connection, arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap() -> None:
    """Take note of ended workers, so that the kernel forgets them."""
    pid = -1
    while pid:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
