"""Progressive validation: every appended window is scored before it is trained on, window after window.

In: prepared data with windows, and the settings of a run. Out: scored runs of three models: one that goes
on from window to window, one that is never refreshed, and one that is trained anew on everything before a
window. Runs and scores that are there are kept; windows that were appended since are added. Called by
launch/progressive.py.

    train | valid test | window_0001 | window_0002 | ...
    base -> start      -> 0001       -> 0002        ...    refreshed: each run goes on from the last
            start                                          never: scores every window
                          anew-0001     anew-0002   ...    anew: from scratch, on all splits before
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from recsys.chain import is_window
from recsys.checkpoint.integrity import best_checkpoint
from recsys.errors import UserError
from recsys.evaluation.candidates import RankingConfig
from recsys.evaluation.config import EvaluateConfig
from recsys.files import read_json, reading, write_json
from recsys.job import say
from recsys.overrides import override
from recsys.runtime.threads import ProcessConfig
from recsys.schema import name_problems, read_manifest
from recsys.study.runs import Commands, StudyRun, study_run

ARMS = ("refreshed", "never", "anew")
_SCORED = ("ranking.num_users=0", "importance_rows=0")
"""Arguments of launch/evaluate.py: rows are scored, users are not ranked."""


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig:
    """Settings of a progressive validation."""

    name: str = "progressive"
    """Folder below workspace/progressive/, and beginning of the names of its runs."""
    overrides: list[str] = field(default_factory=list)
    """Settings of launch/train.py for every run: the experiment, the model."""
    refresh: list[str] = field(default_factory=list)
    """Settings of the runs that go on, beside `overrides`."""
    refresh_on: Literal["new", "all"] = "new"
    """Rows that runs which go on are trained on: the `new` ones since the run before, or `all` so far, of
    which refresh=[train.order=shuffled,train.epochs=1] makes one shuffled pass."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Repetitions with run.seed 0, 1, 2, ..."""
    anew: bool = False
    """Whether a model is also trained anew on everything before a window."""
    anew_every: Annotated[int, Field(ge=1)] = 1
    """Windows from one such training to the next; it scores the window that follows."""
    ranks: Annotated[int, Field(ge=1)] = 1
    """Processes of every job."""
    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads of every process of a job that is started; null: OMP_NUM_THREADS, else an equal share."""
    overwrite: bool = False
    """Train runs anew whose settings or data have changed; false: stop and say which."""

    def problems(self) -> list[str]:
        """Return a text for a name that is no folder's."""
        return name_problems("name", self.name)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one training."""

    seconds: float
    """From the start of its processes to their end."""
    cpu_seconds: float
    """Of all its processes and threads, without imports and configuration (recsys.train.log)."""
    num_rows: int
    """Rows that steps were taken on, repetitions counted."""


@dataclass(frozen=True, kw_only=True)
class ScoredWindow:
    """One model's scores of one window, which it was not trained on."""

    arm: str
    """One of ARMS."""
    seed: int
    window: str
    run: StudyRun
    cost: Cost | None
    """Of the training that made this model for this window; None for a model that was not refreshed, or
    where the training was not measured."""


def evaluation_of(window: str) -> EvaluateConfig:
    """Return the settings of a window's evaluation."""
    return EvaluateConfig(split=window, ranking=RankingConfig(num_users=0), importance_rows=0)


def walk(commands: Commands, workspace: Path, config: ProgressiveConfig) -> list[ScoredWindow]:
    """Train and score what is missing, in the order of time; return every scored window.

    Raises:
        UserError: the data has no window; a run has other settings.
    """
    windows = [name for name in read_manifest(workspace).splits_in_time if is_window(name)]
    if not windows:
        raise UserError(
            f"{workspace / 'prepared'}: the data has no window to score; append new days "
            f"(launch/prepare.py append=true)"
        )
    found: list[ScoredWindow] = []
    for seed in range(config.seeds):
        found += _Walk(commands, workspace, config, seed).run(windows)
    return found


