"""Runs of a study: those that exist, and the real commands that make the others.

Called by launch/compare.py and launch/sweep.py. A study only ever starts launch/embed.py,
launch/train.py and launch/evaluate.py, as a user would, each in a process of its own: what is
measured is what users get, and a killed study goes on where its runs stopped.
"""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from hydra import compose
from hydra.errors import HydraException
from safetensors import safe_open

from recsys.checkpoint.integrity import best_checkpoint, latest_checkpoint
from recsys.config import from_config, key_of, read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.errors import UserError
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.result import EvaluationResult, read_result
from recsys.evaluation.rows import ScoredRows, read_lines, scored_rows
from recsys.files import reading
from recsys.job import say, typed_arguments
from recsys.kinds import of_other_kinds
from recsys.overrides import override
from recsys.run.config import RunConfig
from recsys.run.fingerprint import changes, fingerprint, scored_from
from recsys.run.folder import as_stored, is_grown, read_stored
from recsys.runtime.child_jobs import LAUNCH, ChildJobs
from recsys.runtime.limits import usable_cores
from recsys.runtime.threads import threads_of_process
from recsys.schema import read_manifest
from recsys.tracking.config import TrackingConfig
from recsys.train.log import CPU_SECONDS, DIVERGED

_GROWING = ("data.identity", "data.features")
"""Keys of a run that appended days change."""
# Hydra keeps the state of a composition in globals; searches run in threads.
_composing = threading.Lock()


class DivergedError(UserError):
    """A training that ended because its loss or its scores were not finite."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One training of a study, and its place."""

    workspace: Path
    name: str
    """run.name: folder below workspace/runs/."""
    overrides: tuple[str, ...]
    """Everything after `launch/train.py`, but workspace and run.name."""
    config: RunConfig
    """What those overrides mean, for comparison with what a folder holds."""
    on_grown_data: bool = False
    """Whether a run and an evaluation stay the ones asked for after days were appended to the data."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.workspace / "runs" / self.name

    @property
    def remedy(self) -> str:
        """Command that makes the run's files anew."""
        return f"train it anew: launch/train.py run.name={self.name} run.overwrite=true"

    def trained(self) -> bool:
        """Return whether the folder holds this very run, finished.

        A run is this one where every key that decides the result is equal, the number of epochs
        included, and it was trained with them from its first step: a run that was extended is not.

        Raises:
            UserError: it holds another one, of other settings or other data; says which.
        """
        newest = latest_checkpoint(self.folder / "checkpoints")
        if newest is None:
            return False
        stored = read_stored(self.folder)
        changed = changes(stored, self.as_stored())
        if self.on_grown_data and is_grown(stored, read_manifest(self.workspace)):
            changed = {k: text for k, text in changed.items() if k not in _GROWING}
        different = list(changed.values())
        different += [f"extended: {text}" for text in stored.get("extended", [])]
        if different:
            raise UserError(
                f"{self.folder}: its run was trained with other settings ({'; '.join(different)}); "
                f"use overwrite=true to train it anew, or move the folder away"
            )
        with reading(newest / "index.json", f"delete {newest}, and the training goes on before it"):
            index = json.loads((newest / "index.json").read_text(encoding="utf-8"))
            return bool(index["state"]["finished"])

    def as_stored(self) -> dict[str, Any]:
        """Return the configuration and data this run asks for, as its config.yaml will hold them."""
        return as_stored(self.workspace, self.config, read_manifest(self.workspace))

    def fingerprint(self) -> str:
        """Return the hash of all that decides this run's result."""
        return fingerprint(self.as_stored())

    def evaluated(self, split: str, settings: EvaluateConfig) -> bool:
        """Return whether the best checkpoint has been scored on `split`, of today's data and features.

        Args:
            settings: the configuration of the evaluation that is wanted.
        """
        metrics = self.folder / "eval" / split / "metrics.json"
        return metrics.is_file() and not self.changed_since_evaluation(split, settings)

    def changed_since_evaluation(self, split: str, settings: EvaluateConfig) -> list[str]:
        """Return which of checkpoint, data, features, settings and candidates differ from those scored.

        Evaluations of earlier versions drew other candidates. The earliest do not say what they were made
        from; their settings differ, and their checkpoint where it is newer than they are.
        """
        metrics = self.folder / "eval" / split / "metrics.json"
        made_from = read_metrics(self, split).made_from
        best = best_checkpoint(self.folder / "checkpoints")
        if made_from is None:
            with reading(best / "index.json", self.remedy):
                newer = (best / "index.json").stat().st_mtime > metrics.stat().st_mtime
            return ["checkpoint"] * newer + ["settings"]
        now = scored_from(self.workspace, best, self.config.model.modalities, settings)
        changed = [key for key, value in now.items() if made_from.get(key) != value]
        grown_from = read_manifest(self.workspace).ancestor(str(made_from.get("data")))
        if self.on_grown_data and grown_from is not None:
            changed = [key for key in changed if key not in ("data", "features")]
        if "settings" in changed and _same_settings(made_from.get("settings"), settings):
            changed.remove("settings")
        return changed

    def validation_metric(self) -> float:
        """Return the best validation metric (train.metric); the test split has no part in it."""
        best_checkpoint(self.folder / "checkpoints")  # says why there is none
        pointer = self.folder / "checkpoints" / "best.json"
        with reading(pointer, self.remedy):
            metric = json.loads(pointer.read_text(encoding="utf-8"))["metric"]
            return float("nan") if metric is None else float(metric)

    def divergence(self) -> str | None:
        """Return why the last training of this run was given up: its loss or scores were not finite."""
        file = self.folder / DIVERGED
        if not file.is_file():
            return None
        with reading(file, f"delete it and train on: launch/train.py run.name={self.name}"):
            return str(json.loads(file.read_text(encoding="utf-8"))["reason"])

    def num_parameters(self) -> int:
        """Return the trained values: tables, unknown rows included, and dense weights."""
        best = best_checkpoint(self.folder / "checkpoints")
        with reading(best / "index.json", self.remedy):
            index = json.loads((best / "index.json").read_text(encoding="utf-8"))
            tables = sum(chunk["num_rows"] * chunk["num_columns"] for chunk in index["chunks"])
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        with reading(best / "dense.safetensors", self.remedy):
            with safe_open(best / "dense.safetensors", framework="np") as stored:
                shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}
        dense = sum(int(np.prod(n)) for name, n in shapes.items() if not name.endswith(buffers))
        return tables + dense

    def examples_per_second(self) -> float:
        """Return the median training speed over the lines of metrics.jsonl."""
        known = self._logged("train/examples_per_second")
        return float(np.median(known)) if known else float("nan")

    def cpu_seconds(self) -> float:
        """Return the processor time of the training; nan where none is logged.

        Parts of a resumed run that were killed are not in it.
        """
        known = self._logged(CPU_SECONDS)
        return sum(known) if known else float("nan")

    def _logged(self, key: str) -> list[float]:
        """Return the values of a key in metrics.jsonl, of the lines that have it."""
        file = self.folder / "metrics.jsonl"
        with reading(file, self.remedy):
            lines = file.read_text(encoding="utf-8").splitlines()
            if not lines:
                raise UserError("no lines")
            values = [json.loads(line).get(key) for line in lines]
        return [value for value in values if value is not None]


