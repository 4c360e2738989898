"""The training loop: one step loop, broken only where the model is evaluated.

Called by launch/train.py with everything built. Nothing here knows of configuration, sharding or
files.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field

from recsys.batch import Batch
from recsys.checkpoint.state import TrainState
from recsys.runtime.signals import Interrupted
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.pipeline import Pipeline
from recsys.train.log import RunLog


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and rhythm of training."""

    epochs: Annotated[int, Field(ge=1)] = 10
    """Most passes over the training split."""
    global_batch_size: Annotated[int, Field(ge=1)] = 1024
    """Rows of one step over all ranks: the same rows whatever their number."""
    pipeline: Literal["auto", "sparse_dist", "plain"] = "auto"
    """`sparse_dist` (TorchRec's overlapped pipeline), `plain`, or `auto`: the first where there is a
    GPU or more than one rank, else the second."""
    evaluate_every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between validations; 0: once at the end of each epoch."""
    save_every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints; 0: with every validation only."""
    log_every_steps: Annotated[int, Field(ge=1)] = 20
    """Steps between lines of metrics.jsonl."""
    patience: Annotated[int, Field(ge=0)] = 3
    """Validations without improvement after which training stops; 0: never."""
    metric: Literal["auc", "log_loss"] = "auc"
    """Validation metric that names the best checkpoint: `auc` (higher) or `log_loss` (lower)."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept beside the best one."""
    save_in_background: bool = True
    """Copy the tables to host memory and go on training while they are written; false: wait, on CPU
    without the copy, which plans then leave no room for."""
    stop_within_seconds: Annotated[float, Field(gt=0)] = 25.0
    """Seconds from SIGTERM or SIGINT to the end of the process, saved or not; torchrun kills after
    its own --shutdown-timeout, 30."""
    num_lanes: Annotated[int, Field(ge=1)] = 8
    """Ranges the training split is cut into, of which every batch takes a slice. Ranks beyond this
    number read a range together."""
    num_prefetch: Annotated[int, Field(ge=0)] = 2
    """Batches prepared ahead by a background thread; 0: none."""


class Batches(Protocol):
    """What the loop asks of a loader."""

    steps_per_epoch: int

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Return this rank's batches of a pass, from `start_step` on."""
        ...


def train(
    *,
    sharded: ShardedRanker,
    pipeline: Pipeline,
    loader: Batches,
    learning_rate_factor: Callable[[int], float],
    validate: Callable[[TrainState], float],
    save: Callable[[TrainState, bool], None],
    stop_due: Callable[[], bool],
    state: TrainState,
    log: RunLog,
    epochs: int,
    evaluate_every_steps: int,
    save_every_steps: int,
    patience: int,
    higher_is_better: bool,
    plateau_factor: float,
) -> None:
    """Train until `epochs` are done or the validation metric stalls; `state` says how far it came.

    Where a stop is due the state is saved, and training ends in the middle.

    Args:
        learning_rate_factor: factor on the base learning rates by 0-based step.
        validate: returns the validation metric, the same value on every rank; Interrupted where a
            stop is due.
        save: saves the state; the flag says that it is the best so far.
        stop_due: asked after every step, by all ranks; the same answer on each.

    Raises:
        NonFiniteError: the loss is not finite.
    """

    def conclude() -> bool:
        """Validate and save; return False where a stop cut it off (then it is saved as due)."""
        finished, state.validation_due = state.finished, True
        try:
            metric = validate(state)
        except Interrupted:
            state.finished = False
            save(state, False)
            return False
        state.validation_due = False
        improved = _record(state, metric, higher_is_better)
        if not improved:
            state.plateau_scale *= plateau_factor
        stalled = bool(patience) and state.evaluations_without_improvement >= patience
        state.finished = finished or stalled
        save(state, improved)
        return True

    sharded.model.train()
    if state.validation_due:
        state.finished = state.epoch >= epochs
        if not conclude():
            return
    while not state.finished:
        batches = loader.batches(state.epoch, state.step_in_epoch)
        while state.step_in_epoch < loader.steps_per_epoch:
            num_steps = loader.steps_per_epoch - state.step_in_epoch
            if evaluate_every_steps:
                num_steps = min(num_steps, evaluate_every_steps - state.step % evaluate_every_steps)
            # The pipeline runs dry at the end of the slice: nothing is in flight when the model is
            # evaluated, and the loader goes on where the slice ended.
            part = itertools.islice(batches, num_steps)
            for steps_left in reversed(range(num_steps)):
                factor = learning_rate_factor(state.step) * state.plateau_scale
                sharded.set_learning_rate_factor(factor)
                scores = pipeline.progress(part)
                state.step += 1
                state.step_in_epoch += 1
                state.examples += scores.global_rows
                log.step(state, scores, factor)
                stopping = stop_due()
                save_due = save_every_steps and state.step % save_every_steps == 0
                if steps_left and (stopping or save_due):
                    # Whether the losses so far are finite is known before anything is saved.
                    log.flush(state, factor)
                    save(state, False)
                    log.restart_clock()
                    if stopping:
                        return
            log.flush(state, factor)
            pipeline.pause()

            epoch_done = state.step_in_epoch == loader.steps_per_epoch
            if epoch_done:
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
                state.finished = state.epoch >= epochs
            if state.finished or _due(state.step, evaluate_every_steps, epoch_done):
                if not conclude():
                    return
            elif save_every_steps and state.step % save_every_steps == 0 or stopping:
                save(state, False)
                if stopping:
                    return
            log.restart_clock()
            if epoch_done or state.finished:
                break


def _due(step: int, period: int, epoch_done: bool) -> bool:
    return step % period == 0 if period else epoch_done


def _record(state: TrainState, metric: float, higher_is_better: bool) -> bool:
    """Note a validation metric; return whether it is the best so far. NaN never is."""
    best = state.best_metric
    improved = not math.isnan(metric) and (
        best is None or (metric > best if higher_is_better else metric < best)
    )
    if improved:
        state.best_metric, state.best_step = metric, state.step
        state.evaluations_without_improvement = 0
    else:
        state.evaluations_without_improvement += 1
    return improved