class _Walk:
    """The walk of one seed."""

    def __init__(self, commands: Commands, workspace: Path, config: ProgressiveConfig, seed: int):
        self.commands = commands
        self.workspace = workspace
        self.config = config
        self.seed = seed
        self.costs = workspace / "progressive" / config.name / "costs"

    def run(self, windows: Sequence[str]) -> list[ScoredWindow]:
        """Score every window by every model, and train on it."""
        manifest = read_manifest(self.workspace)
        splits = manifest.splits_in_time
        before = splits[1 : splits.index(windows[0])]
        base = self._trained("base")
        has_rows = any(manifest.splits[name].num_rows for name in before)
        start = self._going_on("start", base, before) if has_rows else base
        latest, cost, found = start, self._cost(start), []
        for number, window in enumerate(windows):
            found.append(self._scored("refreshed", window, latest, cost if number else None))
            found.append(self._scored("never", window, start, None))
            if self.config.anew and number % self.config.anew_every == 0:
                known = splits[: splits.index(window)]
                epochs = override("train.epochs", _best_epoch(base))
                anew = self._trained(f"anew-{window}", override("train.splits", known), epochs)
                found.append(self._scored("anew", window, anew, self._cost(anew)))
            latest = self._going_on(window, latest, [window])
            cost = self._cost(latest)
            say(f"seed {self.seed}: {window} is scored and trained on")
        return found

    def _going_on(self, name: str, parent: StudyRun, splits: Sequence[str]) -> StudyRun:
        """Return the run that goes on from another one, trained; splits: those that are new."""
        if self.config.refresh_on == "all":
            known = read_manifest(self.workspace).splits_in_time
            splits = known[: known.index(splits[-1]) + 1]
        own = [override("init", parent.name), override("train.splits", list(splits))]
        return self._trained(name, *self.config.refresh, *own)

    def _trained(self, name: str, *own: str) -> StudyRun:
        """Return a run, trained now if it is not there; its cost is noted."""
        overrides = [*self.config.overrides, *own, override("run.seed", self.seed)]
        full_name = f"{self.config.name}-seed{self.seed}-{name}"
        run = study_run(self.commands.data, self.workspace, full_name, overrides)
        run = dataclasses.replace(run, on_grown_data=True)
        started = time.perf_counter()
        is_new = not self._is_trained(run)
        self.commands.train([run], overwrite=self.config.overwrite)
        if is_new:
            cost = Cost(
                seconds=time.perf_counter() - started,
                cpu_seconds=run.cpu_seconds(),
                num_rows=_state(run)["examples"],
            )
            self.costs.mkdir(parents=True, exist_ok=True)
            write_json(self._cost_file(run), dataclasses.asdict(cost))
        return run

    def _is_trained(self, run: StudyRun) -> bool:
        try:
            return run.trained()
        except UserError:
            if not self.config.overwrite:
                raise
            return False

    def _scored(self, arm: str, window: str, run: StudyRun, cost: Cost | None) -> ScoredWindow:
        self.commands.evaluate([run], window, evaluation_of(window), _SCORED)
        return ScoredWindow(arm=arm, seed=self.seed, window=window, run=run, cost=cost)

    def _cost(self, run: StudyRun) -> Cost | None:
        """Return the cost of a training; None where it was made before costs were noted."""
        file = self._cost_file(run)
        if not file.is_file():
            return None
        with reading(file, "delete it; the cost of this run is then left out"):
            return Cost(**read_json(file, "delete it"))

    def _cost_file(self, run: StudyRun) -> Path:
        return self.costs / f"{run.name}.json"


def _best_epoch(run: StudyRun) -> int:
    """Return the pass after which a run validated best, 1 or more."""
    return max(1, int(_state(run)["epoch"]))


def _state(run: StudyRun) -> dict[str, int]:
    """Return the loop state of a run's best checkpoint."""
    index = best_checkpoint(run.folder / "checkpoints") / "index.json"
    with reading(index, run.remedy):
        state: dict[str, int] = json.loads(index.read_text(encoding="utf-8"))["state"]
    return state