def _same_settings(stored: Any, settings: EvaluateConfig) -> bool:
    """Return whether stored settings, an earlier version's included, mean the same evaluation."""
    try:
        return from_config(EvaluateConfig, stored, "settings", stored=True) == settings
    except UserError:  # keys of another version: not the same
        return False


def read_metrics(run: StudyRun, split: str) -> EvaluationResult:
    """Return the metrics that launch/evaluate.py wrote."""
    return read_result(
        run.folder / "eval" / split / "metrics.json", evaluate_again(run.name, split)
    )


def read_predictions(run: StudyRun, split: str) -> ScoredRows:
    """Return the predictions that launch/evaluate.py wrote."""
    file = run.folder / "eval" / split / "predictions.parquet"
    remedy = evaluate_again(run.name, split)
    with reading(file, remedy):
        return scored_rows(read_lines(file, remedy))


def evaluate_again(name: str, split: str) -> str:
    """Return what makes the files of an evaluation anew."""
    return f"run launch/evaluate.py again with run.name={name} split={split}"


def study_run(
    data: Sequence[str], workspace: Path, name: str, overrides: Sequence[str]
) -> StudyRun:
    """Return a run with its configuration checked, as launch/train.py will read it.

    Called inside a Hydra job, whose configs/ the settings are composed from.

    Args:
        data: arguments that name the recipe (recsys.job.same_data).
        overrides: one list may serve several models: keys that the run's model lacks and another model
            has are left out.

    Raises:
        UserError: the settings are none of launch/train.py.
    """
    keys = (WorkspaceConfig, RunConfig, TrackingConfig)
    written = typed_arguments([*data, override("run.name", name), *overrides], keys)
    try:
        with _composing:
            cfg = compose("train", overrides=[a for a in written if not a.startswith("-")])
    except HydraException as error:
        raise UserError(f"overrides of launch/train.py: {error}") from error
    _, config, _ = read_job(cfg, keys)
    foreign = of_other_kinds(dataclasses.asdict(config), [RunConfig], map(key_of, overrides))
    own = tuple(argument for argument in overrides if key_of(argument) not in foreign)
    return StudyRun(workspace=workspace, name=name, overrides=own, config=config)


