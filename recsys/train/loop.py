"""The training loop: one step loop, broken only where the model is evaluated.

Called by launch/train.py with everything built. The loop depends on no configuration, sharding or
files.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
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
    GPU or where ranks share out tables, else the second."""
    evaluate_every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between validations; 0: once at the end of each epoch."""
    save_every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints; 0: with every validation only."""
    exchange_ids_every_steps: Annotated[int, Field(ge=1)] = 50
    """Steps between two exchanges of the ids that ranks saw, for tables with a fixed capacity
    (tables.<table>.ids); until the first one, all their ids are unknown."""
    log_every_steps: Annotated[int, Field(ge=1)] = 20
    """Steps between lines of metrics.jsonl."""
    patience: Annotated[int, Field(ge=0)] = 3
    """Validations without improvement after which training stops; 0: never."""
    splits: list[str] | None = None
    """Splits to train on, or [all]. null: train; with `init`, on data that grew, every split that the run
    and those before it have not been trained on. Split valid chooses among the checkpoints of a run on
    train alone; any other run keeps its last one, and scores with `init` each split before training."""
    order: Literal["shuffled", "time"] | None = None
    """`shuffled`, or `time`: one pass in the order of the rows' times, split after split, whatever
    `epochs` says. null: time with `init` on later splits than train, where the data has times and
    nothing is replayed."""
    replay: Annotated[float, Field(ge=0)] = 0.0
    """Rows of earlier splits for each new row with `init`, drawn uniformly among those that the run and
    those before it were trained on, by run.seed: one shuffled pass over both, whatever `epochs` says.
    0: new rows alone."""
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
    loader_threads: Annotated[int, Field(ge=0)] | None = None
    """Threads that put batches together at the same time; 0: none beside the background thread; null: up
    to 8 where there is a GPU, else 0. Batches do not depend on it."""
    arrays_on_gpu_bytes: Annotated[int, Field(ge=0)] = 4_000_000_000
    """Most bytes of features of users and items and of histories that a GPU keeps a copy of. Training
    batches then travel as rows, and the GPU gathers their ids; of larger arrays, of lists in the log, and
    where tables have `ids`, loader threads do it. 0: always these."""
    compile: Literal["none", "fused", "graphs"] = "none"
    """Compilation of all but the lookups by torch.compile, for training alone: `fused` joins operators
    into fewer kernels; `graphs` replays them as CUDA graphs besides (NVIDIA GPU). It takes up to a
    minute at the start, and rounds differently. A CPU needs a C++ compiler."""


class Batches(Protocol):
    """Loader protocol: the methods that the loop calls."""

    steps_per_epoch: int

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Return this rank's batches of a pass, from `start_step` on."""
        ...


