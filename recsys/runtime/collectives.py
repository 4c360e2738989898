"""Collectives: gather over ranks, rank 0's answer for all of them, and errors that reach every rank.

Called by every job and package whose ranks exchange Python objects, and by ranks.py for arrays; outside
of model, gradients and signals nothing else calls torch.distributed. A rank that fails within one of
these exchanges, or in a block of `sharing_errors`, tells the others at their next exchange, whichever it
is: each of them begins with the same question, "has anybody failed?". In one process nothing is
exchanged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from recsys.errors import UserError

T = TypeVar("T")

_SHARED = "_known_to_all_ranks"


class RankError(RuntimeError):
    """Another rank failed with an error that the user cannot mend; its traceback is on that rank."""


_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv, got 0 bytes",
    "remote process exit",
)
"""What backends say of a rank whose process has ended; their errors have no class of their own."""


def is_rank_lost(error: Exception) -> bool:
    """Return whether an exchange failed because another rank's process is gone."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)


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
    try:
        answer = work()
    except Exception as error:
        _tell(error, group)
        raise
    answers: list[T] = _tell(None, group, answer)
    return answers


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


def _tell(error: Exception | None, group: dist.ProcessGroup | None, answer: Any = None) -> list:
    """Exchange who failed, and answers; raise the first other rank's error where this one has none.

    Returns the answers by rank; they have none where this rank has an error.
    """
    # An error that came out of an exchange is known to all: nobody waits for it a second time.
    if _num_ranks() == 1 or getattr(error, _SHARED, False):
        return [answer]
    told: list[Any] = [None] * _num_ranks()
    try:
        own = answer if error is None else _Failure.of(error)
        dist.all_gather_object(told, own, group=group)
    except Exception as lost:
        if error is None:
            raise
        error.add_note(f"the other ranks could not be told ({lost})")
        return []
    failed = [(rank, found) for rank, found in enumerate(told) if isinstance(found, _Failure)]
    if error is None and failed:
        rank, failure = failed[0]
        error = failure.error(rank)
        setattr(error, _SHARED, True)
        raise error
    if error is not None:
        setattr(error, _SHARED, True)
    return told


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
