"""Child jobs: files of launch/ run in processes of their own, which end with the one that starts them.

Called by recsys/study/runs.py and recsys/loop/night.py, from several threads at a time.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from recsys.errors import UserError

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
_LAST_LINES = 8


class ChildJobs:
    """Starts jobs and waits for them; once stopped, starts nothing more."""

    def __init__(self, stopped: str):
        """Args: stopped: message of the error that says that the jobs were stopped."""
        self.is_stopped = False
        self._message = stopped
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a signal may interrupt the thread that holds it

    def wait_for(
        self, command: Sequence[str], log: Path, *, threads: int, cores: Collection[int] = ()
    ) -> float:
        """Run one job and return its seconds; its output goes to `log`, whose folder is made.

        Args:
            threads: of each of its processes, as OMP_NUM_THREADS.
            cores: on which it is kept; empty: any.

        Raises:
            UserError: it failed, with the last lines it wrote; or the jobs were stopped.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with log.open("wb") as stream:
            process = self._start(command, stream, threads)
            if cores:
                os.sched_setaffinity(process.pid, cores)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        self.refuse_stopped()
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            said = "\n".join(last)
            raise UserError(f"{shlex.join(command)}: failed with code {code} ({log}):\n{said}")
        return time.perf_counter() - started

    def _start(
        self, command: Sequence[str], stream: IO[bytes], threads: int
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            self.refuse_stopped()
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            self._running.add(process)
        return process

    def refuse_stopped(self) -> None:
        """Raise UserError where the jobs were stopped."""
        if self.is_stopped:
            raise UserError(self._message)

    def stop(self) -> None:
        """End what runs, and start nothing more: trainings save, and the same command goes on."""
        self.is_stopped = True
        with self._lock:
            for process in self._running:
                process.terminate()

    def end_with_this_process(self) -> dict[int, Any]:
        """Have SIGTERM and SIGINT end the jobs and this process; return the handlers before."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stop()
            sys.exit(128 + number)

        return {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
