"""Where the time of a training step goes: a trace for the browser and a page to read.

What enters: the run's pipeline. What leaves: runs/<run.name>/profile/rank<r>.trace.json.gz (open it in
Perfetto or chrome://tracing), rank<r>.md and the same as JSON. Called by launch/train.py where
`profile=true`.
"""

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import DeviceType
from torch.profiler import ProfilerActivity, profile

from recsys.batch import Batch
from recsys.errors import UserError
from recsys.files import new_file, write_json, write_text
from recsys.job import say
from recsys.model.ranker import Scores
from recsys.runtime.env import Env
from recsys.sharding.pipeline import Pipeline

WAIT = "wait for a batch"
OTHER = "other"
LOOP = "loop and log"
BACKWARD = "dense backward"
TABLE_BACKWARD = "tables: backward and update"

_STAGES = (
    ("## wait for the loader ##", WAIT),
    ("copy_batch_to_gpu", "batch to the device"),
    ("sparse_data_dist", "ids to their ranks"),
    ("## lookup ##", "lookup"),
    ("## dense ##", "dense forward"),
    ("## forward", "loss"),
    ("## backward", BACKWARD),
    ("autograd::engine", BACKWARD),
    ("## optimizer", "optimizer"),
    ("## zero_grad", "optimizer"),
)
"""Part of a range's name, and the stage it stands for; the innermost range of an operator decides."""
_COMMUNICATION = ("gloo:", "nccl:", "c10d::")
_TABLE_OPERATORS = ("embedding", "lookup")
_NUM_OPERATORS = 15


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Recording of some steps; `profile=true` is short for profile.enabled=true."""

    SHORT_FORM = "enabled"

    enabled: bool = False
    """Record; the recorded steps are slower, the others are not."""
    skip_steps: int = 20
    """Steps before the recording starts, so that caches and threads are warm."""
    num_steps: int = 10
    """Steps recorded; a validation or a checkpoint ends the recording earlier."""
    ranks: str = "first"
    """`first`: rank 0 alone; `all`: every rank writes its own files."""


def check_profile(config: ProfileConfig) -> None:
    """Raise UserError for a value outside its choices.

    Raises:
        UserError: lists every offending key.
    """
    problems = []
    if config.ranks not in ("first", "all"):
        problems.append(f"profile.ranks={config.ranks!r}: expected first or all")
    if config.num_steps < 1:
        problems.append(f"profile.num_steps={config.num_steps}: expected 1 or more")
    if config.skip_steps < 0:
        problems.append(f"profile.skip_steps={config.skip_steps}: expected 0 or more")
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


@dataclass
class StageTime:
    """Milliseconds a step that one stage takes."""

    operators: float = 0.0
    """In torch's operators."""
    glue: float = 0.0
    """Between them: Python, and waiting where work runs on another thread or the accelerator."""
    device: float = 0.0
    """Of kernels on the accelerator started by the stage."""

    @property
    def host(self) -> float:
        """Operators and what lies between them."""
        return self.operators + self.glue


