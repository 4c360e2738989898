"""Stop signals: after SIGTERM or SIGINT all ranks stop at the same step.

Called by launch/train.py around training. A scheduler's signal reaches ranks at different moments, or
only some of them; a rank that stopped alone would leave the others waiting in a collective. Ranks
tell each other on a gloo group of their own, about twice a second, whatever the device.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist

from recsys.runtime.collectives import gather
from recsys.runtime.env import Env

CHECK_SECONDS = 0.5
"""Time between two questions to the other ranks; steps may be much shorter."""
FAILED = 1
"""Reason for a stop that is no signal: something on this rank failed beside the steps."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - it ends a pass early, which is no error
    """All ranks agreed to stop in the middle of a pass."""


class StopSignals:
    """Context in which SIGTERM and SIGINT ask all ranks to stop instead of ending the process."""

    def __init__(self, env: Env, *, within_seconds: float):
        """All ranks make one together.

        Args:
            within_seconds: after a signal the process ends at this age of it, stopped or not: a rank
                whose peers are gone may wait for them in vain.
        """
        self.within_seconds = within_seconds
        self.reason = 0
        """Signal number, or FAILED, that all ranks have agreed to stop for; 0: none."""
        self._asked = 0
        self._group = dist.new_group(backend="gloo") if env.world_size > 1 else None
        self._num_steps = 1
        self._steps_left = 1
        self._checked = time.monotonic()
        self._deadline: threading.Timer | None = None
        self._ends: float | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it; 0 where no signal came."""
        return 128 + self.reason if self.reason > FAILED else 0

    @property
    def name(self) -> str:
        """Name of the signal that stopped the ranks, such as SIGTERM."""
        return signal.Signals(self.reason).name

    def seconds_left(self) -> float:
        """Return the seconds until this process ends, stopped or not; infinity where no signal came."""
        return math.inf if self._ends is None else self._ends - time.monotonic()

    def ask(self, reason: int) -> None:
        """Ask all ranks to stop; the first signal counts, further ones change nothing."""
        self._asked = max(self._asked, reason)

    def due(self) -> bool:
        """Return whether to stop now, the same on every rank; all ranks call it at every step."""
        if self._group is None:
            self.reason = self._asked
            return self.reason > 0
        self._steps_left -= 1
        if self._steps_left == 0 and not self.reason:
            self.reason = self._agree()
        return self.reason > 0

    def settle(self) -> None:
        """Agree at once on what any rank was asked to stop for; all ranks call it, after their steps."""
        self.reason = max(gather(lambda: self._asked))

    def watched(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items of a pass over data in which every rank takes equally many.

        Raises:
            Interrupted: a stop is due, on every rank before the same item.
        """
        for item in items:
            if self.due():
                raise Interrupted
            yield item

    def _agree(self) -> int:
        """Exchange reasons, and settle after how many steps to do so again."""
        now = time.monotonic()
        seconds = max(now - self._checked, 1e-6)
        # At most doubled: one short step must not put the next question far off.
        wanted = min(2 * self._num_steps, int(self._num_steps * CHECK_SECONDS / seconds))
        shared = torch.tensor([self._asked, max(1, wanted)], dtype=torch.int64)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._group)
        self._num_steps = self._steps_left = int(shared[1])
        self._checked = now
        return int(shared[0])

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.ask(number)
        if self._deadline is None:
            self._deadline = threading.Timer(self.within_seconds, self._leave, [number])
            self._deadline.daemon = True
            self._deadline.start()
            self._ends = time.monotonic() + self.within_seconds

    def _leave(self, number: int) -> None:
        print(
            f"error: {signal.Signals(number).name} came {self.within_seconds:g} s ago "
            f"(train.stop_within_seconds) and the ranks were not done (stopping together, or writing "
            f"a checkpoint); the newest whole checkpoint is where the run goes on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + number)

    def __enter__(self) -> "StopSignals":
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error the deadline stays: what follows may wait for ranks that are gone.
        if self._deadline is not None and error is None:
            self._deadline.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
