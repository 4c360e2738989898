"""Training log: metrics.jsonl, trackers, progress bar.

Losses are collected on the device and looked at only when a line is due, so that logging does not
make every step wait for the accelerator.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from recsys.checkpoint.state import TrainState
from recsys.errors import NonFiniteError
from recsys.files import json_text, reading, write_json, write_text, writing
from recsys.metrics.predictions import NanScoresError
from recsys.model.ranker import Scores
from recsys.progress import progress_bar
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import Env
from recsys.tracking.tracker import Status, Trackers
from recsys.train.gradients import Gradients, check_finite, total_norm

DIVERGED = "diverged.json"
"""Why the last training of a run was given up; a new attempt removes it."""

CPU_SECONDS = "train/cpu_seconds"
"""Key of a training's last line in metrics.jsonl: processor time of all ranks and their threads, from
the opened run to the end; imports and configuration are not in it. A resumed run has one for each part
that took steps; parts that were killed, or whose last step was not saved, are not in it."""


class RunLog:
    """Writes a run's metrics on rank 0; every rank calls it (losses are averaged)."""

    def __init__(
        self,
        folder: Path,
        *,
        env: Env,
        state: TrainState,
        gradients: Gradients,
        total_steps: int,
        log_every_steps: int,
        open_trackers: Callable[[], Trackers],
    ):
        """Open the files below `folder`; lines after `state.step` (a resumed run) are dropped.

        Args:
            open_trackers: called on rank 0.
        """
        self.env = env
        self.gradients = gradients
        self.log_every_steps = log_every_steps
        self.losses: list[torch.Tensor] = []
        self.rows_since = 0
        self.last_loss = math.nan
        self.noted: dict[str, float] = {}
        self.started = time.perf_counter()
        self.file = folder / "metrics.jsonl"
        self.trackers: Trackers | None = None
        with sharing_errors():
            if env.is_first:
                _forget_after(self.file, state.step)
                (folder / DIVERGED).unlink(missing_ok=True)
                self.trackers = open_trackers()
        self.bar = progress_bar(
            desc="train", unit="step", total=total_steps, initial=state.step, is_shown=env.is_first
        )

    def step(self, state: TrainState, scores: Scores, learning_rate_factor: float) -> None:
        """Note one step; write a line every `log_every_steps` steps."""
        self.losses.append(scores.loss)
        self.rows_since += scores.global_rows
        self.bar.update(1)
        if state.step % self.log_every_steps == 0:
            self.flush(state, learning_rate_factor)

    def note(self, metrics: dict[str, float]) -> None:
        """Add metrics to the next line of losses."""
        self.noted |= metrics

    def flush(self, state: TrainState, learning_rate_factor: float) -> None:
        """Average the pending losses over ranks, check and write them; all ranks call this.

        Raises:
            NonFiniteError: a loss or a dense gradient is not finite; on every rank, naming the
                first such step and the parameters.
            DiskFullError: there is no space for the line; on every rank.
        """
        if not self.losses:
            return
        losses = torch.stack(self.losses)
        if self.env.world_size > 1:
            dist.all_reduce(losses)
        values = (losses / self.env.world_size).tolist()
        with sharing_errors():
            self._write_losses(state, values, learning_rate_factor)
        self.losses.clear()
        self.restart_clock()

    def _write_losses(
        self, state: TrainState, values: list[float], learning_rate_factor: float
    ) -> None:
        """Check the mean losses of the last steps and write one line of them."""
        norms_SP = self.gradients.take()
        check_finite(values, norms_SP, self.gradients.names, state.step - len(values) + 1)
        norms_S = [total_norm(norms_P) for norms_P in norms_SP]
        seconds = time.perf_counter() - self.started
        self.last_loss = sum(values) / len(values)
        metrics = {
            "train/loss": self.last_loss,
            "train/gradient_norm": sum(norms_S) / len(norms_S),
            "train/gradient_norm_max": max(norms_S),
            "train/learning_rate_factor": learning_rate_factor,
            "train/examples_per_second": self.rows_since / max(seconds, 1e-9),
        }
        if self.env.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.env.device)
            metrics["memory/peak_gib"] = peak / 2**30
        self.bar.set_postfix_str(
            f"loss {self.last_loss:.4f}, {metrics['train/examples_per_second']:,.0f} rows/s",
            refresh=False,
        )
        self.write(state.step, metrics | self.noted)
        self.noted = {}

    def restart_clock(self) -> None:
        """Leave what came since the last line (a validation, a save) out of the rows a second."""
        self.rows_since = 0
        self.started = time.perf_counter()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and hand the values to the trackers."""
        if self.trackers is None:
            return
        with writing(self.file):
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write(json_text({"step": step, **metrics}) + "\n")
        self.trackers.log(step, metrics)

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Tell the trackers of a failure; write down for whoever started it that training diverged."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, NonFiniteError | NanScoresError) and self.env.is_first:
                write_json(self.file.with_name(DIVERGED), {"reason": str(error)})
            self.close("failed")
            raise

    def close(self, status: Status) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        if self.trackers is not None:
            self.trackers.close(status)


def _forget_after(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`: a resumed run writes them again, from 0 on all of them."""
    if not file.is_file():
        return
    lines = []
    with reading(file, "delete it, and the run goes on without its earlier lines"):
        for line in file.read_text(encoding="utf-8").splitlines():
            # A killed process may leave half a line at the end.
            if line.endswith("}") and 0 < step >= json.loads(line)["step"]:
                lines.append(line + "\n")
    write_text(file, "".join(lines))
