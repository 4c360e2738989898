"""Profile of some training steps: torch.profiler's trace and its table of operators.

In: the run's pipeline. Out: runs/<run.name>/profile/rank<r>.trace.json.gz (for Perfetto
or chrome://tracing) and rank<r>.txt, the operators by cost. Called by launch/train.py where
`profile=true`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.profiler import ProfilerActivity, profile

from recsys.batch import Batch
from recsys.files import new_file, write_text
from recsys.job import say
from recsys.model.ranker import Scores
from recsys.runtime.env import Env
from recsys.sharding.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Recording of some steps; `profile=true` is short for profile.enabled=true."""

    SHORT_FORM = "enabled"

    enabled: bool = False
    """Record; the recorded steps are slower, the others are not."""
    skip_steps: Annotated[int, Field(ge=0)] = 20
    """Steps before the recording starts, so that caches and threads are warm."""
    num_steps: Annotated[int, Field(ge=1)] = 10
    """Steps recorded; a validation or a checkpoint ends the recording earlier."""
    ranks: Literal["first", "all"] = "first"
    """`first`: rank 0 alone; `all`: every rank writes its own files."""


class ProfiledPipeline:
    """A pipeline whose steps `skip_steps` + 1 to `skip_steps` + `num_steps` are recorded."""

    def __init__(self, pipeline: Pipeline, *, config: ProfileConfig, folder: Path, env: Env):
        """Args: folder: receives the files; made when there is something to write."""
        self.pipeline = pipeline
        self.config = config
        self.folder = folder
        self.env = env
        self.num_taken = 0
        self.num_recorded = 0
        self.profiler: Any = None
        self.started = 0.0
        self.finished = config.ranks == "first" and not env.is_first

    def progress(self, batches: Iterator[Batch]) -> Scores:
        """Take one step, recorded if it is its turn."""
        if not self.finished and self.profiler is None and self.num_taken >= self.config.skip_steps:
            self._start()
        scores = self.pipeline.progress(batches)
        self.num_taken += 1
        if self.profiler is not None:
            self.num_recorded += 1
            if self.num_recorded == self.config.num_steps:
                self._finish()
        return scores

    def pause(self) -> None:
        """Hand the model back; the recording ends, so that it holds training steps alone."""
        if self.num_recorded and not self.finished:
            self._finish()
        self.pipeline.pause()

    def close(self) -> None:
        """Say so where the run was too short to record anything."""
        if not self.finished:
            say(
                f"profile: nothing recorded, the run took {self.num_taken:,} steps and the recording "
                f"starts after {self.config.skip_steps:,} (profile.skip_steps)"
            )

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.env.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        self.profiler = profile(activities=activities, record_shapes=True)
        self.profiler.start()
        self.started = time.perf_counter()

    def _finish(self) -> None:
        on_gpu = self.env.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        milliseconds = 1e3 * (time.perf_counter() - self.started) / self.num_recorded
        self.profiler.stop()
        self.finished = True
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank{self.env.rank}"
        trace = self.folder / f"{name}.trace.json.gz"
        with new_file(trace) as beside:
            packed = beside.with_suffix(".gz")  # by which the library knows to compress
            self.profiler.export_chrome_trace(str(packed))
            packed.replace(beside)
        operators = self.profiler.key_averages().table(
            sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total"
        )
        self.profiler = None
        title = (
            f"{self.num_recorded} training steps of {milliseconds:.2f} ms, rank {self.env.rank} of "
            f"{self.env.world_size} (recording slows a step down)"
        )
        table = self.folder / f"{name}.txt"
        write_text(table, f"{title}\n\n{operators}")
        say(f"profile: {milliseconds:.1f} ms a recorded step -> {table}, {trace.name}")


def profiled(pipeline: Pipeline, *, config: ProfileConfig, folder: Path, env: Env) -> Pipeline:
    """Return the pipeline, recorded where the configuration asks for it."""
    if not config.enabled:
        return pipeline
    return ProfiledPipeline(pipeline, config=config, folder=folder, env=env)
