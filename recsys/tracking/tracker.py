"""Experiment trackers: the protocol of one, and the set of a run, each fed by a thread of its own.

In: metrics by step, of rank 0. Out: whatever a tracker keeps. Called by recsys/train/log.py and
launch/evaluate.py. A tracker that fails says so in one line, keeps what it could not send, and tries
again with the next values; training neither waits for it nor ends with it, and metrics.jsonl has the
values in any case.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from recsys.errors import UserError
from recsys.files import read_json, write_json
from recsys.job import say

Status = Literal["finished", "stopped", "failed"]
_MOST_PENDING = 100_000
_SECONDS_AT_END = 30.0


class Tracker(Protocol):
    """An open run of an experiment tracker; any method may raise any error of its library."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep values of a step; a step that was logged before has the same values."""
        ...

    def close(self, status: Status) -> None:
        """Send what is pending and end the run, or this part of it."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """Description of a run for its trackers."""

    folder: Path
    """W/runs/<run.name>/; keeps the identity of the run in every tracker."""
    data: str
    """Name of the data."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys that decide the run's result, flat."""
    last_step: int | None = None
    """Step that training goes on from; values of later steps will come again. None: not known."""

    @property
    def workspace(self) -> Path:
        """Folder of the data set."""
        return self.folder.parents[1]

    def identity_file(self, tracker: str) -> Path:
        """Return the file that says which run of a tracker this one is."""
        return self.folder / "trackers" / f"{tracker}.json"

    def identity(self, tracker: str) -> dict[str, Any]:
        """Return which run of a tracker this one is; empty before its first opening."""
        file = self.identity_file(tracker)
        remedy = f"delete it, and {tracker} gets a new run"
        return dict(read_json(file, remedy)) if file.is_file() else {}

    def keep_identity(self, tracker: str, identity: Mapping[str, Any]) -> None:
        """Write which run of a tracker this one is, for a resume."""
        self.identity_file(tracker).parent.mkdir(exist_ok=True)
        write_json(self.identity_file(tracker), identity)


class Trackers:
    """Trackers of a run on rank 0; `log` and `close` return whatever the trackers do."""

    def __init__(
        self, run: TrackedRun, openers: Mapping[str, Callable[[], Tracker]], *, new_must_open: bool
    ):
        """Open the trackers; wait for those that must open.

        Args:
            openers: by name; each opens the run, or goes on with it.
            new_must_open: refuse to go on without a tracker in which the run is new; one in which it
                goes on is opened beside the training, and a failure is only said.

        Raises:
            UserError: a tracker that must open cannot be opened.
        """
        needed = [name for name in openers if new_must_open and not run.identity(name)]
        self.feeds = {
            name: _Feed(name, open_it, must_open=name in needed)
            for name, open_it in openers.items()
        }
        for name in needed:
            self.feeds[name].check_open()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand values of a step to every tracker."""
        for feed in self.feeds.values():
            feed.pending.put((step, dict(metrics)))

    def close(self, status: Status) -> None:
        """End the trackers; wait for pending values, but not long. A second call does nothing."""
        for feed in self.feeds.values():
            feed.pending.put(status)
        for feed in self.feeds.values():
            feed.join()
        self.feeds = {}


class _Feed:
    """Thread that opens a tracker, hands it values in their order, and closes it."""

    def __init__(self, name: str, open_it: Callable[[], Tracker], *, must_open: bool):
        self.name = name
        self.open_it = open_it
        self.must_open = must_open
        self.tracker: Tracker | None = None
        self.pending: SimpleQueue[tuple[int, dict[str, float]] | Status] = SimpleQueue()
        self.unsent: deque[tuple[int, dict[str, float]]] = deque(maxlen=_MOST_PENDING)
        self.failure: Exception | None = None
        self.tried = threading.Event()
        # A daemon: a server that does not answer never keeps the process.
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"tracker {name}")
        self.thread.start()

    def check_open(self) -> None:
        """Wait until the tracker is open.

        Raises:
            UserError: it cannot be opened.
        """
        self.tried.wait()
        if self.failure is not None:
            raise UserError(
                f"tracker {self.name} cannot be opened: {_first_line(self.failure)}. Change its keys, "
                f"or leave it out of tracker="
            ) from self.failure

    def join(self) -> None:
        """Wait for the thread to end, but not long."""
        self.thread.join(_SECONDS_AT_END)
        left = len(self.unsent)
        if self.thread.is_alive() or left:
            say(
                f"tracker {self.name}: lacks {left or 'some'} of the run's last lines; metrics.jsonl "
                f"has them"
            )

    def _run(self) -> None:
        self._attempt(None)
        self.tried.set()
        status: Status | None = None
        while status is None and not (self.must_open and self.tracker is None):
            item = self.pending.get()
            if isinstance(item, str):
                status = item
            else:
                self.unsent.append(item)
            self._attempt(status)

    def _attempt(self, status: Status | None) -> None:
        """Open the tracker where it is not, send everything unsent, and close it with a status."""
        try:
            if self.tracker is None:
                self.tracker = self.open_it()
            while self.unsent:
                self.tracker.log(*self.unsent[0])
                self.unsent.popleft()
            if status is not None:
                self.tracker.close(status)
        except Exception as error:
            # One line for all failures in a row; where opening is needed, the error is raised.
            if self.failure is None and not (self.must_open and self.tracker is None):
                say(
                    f"tracker {self.name}: failed ({_first_line(error)}); the job goes on, and "
                    f"{self.name} gets the values when it takes them again"
                )
            self.failure = error
        else:
            if self.failure is not None:
                say(f"tracker {self.name}: takes values again, and has those it missed")
            self.failure = None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")
