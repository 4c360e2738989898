"""Collectives: gather over ranks, rank 0's answer for all of them, and errors that reach every rank.

Called by every job and package whose ranks exchange Python objects; outside of model, gradients and
signals nothing else calls torch.distributed. A rank that fails within one of these exchanges, or in
a block of `sharing_errors`, tells the others at their next exchange, whichever it is: each of them
begins with the same question, "has anybody failed?". In one process nothing is exchanged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from recsys.errors import UserError

T = TypeVar("T")

_SHARED = "_known_to_all_ranks"


class RankError(RuntimeError):
    """Another rank failed with an error that the user cannot mend; its traceback is on that rank."""


@contextmanager
def sharing_errors(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Raise an error of the block, on whichever rank, on every rank; all ranks run the block.

    Args:
        group: of all ranks, where a thread beside the main one calls this; None: the default one.

    The rank that failed raises its own error. KeyboardInterrupt and SystemExit are not shared: they
    end the process, and a closed connection tells the others.

    Raises:
        UserError: on the other ranks, of the same class and text, where it was one.
        OSError: likewise, where the operating system refused something.
        RankError: on the other ranks, for any other error, with its class and text.
    """
    try:
        yield
    except Exception as error:
        _tell(error, group)
        raise
    _tell(None, group)


def share(work: Callable[[], T], group: dist.ProcessGroup | None = None, *, source: int = 0) -> T:
    """Return on every rank what `work` returns on rank `source`, the only one that calls it.

    Raises:
        Exception: what `work` raised there, on every rank, as `sharing_errors` does.
    """
    answers: list[Any] = [None]
    with sharing_errors(group):
        if _rank() == source:
            answers[0] = work()
    if _num_ranks() > 1:
        dist.broadcast_object_list(answers, src=source, group=group)
    answer: T = answers[0]
    return answer


def gather(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Return on every rank what `work` returns on each of them, by rank.

    Raises:
        Exception: what `work` raised on any rank, on every rank, as `sharing_errors` does.
    """
    with sharing_errors(group):
        answer = work()
    answers: list[Any] = [answer] * _num_ranks()
    if _num_ranks() > 1:
        dist.all_gather_object(answers, answer, group=group)
    return answers


def gather_rows(work: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor | None:
    """Return on rank 0 the rows of all ranks, [R * N, ...] on the CPU, and None elsewhere.

    Args:
        work: returns this rank's rows [N, ...]; the same shape and type on every rank.
        device: that the ranks exchange tensors on.

    Raises:
        Exception: what `work` raised on any rank, on every rank, as `sharing_errors` does.
    """
    with sharing_errors():
        local = work().to(device)
        # On rank 0 alone, and only where there is something to receive.
        takes_part = _rank() == 0 and _num_ranks() > 1
        parts = [torch.empty_like(local) for _ in range(_num_ranks())] if takes_part else None
    if _num_ranks() == 1:
        return local.cpu()
    dist.gather(local, parts, dst=0)
    return None if parts is None else torch.cat(parts).cpu()


@dataclass(frozen=True)
class _Failure:
    """Description of an error for the other ranks."""

    kind: type[Exception] | None
    """Class it is raised as elsewhere; None: RankError."""
    arguments: tuple[Any, ...]
    """Of that class."""
    text: str
    """Class and message, for RankError."""

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        """Describe an error by what survives the way to another process."""
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):  # its subclasses take one text
            return cls(type(error), (str(error),), text)
        if isinstance(error, OSError) and error.errno is not None:
            return cls(OSError, (error.errno, error.strerror, error.filename), text)
        return cls(None, (), text)

    def error(self, rank: int) -> Exception:
        """Return what the other ranks raise."""
        if self.kind is None:
            return RankError(f"rank {rank} failed with {self.text}")
        return self.kind(*self.arguments)


def _tell(error: Exception | None, group: dist.ProcessGroup | None) -> None:
    """Exchange who failed; raise the first other rank's error where this one has none."""
    # An error that came out of an exchange is known to all: nobody waits for it a second time.
    if _num_ranks() == 1 or getattr(error, _SHARED, False):
        return
    failures: list[_Failure | None] = [None] * _num_ranks()
    try:
        dist.all_gather_object(failures, None if error is None else _Failure.of(error), group=group)
    except Exception as lost:
        if error is None:
            raise
        error.add_note(f"the other ranks could not be told ({lost})")
        return
    failed = [(rank, failure) for rank, failure in enumerate(failures) if failure is not None]
    if error is None and failed:
        rank, failure = failed[0]
        error = failure.error(rank)
        setattr(error, _SHARED, True)
        raise error
    if error is not None:
        setattr(error, _SHARED, True)


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
