"""Jobs of a night: the real commands by which an arm's model learns what happened on the day.

Called by arm.py. Every command is one of launch/, in a process of its own, as a person would type it.
"""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from recsys.bundle.spec import CURRENT
from recsys.demo.days import day_start, part_name
from recsys.loop.config import LoopConfig, Night
from recsys.overrides import override
from recsys.runtime.child_jobs import LAUNCH, ChildJobs

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
    visitors = config.visitors
    events = Step(
        "events",
        [
            override("workspace", workspace),
            override("since", since),
            override("until", until),
            override("out", log),
            override("position_bias", visitors.position_bias if visitors.known_bias else 0.0),
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


class Jobs(ChildJobs):
    """Runs jobs of nights, several arms' side by side, each on one thread."""

    def __init__(self) -> None:
        super().__init__("stopped; the same command goes on with the day that each arm was in")

    def run(self, step: Step, logs: Path) -> float:
        """Run one job and return its seconds; its output goes to `<logs>/<name>.log`.

        Raises:
            UserError: as `wait_for`.
        """
        return self.wait_for(step.command(), logs / f"{step.name}.log", threads=1)
