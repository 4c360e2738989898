"""Facts of a process that torchrun started: its ranks and its agent. Nothing else reads its variables.

Called by env.py, hosts.py, recsys/job.py and launch/neighbours.py. It imports the standard library alone,
so that a job of one process that computes without torch starts without it: to load it takes a second or
more.
"""

import os
import socket
from pathlib import Path

_RUN_ID = "TORCHELASTIC_RUN_ID"
"""Variable that an agent sets, and that its processes inherit."""


def rank_from_environment() -> int:
    """Return this process's global rank; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def is_first_of_host() -> bool:
    """Return whether this process does what one rank of each host does; True without torchrun."""
    return local_rank_from_environment() == 0


def rank_of_first_here() -> int:
    """Return the global rank of this host's first rank: torchrun numbers the ranks of a host in a row."""
    return rank_from_environment() - local_rank_from_environment()


def local_rank_from_environment() -> int:
    """Return this process's rank among those of its host; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size_from_environment() -> int:
    """Return the number of ranks; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size_from_environment() -> int:
    """Return the number of ranks on this host; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_under_torchrun() -> bool:
    """Return whether torchrun, or another launcher that numbers its processes, started this one."""
    return "RANK" in os.environ


def has_agent() -> bool:
    """Return whether a torchrun agent started this process, or a script around it."""
    return _RUN_ID in os.environ


def agent_of(pid: int, proc: Path = Path("/proc")) -> int:
    """Return the torchrun agent that a worker of it, or a script around the worker, descends from.

    It is the first ancestor that does not have the agent's mark in the environment it began with.
    """
    while True:
        pid = int(_stat_fields(pid, proc)[_PARENT])
        try:
            began_with = (proc / str(pid) / "environ").read_bytes()
        except PermissionError:  # of another user, so none of ours
            return pid
        if not any(entry.startswith(_RUN_ID.encode() + b"=") for entry in began_with.split(b"\0")):
            return pid


def name_of_process(pid: int, proc: Path = Path("/proc")) -> str:
    """Return what tells a process from every other one, of other hosts and other times too."""
    boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    started = _stat_fields(pid, proc)[_START_TIME]
    return f"process {pid} of {socket.gethostname()}, begun {started} ticks after boot {boot}"


_PARENT, _START_TIME = 1, 19
"""Fields of /proc/<pid>/stat behind the command, which may hold anything (proc(5): 4 and 22)."""


def _stat_fields(pid: int, proc: Path) -> list[str]:
    stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    return stat.rpartition(")")[2].split()


def torchrun_set_threads(proc: Path = Path("/proc")) -> bool:
    """Return whether OMP_NUM_THREADS is torchrun's: it sets 1 for several processes, where it is unset.

    Then the agent began without it. If its environment cannot be read, 1 is taken for torchrun's.
    """
    if not has_agent() or os.environ.get("OMP_NUM_THREADS") != "1":
        return False
    try:
        began_with = (proc / str(agent_of(os.getpid(), proc)) / "environ").read_bytes()
    except PermissionError:
        return True
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in began_with.split(b"\0"))