@dataclass
class Profile:
    """What was recorded, per step."""

    num_steps: int
    step: float
    """Milliseconds of a recorded step, from start to start."""
    rows: float
    """Rows of a step on all ranks."""
    matrix_flops: float
    """Floating-point operations of this rank's matrix products, as torch counts them."""
    stages: dict[str, StageTime]
    operators: list[tuple[str, float, float, float]]
    """Name, calls, host and device milliseconds; the most expensive first."""
    kernels: list[tuple[str, float, float]]
    """Kernels on the accelerator: name, calls, milliseconds; the most expensive first."""


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
        self.rows = 0
        self.profiler: Any = None
        self.started = 0.0
        self.finished = config.ranks == "first" and not env.is_first

    def progress(self, batches: Iterator[Batch]) -> Scores:
        """Take one step, recorded if it is its turn."""
        if not self.finished and self.profiler is None and self.num_taken >= self.config.skip_steps:
            self._start()
        if self.profiler is None:
            scores = self.pipeline.progress(batches)
        else:
            scores = self.pipeline.progress(_LabelledWaits(batches))
            self.num_recorded += 1
            self.rows += scores.global_rows
            if self.num_recorded == self.config.num_steps:
                self._finish()
        self.num_taken += 1
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
        self.profiler = profile(activities=activities, with_flops=True)
        self.profiler.start()
        self.started = time.perf_counter()

    def _finish(self) -> None:
        if self.env.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        self.profiler.stop()
        self.finished = True
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank{self.env.rank}"
        trace = self.folder / f"{name}.trace.json.gz"
        with new_file(trace) as beside:
            packed = beside.with_suffix(".gz")  # by which the library knows to compress
            self.profiler.export_chrome_trace(str(packed))
            packed.replace(beside)
        measured = summarise(
            self.profiler.events(),
            num_steps=self.num_recorded,
            step_milliseconds=1e3 * seconds / self.num_recorded,
            rows=self.rows / self.num_recorded,
        )
        self.profiler = None
        text = profile_page(
            measured, rank=self.env.rank, world_size=self.env.world_size, trace=trace.name
        )
        page = self.folder / f"{name}.md"
        write_text(page, text)
        write_json(self.folder / f"{name}.json", dataclasses.asdict(measured))
        slowest = max(measured.stages.items(), key=lambda item: item[1].host)
        say(
            f"profile: {measured.step:.1f} ms a step, most of it {slowest[0]} "
            f"({slowest[1].host:.1f} ms) -> {page}, {trace.name}"
        )


class _LabelledWaits(Iterator[Batch]):
    """An iterator whose waits for the next batch show in the recording."""

    def __init__(self, batches: Iterator[Batch]):
        self.batches = batches

    def __next__(self) -> Batch:
        with record_function("## wait for the loader ##"):
            return next(self.batches)


def summarise(
    events: Iterable[Any], *, num_steps: int, step_milliseconds: float, rows: float
) -> Profile:
    """Return where the recorded time went, by stage and by operator.

    Args:
        events: torch.profiler's FunctionEvents.
        num_steps: recorded steps.
        step_milliseconds: mean time of one, by the clock.
        rows: mean rows of one.
    """
    stages: dict[str, StageTime] = defaultdict(StageTime)
    calls: Counter[str] = Counter()
    host: Counter[str] = Counter()
    device: Counter[str] = Counter()
    to_milliseconds = 1e-3 / num_steps
    kernel_calls: Counter[str] = Counter()
    kernel_time: Counter[str] = Counter()
    flops = 0
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    stepping_threads = {event.thread for event in on_host if _is_range(event)}
    elsewhere = 0.0
    for event in on_host:
        own = event.self_cpu_time_total * to_milliseconds
        flops += event.flops or _onednn_flops(event)
        for kernel in event.kernels:
            kernel_calls[kernel.name] += 1
            kernel_time[kernel.name] += kernel.duration * to_milliseconds
        kernels = sum(kernel.duration for kernel in event.kernels) * to_milliseconds
        stage = stages[_stage_of(event)]
        stage.device += kernels
        if _is_range(event):
            stage.glue += own
            continue
        stage.operators += own
        calls[event.name] += 1
        host[event.name] += own
        device[event.name] += kernels
        if event.thread not in stepping_threads:
            elsewhere += own
    # With an accelerator, autograd works on a thread of its own while the stepping thread waits in
    # its backward range: that wait is not counted a second time.
    backward = stages[BACKWARD]
    backward.glue = max(0.0, backward.glue - elsewhere)
    # What lies outside every range and operator: the step loop itself and its log.
    stages[LOOP].glue += max(0.0, step_milliseconds - sum(s.host for s in stages.values()))
    by_cost = sorted(calls, key=lambda name: -max(host[name], device[name]))
    return Profile(
        num_steps=num_steps,
        step=step_milliseconds,
        rows=rows,
        matrix_flops=flops / num_steps,
        stages=dict(sorted(stages.items(), key=lambda item: -max(item[1].host, item[1].device))),
        operators=[
            (name, calls[name] / num_steps, host[name], device[name])
            for name in by_cost[:_NUM_OPERATORS]
        ],
        kernels=[
            (name, kernel_calls[name] / num_steps, milliseconds)
            for name, milliseconds in kernel_time.most_common(_NUM_OPERATORS)
        ],
    )


