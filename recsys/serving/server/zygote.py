"""Zygote: the process that bundles are opened in forks of, with torch and the recommender imported.

    python -m recsys.serving.server.zygote FD MODULE...

In: over the socket FD, the arguments of a bundle with one end of a socket pair. Out: the process id of a
fork that opens the bundle (worker.py). A fork starts in milliseconds and shares the memory of all
imports. The zygote never computes. It ends when the front process does, and its forks end with it.
"""

import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.runtime.threads import use_threads
from recsys.serving.server.forks import ask_for_fork, fork_for_each
from recsys.serving.server.messages import WorkerArguments

_ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Zygote:
    """The front process's handle of its zygote."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    @classmethod
    def start(cls, opener: str, bundle: str) -> "Zygote":
        """Start a zygote; it imports while this process goes on.

        Args:
            opener: class whose `open(folder)` opens a bundle, as MODULE:CLASS.
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
                env={**os.environ, **_ONE_THREAD},
            )
        return cls(process, ours)

    def fork(self, arguments: WorkerArguments) -> tuple[int, socket.socket]:
        """Fork a process that opens a bundle, and return its id and this end of its socket pair; blocks.

        Raises:
            OSError, EOFError: the zygote is gone.
        """
        return ask_for_fork(self.control, arguments)

    def close(self) -> None:
        """End the zygote, and with it every fork that is left."""
        self.control.close()
        self.process.kill()
        self.process.wait()


def main(arguments: Sequence[str]) -> None:
    """Import, then fork for every message until the front process ends."""
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
    fork_for_each(control, _open)


def _open(connection: socket.socket, arguments: Any) -> None:
    # Imported by main already; the front process, which imports this file, does without torch.
    from recsys.serving.server.worker import open_bundle

    open_bundle(connection, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
