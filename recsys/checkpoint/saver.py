"""Saves checkpoints while training goes on: a copy between two steps, the writing in a thread.

In: the sharded model and the loop's state whenever a save is due. Out: checkpoints
(write.py). Built by launch/train.py, called by the training loop.

    step 100 | copy to host buffers | step 101 | step 102 | ...      main thread
                                    | write, sync, checksum, agree, rename, prune |   saver thread

Ranks meet in the thread on a gloo group of its own. One save is in flight at most: the next one, the
end of training and a stop wait for it.
"""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from recsys.checkpoint.integrity import forget_unfinished
from recsys.checkpoint.snapshot import Snapshot, host_buffers, stored_tensors, take_snapshot
from recsys.checkpoint.state import TrainState
from recsys.checkpoint.write import write_checkpoint
from recsys.errors import StorageError
from recsys.runtime.collectives import gather, sharing_errors
from recsys.runtime.env import GROUP_TIMEOUT, Env
from recsys.sharding.apply import ShardedRanker


class Saver:
    """Writes checkpoints of one run; a context that leaves no save in flight."""

    def __init__(
        self,
        folder: Path,
        *,
        sharded: ShardedRanker,
        env: Env,
        keep_last: int,
        in_background: bool,
        on_failure: Callable[[], None],
        report: Callable[[int, dict[str, float]], None],
        seconds_left: Callable[[], float] = lambda: math.inf,
    ):
        """All ranks make one together; unfinished checkpoints of killed processes are removed.

        Args:
            folder: the run's checkpoints/ folder.
            keep_last: newest checkpoints kept beside the best one.
            in_background: copy the tables and write in a thread; False: training waits.
            on_failure: called from the thread when a save failed, so that the loop comes back and
                hears of it.
            report: takes a step and what its save cost.
            seconds_left: until this process has to end, by the stop signal that it got.
        """
        self.folder = folder
        self.sharded = sharded
        self.env = env
        self.keep_last = keep_last
        self.in_background = in_background
        self.on_failure = on_failure
        self.report = report
        self.seconds_left = seconds_left
        self.skipped: str = ""
        """Why the last save was not begun; empty where it was."""
        self._save_seconds = 0.0
        """Of the last save that was written."""
        self._begun = 0.0
        self._buffers: dict[str, torch.Tensor] | None = None
        self._error: Exception | None = None
        self._costs: tuple[int, dict[str, float]] | None = None
        self._group: dist.ProcessGroup | None = None
        with sharing_errors():
            if env.is_first:
                forget_unfinished(folder)
        if in_background and env.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT)
        self._blocking_seconds = 0.0
        self._thread: threading.Thread | None = None
        if in_background:
            # Memory is had and touched while the first steps are taken.
            self._start(self._touch, stored_tensors(sharded, env))

    def save(self, state: TrainState, best: bool) -> None:
        """Save `state`'s step; in the background, back as soon as everything is copied.

        Edge cases: a save that would not be whole before a rank has to end, by what the last one took, is
        not begun (`skipped`); the one in flight has the time instead.

        Raises:
            StorageError: this save, or in the background the one before it, could not be written; on
                every rank.
        """
        started = time.perf_counter()
        self.skipped = self._shortage()
        if self.skipped:
            return
        self.wait()
        self._begun = time.perf_counter()
        with sharing_errors():
            snapshot = take_snapshot(self.sharded, state, self.env, self._buffers)
        if self.in_background:
            self._start(self._write, snapshot, best)
        else:
            self._write(snapshot, best)
        self._blocking_seconds = time.perf_counter() - started
        if not self.in_background:
            self.wait()

    def _shortage(self) -> str:
        """Return why a save would come too late on some rank, the same text on every rank; or nothing."""
        rest = 0.0
        if self._thread is not None and self._thread.is_alive() and self._begun:
            rest = max(self._save_seconds - (time.perf_counter() - self._begun), 0.0)
        every = gather(lambda: (self._save_seconds + rest, rest > 0, self.seconds_left()))
        most, both, _ = max(every)
        left = min(seconds for _, _, seconds in every)
        needed = "this save and the one before it need" if both else "a save takes"
        return f"{needed} {most:.0f} s and {left:.0f} s were left" if most > left else ""

    def wait(self) -> None:
        """Wait for the save in flight; all ranks call this.

        Raises:
            StorageError: it could not be written; on every rank.
        """
        with sharing_errors():
            self._join()
            error, self._error = self._error, None
            if error is not None:
                raise error
            if self._costs is not None:
                step, costs = self._costs
                self._costs = None
                self.report(step, {"checkpoint/blocking_seconds": self._blocking_seconds} | costs)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            if self.env.device.type == "cuda":
                torch.cuda.set_device(self.env.device)  # threads begin with device 0
            work(*arguments)

        self._thread = threading.Thread(target=run, name="saver", daemon=True)
        self._thread.start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _touch(self, stored: dict[str, torch.Tensor]) -> None:
        try:
            self._buffers = host_buffers(stored, self.env)
        except (RuntimeError, MemoryError) as error:
            self._error = StorageError(
                f"no memory for copies of the tables ({error}); use train.save_in_background=false"
            )
            self.on_failure()

    def _write(self, snapshot: Snapshot, best: bool) -> None:
        started = time.perf_counter()
        try:
            write_checkpoint(
                self.folder,
                snapshot,
                env=self.env,
                keep_last=self.keep_last,
                best=best,
                group=self._group,
            )
        except Exception as error:
            self._error = error
            self.on_failure()
            return
        step = snapshot.index["state"]["step"]
        self._save_seconds = time.perf_counter() - self._begun
        self._costs = (
            step,
            {
                "checkpoint/write_seconds": time.perf_counter() - started,
                "checkpoint/tables_gib_per_rank": snapshot.num_bytes / 2**30,
            },
        )

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
        else:
            # A checkpoint from before the error is worth having; a failure of its own is not news.
            self._join()