def _is_range(event: Any) -> bool:
    """Whether an event is a named stretch of the step, not an operator."""
    return event.name.startswith("## ") or bool(event.is_user_annotation)


def _onednn_flops(event: Any) -> int:
    """FLOPs of a product of recsys/model/linear.py, which torch's profiler does not count."""
    if event.name != "mkldnn::_linear_pointwise":
        return 0
    (rows, width), (out, _) = event.input_shapes[:2]
    return 2 * rows * width * out


def _stage_of(event: Any) -> str:
    """Stage of an operator: that of the innermost range around it."""
    on_tables = False
    while event is not None:
        name = event.name
        if name.startswith(_COMMUNICATION):
            return "communication"
        on_tables = on_tables or any(part in name.lower() for part in _TABLE_OPERATORS)
        for part, stage in _STAGES:
            if part in name:
                return TABLE_BACKWARD if on_tables and stage == BACKWARD else stage
        event = event.cpu_parent
    return OTHER


def profile_page(measured: Profile, *, rank: int, world_size: int, trace: str) -> str:
    """Return the page: a table of stages and one of operators, as Markdown."""
    on_device = any(stage.device for stage in measured.stages.values())
    rate = 1e3 * measured.rows / measured.step
    lines = [
        f"# {measured.num_steps} training steps, rank {rank} of {world_size}",
        "",
        f"{measured.step:.2f} ms a step, {measured.rows:,.0f} rows a step over all ranks, "
        f"{rate:,.0f} rows/s while recorded (recording slows a step down). Matrix products: "
        f"{measured.matrix_flops / 1e9:,.2f} GFLOP a step, "
        f"{measured.matrix_flops / measured.step / 1e6:,.1f} GFLOP/s over the whole step.",
        "",
        "Milliseconds a step. Operators: inside torch's operators. Between: Python, and waiting for "
        "other threads, ranks or the accelerator. Threads work at the same time: shares may add up to "
        "more than 100 %.",
        "",
        "| stage | share of the step | operators | between |" + " device |" * on_device,
        "|---|---:|---:|---:|" + "---:|" * on_device,
    ]
    for name, stage in measured.stages.items():
        share = 100 * stage.host / measured.step
        device = f" {stage.device:.2f} |" * on_device
        lines.append(
            f"| {name} | {share:.1f} % | {stage.operators:.2f} | {stage.glue:.2f} |{device}"
        )
    lines += [
        "",
        "Most expensive operators, without what they call:",
        "",
        "| operator | calls a step | ms a step |" + " device ms |" * on_device,
        "|---|---:|---:|" + "---:|" * on_device,
    ]
    for name, calls, host, device_ms in measured.operators:
        device = f" {device_ms:.2f} |" * on_device
        lines.append(f"| {_short(name)} | {calls:,.1f} | {host:.2f} |{device}")
    if measured.kernels:
        lines += ["", "Kernels:", "", "| kernel | calls a step | ms a step |", "|---|---:|---:|"]
        lines += [
            f"| {_short(name)} | {calls:,.1f} | {milliseconds:.2f} |"
            for name, calls, milliseconds in measured.kernels
        ]
    lines += ["", f"Every operator on its time line: {trace}, in https://ui.perfetto.dev.", ""]
    return "\n".join(lines)


def _short(name: str) -> str:
    name = name.replace("|", "/")
    return name if len(name) <= 90 else name[:87] + "..."


def profiled(pipeline: Pipeline, *, config: ProfileConfig, folder: Path, env: Env) -> Pipeline:
    """Return the pipeline, recorded where the configuration asks for it."""
    if not config.enabled:
        return pipeline
    return ProfiledPipeline(pipeline, config=config, folder=folder, env=env)
