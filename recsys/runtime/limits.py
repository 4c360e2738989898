"""Cores and memory that a process may use: the machine's, and no more than its control groups allow.

In: processor affinity, physical memory, and the limits of control groups of either version.
Called by threads.py, plans of this job's own world, studies and launch/doctor.py. A container with
`--cpus=4 --memory=16g` sees the cores and the memory of its whole machine and gets 4 and 16 GiB.
"""

import os
from collections.abc import Callable
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the cores this process may use, 1 or more: a share of a core counts for none."""
    cores = len(os.sched_getaffinity(0))
    shares = _limits("cpu", _cores_of, groups, membership)
    return max(1, min(cores, int(min(shares, default=cores))))


def usable_memory_bytes(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the main memory that this process and others of its control groups may use, in bytes."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Version one writes a number beyond any memory where there is no limit.
    return int(min([physical, *_limits("memory", _memory_of, groups, membership)]))


def _limits(
    controller: str, limits_of: Callable[[Path], list[float]], groups: Path, membership: Path
) -> list[float]:
    """Return the limits of the process's group and those above it, of either version."""
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in [groups / controllers, groups / controller] if controllers else [groups]:
            folder = root / path.lstrip("/")
            # Within a container the path may be the host's, and only the root is there.
            for place in (folder, *folder.parents):
                limits += limits_of(place)
                if place == root:
                    break
    return limits


def _cores_of(group: Path) -> list[float]:
    newer, quota_file = group / "cpu.max", group / "cpu.cfs_quota_us"
    if newer.is_file():
        quota, period = newer.read_text(encoding="ascii").split()
    elif quota_file.is_file():
        quota = quota_file.read_text(encoding="ascii").strip()
        period = (group / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    else:
        return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]


def _memory_of(group: Path) -> list[float]:
    files = [group / "memory.max", group / "memory.limit_in_bytes"]
    texts = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text != "max"]