class Commands:
    """Starts jobs, several side by side, each on its own share of the cores."""

    def __init__(
        self,
        *,
        data: Sequence[str],
        num_parallel: int,
        num_ranks: int,
        logs: Path,
        threads: int | None = None,
        tracking: Sequence[str] = (),
    ):
        """Args: data: names the recipe (recsys.job.same_data); num_ranks: processes of every job;
        logs: folder for their output; threads: of every process, as `run.threads` of any job, at most
        its share of the cores, on which the job is kept; tracking: trackers of the runs, as arguments.

        Raises:
            UserError: more jobs at a time than cores.
        """
        cores = sorted(os.sched_getaffinity(0))[: usable_cores()]
        if not 1 <= num_parallel * num_ranks <= len(cores):
            raise UserError(
                f"parallel={num_parallel} with ranks={num_ranks}: expected at least 1 and together "
                f"no more than the {len(cores)} cores of this machine"
            )
        self.data = data
        self.num_ranks = num_ranks
        self.logs = logs
        self.tracking = list(tracking)
        share = len(cores) // num_parallel
        allowed = threads_of_process(threads, num_processes=num_parallel * num_ranks).count
        self.threads = min(allowed, share // num_ranks)
        self.shares: SimpleQueue[set[int]] = SimpleQueue()
        for index in range(num_parallel):
            self.shares.put(set(cores[index * share : (index + 1) * share]))
        self.pool = ThreadPoolExecutor(num_parallel)
        self.jobs = ChildJobs("stopped; the same command goes on")

    def end_with_this_process(self) -> None:
        """Have SIGTERM and SIGINT end the jobs, too: trainings save, and the same command goes on."""
        self.jobs.end_with_this_process()

    def train(self, runs: Sequence[StudyRun], *, overwrite: bool) -> None:
        """Train the runs that are not finished; an interrupted one goes on from its checkpoint."""
        missing = []
        for run in runs:
            again: tuple[str, ...] = ()
            try:
                if run.trained():
                    continue
            except UserError:
                if not overwrite:
                    raise
                again = ("run.overwrite=true",)
            missing.append((run, again))
        say(f"train: {len(runs) - len(missing)} of {len(runs)} runs are there")

        def one(entry: tuple[StudyRun, tuple[str, ...]]) -> str:
            run, again = entry
            try:
                arguments = [*self.tracking, *run.overrides, *again]
                self.job("train", run.workspace, run.name, arguments)
            except UserError as error:
                if run.divergence() is None:
                    raise
                raise DivergedError(f"{run.name}: {run.divergence()}") from error
            return f"{run.name}: best validation {run.validation_metric():.4f}"

        self._all(one, missing)

    def evaluate(
        self,
        runs: Sequence[StudyRun],
        split: str,
        settings: EvaluateConfig,
        more: Sequence[str] = (),
    ) -> None:
        """Score the runs whose best checkpoint has not been scored on `split`, with its `settings`.

        Args:
            more: arguments of launch/evaluate.py that give the settings, but the split.
        """
        missing = [run for run in runs if not run.evaluated(split, settings)]
        say(f"evaluate on {split}: {len(runs) - len(missing)} of {len(runs)} are there")

        def one(run: StudyRun) -> str:
            arguments = [*self.tracking, override("split", split), *more]
            self.job("evaluate", run.workspace, run.name, arguments)
            return f"{run.name}: scored"

        self._all(one, missing)

    def job(self, name: str, workspace: Path, run_name: str | None, overrides: list[str]) -> None:
        """Run launch/<name>.py and wait for it; its output goes to a log.

        Raises:
            UserError: it failed, and the last lines it wrote; or this process is being stopped.
        """
        command = [sys.executable]
        if self.num_ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={self.num_ranks}"]
        command += [str(LAUNCH / f"{name}.py"), *self.data, override("workspace", workspace)]
        command += [] if run_name is None else [override("run.name", run_name)]
        command += overrides
        log = self.logs / f"{run_name or workspace.name}-{name}.log"
        cores = self.shares.get()
        try:
            self.jobs.wait_for(command, log, threads=self.threads, cores=cores)
        finally:
            self.shares.put(cores)

    def _all(self, one: Callable[[Any], str], entries: Sequence[Any]) -> None:
        try:
            for index, line in enumerate(self.pool.map(one, entries)):
                say(f"{line} ({index + 1} of {len(entries)})")
        except BaseException as error:
            # Without this, jobs that wait for their turn would still be started one by one. After a
            # single one that diverged nothing waits, and a search starts its next trial.
            if len(entries) > 1 or not isinstance(error, DivergedError):
                self.pool.shutdown(wait=False, cancel_futures=True)
            raise
