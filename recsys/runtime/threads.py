"""Threads of a process: their number, set in torch, oneDNN and every other library.

In: the key `run.threads`, OMP_NUM_THREADS, and the cores of limits.py. Called by env.py for
jobs of several ranks, and by the jobs of one process; launch/doctor.py says what comes out. Imports
nothing but the standard library until threads are set.
"""

import os
import sys
from dataclasses import dataclass

from recsys.errors import UserError
from recsys.runtime.limits import usable_cores


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Threads of a job without ranks."""

    threads: int | None = None
    """Threads of the process; null: OMP_NUM_THREADS, else the cores it may use."""


@dataclass(frozen=True)
class Threads:
    """Threads of a process, and why so many."""

    count: int
    reason: str


def threads_of_process(
    asked: int | None, *, num_processes: int = 1, obey_environment: bool = True
) -> Threads:
    """Return the threads of each of `num_processes` that share this machine.

    Args:
        asked: the key `run.threads`; None: OMP_NUM_THREADS where it is set and obeyed, else the cores
            over the processes. Threads that add up to more than the cores wait for each other: two
            processes with two each on two cores run 10x slower than one of them alone.
        obey_environment: False where torchrun set OMP_NUM_THREADS, to 1, and no person did.

    Raises:
        UserError: the key or the variable is no whole number of 1 or more.
    """
    if asked is not None:
        if asked < 1:
            raise UserError(f"run.threads={asked}: expected 1 or more, or null")
        return Threads(asked, "run.threads")
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given and obey_environment:
        first = given.split(",")[0].strip()  # one number for every nested level
        if not first.isdecimal() or int(first) < 1:
            raise UserError(
                f"OMP_NUM_THREADS={given!r}: expected a whole number of 1 or more; unset it, or give "
                f"run.threads"
            )
        return Threads(int(first), "OMP_NUM_THREADS")
    cores = usable_cores()
    return Threads(max(1, cores // num_processes), f"{cores} cores / {num_processes} process(es)")


def use_threads(count: int) -> None:
    """Tell every library of this process that computes in threads of its own how many to use.

    Torch is told where it is loaded: a job that computes without it does not wait for it.
    """
    import pyarrow
    import threadpoolctl

    # First: it holds for OpenMP and the BLAS libraries that are loaded by now.
    threadpoolctl.threadpool_limits(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    pyarrow.set_cpu_count(count)
