"""The training loop: one step loop, broken only where the model is evaluated or saved.

Called by launch/train.py with everything built. Nothing here knows of configuration, sharding or
files.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from recsys.batch import Batch
from recsys.distributed.pipeline import Pipeline
from recsys.distributed.shard import ShardedRanker
from recsys.train.log import RunLog
from recsys.train.state import TrainState


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and rhythm of training."""

    epochs: int = 10
    """Most passes over the training split."""
    global_batch_size: int = 1024
    """Rows of one step over all ranks."""
    pipeline: str = "sparse_dist"
    """`sparse_dist` (TorchRec's overlapped pipeline) or `plain`."""
    evaluate_every_steps: int = 0
    """Steps between validations; 0: once at the end of each epoch."""
    save_every_steps: int = 0
    """Steps between checkpoints; 0: with every validation only."""
    log_every_steps: int = 20
    """Steps between lines of metrics.jsonl."""
    patience: int = 3
    """Validations without improvement after which training stops; 0: never."""
    metric: str = "auc"
    """Validation metric that names the best checkpoint: `auc` (higher) or `log_loss` (lower)."""
    keep_last: int = 2
    """Newest checkpoints kept beside the best one."""
    num_lanes: int = 8
    """Ranges the training split is cut into; the batches are the same for any number of ranks
    that divides it."""
    num_prefetch: int = 2
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

    Args:
        learning_rate_factor: factor on the base learning rates by 0-based step.
        validate: returns the validation metric, the same value on every rank.
        save: writes a checkpoint of the state; the flag says that it is the best so far.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    sharded.model.train()
    while not state.finished:
        batches = loader.batches(state.epoch, state.step_in_epoch)
        while state.step_in_epoch < loader.steps_per_epoch:
            num_steps = loader.steps_per_epoch - state.step_in_epoch
            for period in (evaluate_every_steps, save_every_steps):
                if period:
                    num_steps = min(num_steps, period - state.step % period)
            # The pipeline runs dry at the end of the slice: nothing is in flight when the model is
            # evaluated or saved, and the loader goes on where the slice ended.
            part = itertools.islice(batches, num_steps)
            for _ in range(num_steps):
                factor = learning_rate_factor(state.step) * state.plateau_scale
                sharded.set_learning_rate_factor(factor)
                scores = pipeline.progress(part)
                state.step += 1
                state.step_in_epoch += 1
                state.examples += scores.global_rows
                log.step(state, scores, factor)
            log.flush(state, factor)
            pipeline.pause()

            epoch_done = state.step_in_epoch == loader.steps_per_epoch
            if epoch_done:
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
                state.finished = state.epoch >= epochs
            if _due(state.step, evaluate_every_steps, epoch_done) or state.finished:
                metric = validate(state)
                improved = _record(state, metric, higher_is_better)
                if not improved:
                    state.plateau_scale *= plateau_factor
                if patience and state.evaluations_without_improvement >= patience:
                    state.finished = True
                save(state, improved)
            elif _due(state.step, save_every_steps, False):
                save(state, False)
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
