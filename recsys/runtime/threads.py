"""Threads of a process: how many cores it may use, and every library told so.

What enters: the key `run.threads`, OMP_NUM_THREADS, the processor affinity and the limits of control
groups. Called by env.py for jobs of several ranks, and by the jobs of one process; launch/doctor.py says
what comes out. Imports nothing but the standard library until threads are set.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """How a job without ranks is carried out."""

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


def usable_cores(
    groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """Return the cores this process may use: its affinity, and no more than its control groups' time.

    A container with `--cpus=2` sees every core of its machine and gets the time of two.
    """
    cores = len(os.sched_getaffinity(0))
    shares = _shares(groups, membership)
    return max(1, min(cores, int(min(shares, default=cores))))


def _shares(groups: Path, membership: Path) -> list[float]:
    """Return the limits, in cores, of the process's group and those above it, of either version."""
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
    shares = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in [groups / controllers, groups / "cpu"] if controllers else [groups]:
            folder = root / path.lstrip("/")
            # Within a container the path may be the host's, and only the root is there.
            for place in (folder, *folder.parents):
                shares += _limits(place)
                if place == root:
                    break
    return shares


def _limits(group: Path) -> list[float]:
    newer, quota_file = group / "cpu.max", group / "cpu.cfs_quota_us"
    if newer.is_file():
        quota, period = newer.read_text(encoding="ascii").split()
    elif quota_file.is_file():
        quota = quota_file.read_text(encoding="ascii").strip()
        period = (group / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    else:
        return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]


def use_threads(count: int) -> None:
    """Tell every library of this process that computes in threads of its own how many to use."""
    import pyarrow
    import threadpoolctl
    import torch

    # First: it holds for OpenMP and the BLAS libraries that are loaded by now.
    threadpoolctl.threadpool_limits(count)
    torch.set_num_threads(count)
    pyarrow.set_cpu_count(count)
