"""How a job speaks and how it fails: one line per stage on rank 0, one sentence per error.

Called by every file in `launch/`. Errors a user can act on (ValueError, OSError, and the
FloatingPointError of diverged training) end the process with code 1 and their sentence on stderr;
anything else is our own mistake and keeps its traceback.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recsys.distributed.env import rank_from_environment

_START_SECONDS = time.perf_counter()


def say(text: str) -> None:
    """Print one line, preceded by the seconds since the process began; silent on other ranks."""
    if rank_from_environment() == 0:
        print(f"[{time.perf_counter() - _START_SECONDS:6.1f}s] {text}", flush=True)


class Stage:
    """Handle of a running stage: `done` sets the counts shown when it ends."""

    def __init__(self) -> None:
        self.counts = ""

    def done(self, counts: str) -> None:
        """Set what the closing line says, for example "3,000 pictures"."""
        self.counts = counts


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Print "name: counts (1.2 s)" when the block ends; nothing if it raises."""
    started = time.perf_counter()
    handle = Stage()
    yield handle
    counts = f": {handle.counts}" if handle.counts else ""
    say(f"{name}{counts} ({time.perf_counter() - started:.1f} s)")


def run_job(job: Callable[[], None]) -> None:
    """Run a job's body; turn an error the user can act on into one message and exit code 1."""
    try:
        job()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