@dataclass(kw_only=True)
class Loop:
    """The step loop and everything that it calls."""

    sharded: ShardedRanker
    """Model, tables and their optimizers."""
    pipeline: Pipeline
    """Takes a step."""
    loader: Batches
    """Training batches of this rank."""
    learning_rate_factor: Callable[[int], float]
    """Factor on the base learning rates by 0-based step."""
    validate: Callable[[TrainState], float] | None
    """Returns the validation metric, the same value on every rank; raises Interrupted where a stop is
    due. None: nothing chooses among checkpoints, and the last one counts."""
    save: Callable[[TrainState, bool], None]
    """Saves the state; the flag says that it is the best so far."""
    stop_due: Callable[[], bool]
    """Asked after every step, by all ranks; the same answer on each."""
    state: TrainState
    """How far training came; changed in place."""
    log: RunLog
    """Takes every step's losses."""
    epochs: int
    """Most passes over the training split."""
    evaluate_every_steps: int
    """Steps between validations; 0: once at the end of each epoch."""
    save_every_steps: int
    """Steps between checkpoints; 0: with every validation only."""
    patience: int
    """Validations without improvement after which training stops; 0: never."""
    higher_is_better: bool
    """Of the validation metric."""
    plateau_factor: float
    """Factor on the learning rate at every validation without improvement."""
    part_starts: Sequence[int] = (0,)
    """Steps of a pass at which its parts begin."""
    score_part: Callable[[TrainState, int], float] | None = None
    """Returns the validation metric of a part, by its number, that is about to be trained on for the
    first time; as `validate` otherwise. None: no part is scored."""

    def run(self) -> None:
        """Train until `epochs` are done or the validation metric stalls.

        If a stop is due, the state is saved, and training ends in the middle.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        state = self.state
        self.sharded.model.train()
        if state.validation_due:
            state.finished = state.epoch >= self.epochs
            if not self._conclude():
                return
        while not state.finished:
            if not self._pass():
                return

    def _pass(self) -> bool:
        """Train to the end of the pass over the data, or of training; return False at a stop."""
        state = self.state
        ids = self.sharded.id_maps
        batches = ids.watched(
            self.loader.batches(state.epoch, state.step_in_epoch), is_first_pass=state.epoch == 0
        )
        while state.step_in_epoch < self.loader.steps_per_epoch:
            if not self._begin_part():
                return False
            if ids.is_due(state.step):
                self.log.note(self.sharded.exchange_ids())
            num_steps = self._steps_to_pause()
            stopping, factor = False, 0.0
            # The pipeline runs dry at the end of the slice: nothing is in flight when the model is
            # evaluated, and the loader goes on where the slice ended.
            part = itertools.islice(batches, num_steps)
            for steps_left in reversed(range(num_steps)):
                stopping, factor = self._step(part)
                if steps_left and (stopping or self._save_due()):
                    # Whether the losses so far are finite is known before anything is saved.
                    self.log.flush(state, factor)
                    self.save(state, False)
                    self.log.restart_clock()
                    if stopping:
                        return False
            self.log.flush(state, factor)
            self.pipeline.pause()

            epoch_done = state.step_in_epoch == self.loader.steps_per_epoch
            if epoch_done:
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
                state.finished = state.epoch >= self.epochs
            if self._validation_due(epoch_done):
                if not self._conclude():
                    return False
            elif self.validate is None and epoch_done:
                self._keep()
                if stopping and not state.finished:
                    return False
            elif self._save_due() or stopping:
                self.save(state, False)
                if stopping:
                    return False
            self.log.restart_clock()
            if epoch_done or state.finished:
                break
        return True

    def _validation_due(self, epoch_done: bool) -> bool:
        due = self.state.finished or _due(self.state.step, self.evaluate_every_steps, epoch_done)
        return due and self.validate is not None

    def _steps_to_pause(self) -> int:
        """Return the steps to the next validation, exchange of ids, part or end of the pass."""
        state = self.state
        ends = [*self.part_starts, self.loader.steps_per_epoch]
        num_steps = min(end for end in ends if end > state.step_in_epoch) - state.step_in_epoch
        if (to_exchange := self.sharded.id_maps.steps_to_exchange(state.step)) is not None:
            num_steps = min(num_steps, to_exchange)
        if self.evaluate_every_steps and self.validate is not None:
            to_evaluation = self.evaluate_every_steps - state.step % self.evaluate_every_steps
            num_steps = min(num_steps, to_evaluation)
        return num_steps

    def _begin_part(self) -> bool:
        """Score the part that begins here, where that is due; return False where a stop cut it off."""
        state = self.state
        if self.score_part is None or state.step_in_epoch not in self.part_starts or state.epoch:
            return True
        part = self.part_starts.index(state.step_in_epoch)
        if part < state.scored_parts:
            return True
        try:
            state.best_metric = self.score_part(state, part)
        except Interrupted:
            self.save(state, False)
            return False
        state.scored_parts = part + 1
        if state.step:
            self._keep()
        self.log.restart_clock()
        return True

    def _keep(self) -> None:
        """Save the state as the best one: there is no validation that would choose another."""
        self.state.best_step = self.state.step
        self.save(self.state, True)

    def _step(self, part: Iterator[Batch]) -> tuple[bool, float]:
        """Take one step; return whether a stop is due, and the factor on the learning rates."""
        state = self.state
        factor = self.learning_rate_factor(state.step) * state.plateau_scale
        self.sharded.set_learning_rate_factor(factor)
        scores = self.pipeline.progress(part)
        self.sharded.id_maps.stepped()
        state.step += 1
        state.step_in_epoch += 1
        state.examples += scores.global_rows
        self.log.step(state, scores, factor)
        return self.stop_due(), factor

    def _save_due(self) -> bool:
        return bool(self.save_every_steps) and self.state.step % self.save_every_steps == 0

    def _conclude(self) -> bool:
        """Validate and save; return False where a stop cut it off (then it is saved as due)."""
        state = self.state
        assert self.validate is not None, "called where a validation is due"
        finished, state.validation_due = state.finished, True
        try:
            metric = self.validate(state)
        except Interrupted:
            state.finished = False
            self.save(state, False)
            return False
        state.validation_due = False
        improved = _record(state, metric, self.higher_is_better)
        if not improved:
            state.plateau_scale *= self.plateau_factor
        stalled = bool(self.patience) and state.evaluations_without_improvement >= self.patience
        state.finished = finished or stalled
        self.save(state, improved)
        return True


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
