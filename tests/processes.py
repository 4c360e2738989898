"""Real commands that are watched, signalled and killed while they run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.warm_jobs import REPOSITORY, WARM, Call


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and not waited for, from the kernel's lists."""
    pids: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has just ended
    return pids


def family_of(pid: int) -> list[int]:
    """The process and its children, theirs included."""
    pids = [pid]
    for pid in pids:
        pids += children_of(pid)
    return pids


def send(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to processes in their order; to one that has ended, nothing."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # ended by itself in between


def kill_family(process: subprocess.Popen | Call) -> None:
    """SIGKILL a process and its family at once, itself first."""
    send(signal.SIGKILL, family_of(process.pid))
    process.wait()


def states_of(pid: int) -> set[str]:
    """The kernel's states of a process's threads: T stopped, Z ended; none where nothing is left."""
    states = set()
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.add(file.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has just ended
    return states


def run_worker(script: Path, *arguments: object, ranks: int, seconds: float = 280) -> str:
    """Run a script of the tests and return what it printed; where it fails, the test does.

    Args:
        ranks: processes with the variables of torchrun; 0: one of plain Python, newly started.
    """
    words = list(map(str, arguments))
    if ranks:
        done = WARM.run(script, *words, ranks=ranks, timeout_seconds=seconds)
    else:
        done = subprocess.run(
            [sys.executable, str(script), *words],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def worker_result(script: Path, *arguments: object, ranks: int, seconds: float = 280) -> Any:
    """Run a script of the tests and return what it printed as JSON after "RESULT "."""
    printed = run_worker(script, *arguments, ranks=ranks, seconds=seconds)
    lines = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    assert lines, printed[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def job_command(
    name: str, *arguments: str, ranks: int = 0, torchrun: tuple[str, ...] = ("--standalone",)
) -> list[str]:
    """Return the words by which a user starts launch/NAME.py.

    Args:
        ranks: processes of torchrun; 0: one of plain Python.
        torchrun: options beside their number.
    """
    start = [sys.executable]
    if ranks:
        start += ["-m", "torch.distributed.run", *torchrun, f"--nproc-per-node={ranks}"]
    return [*start, str(REPOSITORY / "launch" / f"{name}.py"), *arguments]


class Running:
    """A job as a user starts it, on `ranks` processes of torchrun or as one of plain Python (0)."""

    def __init__(
        self,
        name: str,
        *arguments: str,
        ranks: int = 0,
        log: Path,
        torchrun: tuple[str, ...] = ("--standalone",),
    ):
        self.ranks = ranks
        self.log = log
        self.process = self.begin(name, *arguments, torchrun=torchrun)

    def begin(
        self, name: str, *arguments: str, torchrun: tuple[str, ...]
    ) -> subprocess.Popen | Call:
        """Start the job's processes."""
        with open(self.log, "ab") as stream:
            return subprocess.Popen(
                job_command(name, *arguments, ranks=self.ranks, torchrun=torchrun),
                cwd=self.log.parent,
                stdout=stream,
                stderr=stream,
            )

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the launcher, which sends it on to its workers."""
        send(number, [self.process.pid])

    def wait_until(self, seen: Callable[[], bool], *, seconds: float = 120) -> bool:
        """Look every millisecond; False where the job ends first."""
        deadline = time.monotonic() + seconds
        while not seen():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"waited in vain; {self.said()[-2000:]}"
            time.sleep(0.001)
        return True

    def workers(self) -> list[int]:
        """Processes that run the job itself: torchrun's children, by rank where all were started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        if not self.ranks:
            return [self.process.pid]
        return [int(pid) for pid in children.read_text().split()]

    def freeze(self) -> bool:
        """SIGSTOP everything, so that a moment can be looked at for as long as one likes.

        Returns:
            False where the launcher or a worker has ended; what is left of them then goes on.
        """
        stopped = [self.process.pid] if self.process.poll() is None else []
        for pid in stopped:
            # One after the other: a child is listed once nothing can start another one beside it.
            send(signal.SIGSTOP, [pid])
            while not states_of(pid) <= {"T", "Z"}:
                time.sleep(0.001)  # a thread that waits for the disk stops after that
            stopped += children_of(pid)
        if stopped and all(states_of(pid) == {"T"} for pid in (*stopped[:1], *self.workers())):
            return True
        send(signal.SIGCONT, stopped)
        return False

    def thaw(self) -> None:
        """Let everything that was frozen go on."""
        send(signal.SIGCONT, family_of(self.process.pid))

    def kill(self) -> None:
        """SIGKILL everything at once, the launcher first."""
        kill_family(self.process)

    def finish(self, *, seconds: float = 240) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout=seconds)

    def said(self) -> str:
        """Everything it and its forerunners wrote to the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Forked(Running):
    """The same of ranks that the fork server forks, five seconds sooner than torchrun starts each."""

    def begin(self, name: str, *arguments: str, torchrun: tuple[str, ...]) -> Call:
        """Let the fork server start the job's ranks."""
        script = REPOSITORY / "launch" / f"{name}.py"
        return WARM.begin(script, *arguments, ranks=self.ranks, outputs=[self.log, self.log])

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to every rank, as torchrun does."""
        send(number, self.workers())
