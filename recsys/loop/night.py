"""Jobs of a night: the real commands by which an arm's model learns what happened on the day.

Called by arm.py. Every command is one of launch/, in a process of its own, as a person would type it.
"""

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from recsys.bundle.spec import CURRENT
from recsys.demo.days import day_start, part_name
from recsys.errors import UserError
from recsys.loop.config import LoopConfig, Night
from recsys.overrides import override

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
_LAST_LINES = 8
_SPLIT = ["data.split.strategy=random", "data.history.scope=past"]
"""The last day is trained on too: rows are held out at random."""


@dataclass(frozen=True)
class Step:
    """One job."""

    name: str
    """Of the file in launch/."""
    arguments: list[str]

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [sys.executable, str(LAUNCH / f"{self.name}.py"), *self.arguments]


def run_name(day: int) -> str:
    """Return the name of the run that the night after a day trains; day 0: before day 1."""
    return f"day-{day:03d}"


def start_steps(config: LoopConfig, workspace: Path, seed: int) -> list[Step]:
    """Return the jobs before day 1: from raw files to a bundle."""
    return _learn_anew(config, workspace, run_name(0), seed)


def night_steps(
    night: Night, config: LoopConfig, workspace: Path, day: int, seed: int
) -> list[Step]:
    """Return the jobs of the night after a day, in order; none for an arm that does not train."""
    if night in ("none", "items"):
        return []
    since, until = (datetime.fromtimestamp(day_start(d), UTC).isoformat() for d in (day, day + 1))
    log = workspace / "raw" / "interactions" / part_name(day)
    events = Step(
        "events",
        [
            override("workspace", workspace),
            override("since", since),
            override("until", until),
            override("out", log),
        ],
    )
    if night == "refresh":
        return [events, *_learn_more(config, workspace, day, seed)]
    return [events, *_learn_anew(config, workspace, run_name(day), seed)]


def _learn_more(config: LoopConfig, workspace: Path, day: int, seed: int) -> list[Step]:
    """Return the jobs that teach the model of the night before a day's log, and export the change."""
    data = ["data=loop", override("workspace", workspace)]
    name = override("run.name", run_name(day))
    from_before = override("init", run_name(day - 1))
    base = override("base", workspace / "bundles" / CURRENT)
    return [
        Step("prepare", [*data, *_SPLIT, "append=true"]),
        Step("embed", [*data, *config.embed]),
        Step(
            "train",
            [*data, *config.train, *config.refresh, from_before, name, _seed(seed)],
        ),
        Step("export", [*data, *config.export, name, base]),
    ]


def _learn_anew(config: LoopConfig, workspace: Path, run: str, seed: int) -> list[Step]:
    """Return the jobs that train a model on the whole log and export it."""
    data = ["data=loop", override("workspace", workspace)]
    name = override("run.name", run)
    return [
        Step("prepare", [*data, *_SPLIT]),
        Step("embed", [*data, *config.embed]),
        Step("train", [*data, *config.train, name, _seed(seed)]),
        Step("export", [*data, *config.export, name]),
    ]


def _seed(seed: int) -> str:
    return override("run.seed", seed)


class Jobs:
    """Runs jobs, several arms' side by side, each on one thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a signal may interrupt the thread that holds it
        self.is_stopped = False

    def run(self, step: Step, logs: Path) -> float:
        """Run one job and return its seconds; its output goes to `<logs>/<name>.log`.

        Raises:
            UserError: it failed, with the last lines it wrote; or the jobs were stopped.
        """
        logs.mkdir(parents=True, exist_ok=True)
        log, started = logs / f"{step.name}.log", time.perf_counter()
        with log.open("wb") as stream:
            process = self._start(step.command(), stream)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        self.refuse_stopped()
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            said = "\n".join(last)
            raise UserError(
                f"{shlex.join(step.command())}: failed with code {code} ({log}):\n{said}"
            )
        return time.perf_counter() - started

    def _start(self, command: Sequence[str], stream: IO[bytes]) -> subprocess.Popen[bytes]:
        with self._lock:
            self.refuse_stopped()
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            self._running.add(process)
        return process

    def refuse_stopped(self) -> None:
        """Raise UserError where the jobs were stopped."""
        if self.is_stopped:
            raise UserError("stopped; the same command goes on with the day that each arm was in")

    def stop(self) -> None:
        """End what runs, and start nothing more: trainings save, and the same command goes on."""
        self.is_stopped = True
        with self._lock:
            for process in self._running:
                process.terminate()
