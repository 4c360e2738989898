"""Work once a host: the first rank of every host reads or checks, and hands the others the answer.

Files on a network are then opened by as many processes as there are hosts, not ranks. Called by
recsys/run/ and by embedding/features/opening.py.
"""

import sys
from collections.abc import Callable
from typing import TypeVar

from recsys.runtime.torchrun import is_first_of_host, rank_of_first_here

T = TypeVar("T")


def once_a_host(work: Callable[[], T]) -> T:
    """Return on every rank what `work` returns on the first rank of its host, the only one that calls it.

    All ranks call this; the hosts work at the same time. Every host's answer travels to all ranks, one
    after the other: it should be small.

    Raises:
        Exception: what `work` raised on any host, on every rank (collectives.sharing_errors).
    """
    if "torch.distributed" not in sys.modules:  # a process alone that computes without torch
        return work()
    import torch.distributed as dist

    from recsys.runtime.collectives import gather, share, sharing_errors

    if not dist.is_initialized():  # a process alone, or a job that has not met its ranks yet
        return work()
    first_ranks = sorted(set(gather(rank_of_first_here)))
    done: list[T] = []
    with sharing_errors():
        if is_first_of_host():
            done.append(work())
    of_host: T
    for rank in first_ranks:
        answer = share(lambda: done[0], source=rank)
        if rank == rank_of_first_here():
            of_host = answer
    return of_host
