"""Training of one run: its folder and data opened, its state restored, its steps taken.

In: a workspace, a run's configuration, and the sharded ranker. Out: the files of W/runs/<run.name>/.
Called by launch/train.py.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from embedding.features.opening import open_features
from embedding.features.store import FeatureTable
from recsys.checkpoint.integrity import (
    check_whole,
    latest_checkpoint,
    newest_whole,
    restore_best,
)
from recsys.checkpoint.read import load_checkpoint
from recsys.checkpoint.saver import Saver
from recsys.checkpoint.state import TrainState
from recsys.checkpoint.warm_start import RowMatch, take_weights
from recsys.data.dataset import Dataset
from recsys.data.loader import Loader
from recsys.data.passes import LoaderSequence, PooledSplits
from recsys.job import say
from recsys.metrics.registry import METRICS
from recsys.run.assembly import build_plannable, build_training_loader, loader_of
from recsys.run.config import RunConfig, check_classes
from recsys.run.folder import open_run_folder, tracked_run, with_exchange
from recsys.run.lineage import Course, Parent, course_of
from recsys.run.matching import match_tables
from recsys.runtime.collectives import gather, share, sharing_errors
from recsys.runtime.env import Env, agents_of_start, keep_large_blocks
from recsys.runtime.hosts import once_a_host
from recsys.runtime.signals import FAILED, StopSignals
from recsys.schema import Manifest, read_manifest
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.coded import codebooks_of
from recsys.sharding.compilation import compile_scorer
from recsys.sharding.optimizers import learning_rate_factor
from recsys.sharding.pipeline import Pipeline, build_pipeline
from recsys.sharding.plan import Plan
from recsys.sharding.ssd import check_trainable
from recsys.tracking.config import TrackingConfig
from recsys.tracking.opening import open_trackers
from recsys.train.gradients import Gradients
from recsys.train.log import CPU_SECONDS, RunLog
from recsys.train.loop import Loop
from recsys.train.profile import profiled
from recsys.train.validate import Validation


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A run with its data, before it has a model."""

    workspace: Path
    config: RunConfig
    """With the precisions in which its ranks exchange vectors."""
    manifest: Manifest
    vectors: dict[str, FeatureTable]
    """Feature tables of its modalities, by name."""
    course: Course
    """Splits that it is trained on, and their order."""
    env: Env
    cpu_seconds_before: float
    """Processor time of this process before the run was opened: imports and configuration."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.workspace / "runs" / self.config.run.name


def open_run(workspace: Path, config: RunConfig, env: Env) -> OpenedRun:
    """Return a run with its data; its folder is there from now on.

    Raises:
        UserError: the data lacks a class or a feature table, the configuration does not fit the data,
            or the folder holds another run.
    """
    cpu_seconds_before = time.process_time()
    manifest = once_a_host(lambda: read_manifest(workspace))
    course = share(lambda: course_of(workspace, config, manifest))
    splits = [*course.splits, *dict.fromkeys(one.split for one in course.replayed)]
    check_classes(manifest, config.train.metric, splits, validates=course.validates)
    modalities = [name for name in config.model.modalities if manifest.has_modality(name)]
    vectors = open_features(workspace, modalities, manifest, say)
    agents = agents_of_start()
    config = share(lambda: with_exchange(workspace, config, env, agents))
    with sharing_errors():
        if env.is_first:
            # What does not fit the data is refused before a folder says how this run was started.
            _, tables = build_plannable(
                config=config,
                manifest=manifest,
                modality_dims={name: table.dim for name, table in vectors.items()},
                modality_bits={name: books.bits for name, books in codebooks_of(vectors).items()},
                device_type=env.device.type,
            )
            check_trainable(tables)
            open_run_folder(workspace, config, manifest, agents, course)
    return OpenedRun(
        workspace=workspace,
        config=config,
        manifest=manifest,
        vectors=vectors,
        course=course,
        env=env,
        cpu_seconds_before=cpu_seconds_before,
    )


def build_loaders(opened: OpenedRun, features: list[str]) -> tuple[LoaderSequence, list[Loader]]:
    """Return the loader of training, and those that score.

    The second are of split valid where it chooses among checkpoints; with `init`, of the new rows of
    every part of a pass, which are scored before it is trained on; else none.

    Args:
        features: keys that a batch carries.
    """
    course = opened.course
    shared: Any = {"config": opened.config, "env": opened.env}
    data: Any = {"manifest": opened.manifest, "features": features}
    train_loader = build_training_loader(
        workspace=opened.workspace,
        parts=course.parts,
        in_time_order=course.in_time_order,
        replayed=course.replayed,
        **data,
        **shared,
    )
    scored = [["valid"]] if course.validates else course.scored_parts
    prepared = opened.workspace / "prepared"
    datasets = [
        Dataset(prepared, split=splits[0], **data)
        if len(splits) == 1
        else PooledSplits(prepared, splits=splits, **data)
        for splits in scored
    ]
    return train_loader, [loader_of(dataset, shuffle=False, **shared) for dataset in datasets]


def restore_run(opened: OpenedRun, sharded: ShardedRanker, plan: Plan) -> TrainState:
    """Return the state of training with its weights loaded; dropout is seeded.

    Order of initialisation: (1) the newest whole checkpoint of the run itself, (2) the run that `init`
    names, where its tables and weights match, (3) scratch.
    """
    folder, config, course, env = opened.folder, opened.config, opened.course, opened.env
    torch.manual_seed(1_000_003 * config.run.seed + env.rank)
    newest = newest_whole(folder / "checkpoints", env)
    if newest is None:
        if course.parent is not None:
            _start_from(course.parent, opened, sharded, plan)
        return TrainState()
    state = load_checkpoint(newest, sharded=sharded, env=env)
    restore_best(folder / "checkpoints", state)
    say(f"resumed from {newest.name}: epoch {state.epoch}, step {state.step:,}")
    # Asked again: the number of epochs and the patience may have been raised since.
    stalled = bool(course.patience) and state.evaluations_without_improvement >= course.patience
    done = stalled or state.epoch >= course.epochs
    state.finished = done and not state.validation_due
    if state.finished:
        say(f"run {config.run.name!r} is finished (step {state.step:,}); nothing to train")
    return state


def _start_from(parent: Parent, opened: OpenedRun, sharded: ShardedRanker, plan: Plan) -> None:
    """Take weights and optimizer state of the parent where they match; say what was not taken."""
    check_whole(parent.checkpoint, opened.env)
    matches = share(lambda: match_tables(opened.workspace, opened.manifest, parent))
    tables = {table.table: table for table in plan.tables if not table.frozen}
    left_out = take_weights(
        parent.checkpoint,
        sharded=sharded,
        tables=tables,
        matches=matches,
        is_first_rank=opened.env.is_first,
    )
    for sentence in [*left_out, *_other_encoders(parent, opened)]:
        say(f"init: {sentence}")
    taken = {
        n: m.num_matched for n, m in matches.items() if isinstance(m, RowMatch) and n in tables
    }
    rows = ", ".join(f"{name} {taken[name]:,} of {tables[name].rows:,}" for name in sorted(taken))
    say(
        f"init: goes on from run {parent.folder.name}, {parent.checkpoint.name}; rows matched: {rows}"
    )


def _other_encoders(parent: Parent, opened: OpenedRun) -> list[str]:
    """Return a sentence for every modality whose vectors another encoder made than the parent's."""
    return [
        f"vectors {name} are by another encoder ({table.manifest.revision}) than the run's "
        f"({parent.encoders[name]}), and what its weights say of them may be wrong"
        for name, table in opened.vectors.items()
        if parent.encoders.get(name, table.manifest.revision) != table.manifest.revision
    ]


def open_log(
    opened: OpenedRun,
    tracking: TrackingConfig,
    *,
    sharded: ShardedRanker,
    loader: LoaderSequence,
    state: TrainState,
) -> RunLog:
    """Return the log of a run, with its trackers open.

    Raises:
        UserError: a tracker in which the run is new cannot be opened.
    """
    folder, config = opened.folder, opened.config
    return RunLog(
        folder,
        env=opened.env,
        state=state,
        gradients=Gradients(sharded, max_norm=config.optim.max_grad_norm),
        total_steps=opened.course.epochs * loader.steps_per_epoch,
        log_every_steps=config.train.log_every_steps,
        open_trackers=lambda: open_trackers(
            tracked_run(folder, last_step=state.step), tracking, new_must_open=True
        ),
    )


def train_run(
    opened: OpenedRun,
    *,
    sharded: ShardedRanker,
    loaders: tuple[LoaderSequence, list[Loader]],
    state: TrainState,
    log: RunLog,
) -> int:
    """Train a run to its end, or to a signal; return the exit code that a signal asks for, else 0.

    Args:
        loaders: of training and of scoring, as `build_loaders` returns them.
        state: where training goes on; says in the end where it stopped.
        log: of the run; closed.
    """
    config, env = opened.config, opened.env
    train_loader, scored_loaders = loaders
    signals = StopSignals(env, within_seconds=config.train.stop_within_seconds)
    validations = _validations(opened, scored_loaders, sharded=sharded, signals=signals, log=log)
    saver = _saver(opened, sharded=sharded, signals=signals, log=log)
    if config.train.compile != "none":
        compile_scorer(sharded.scorer, config.train.compile)
    plain = build_pipeline(config.train.pipeline, sharded, env)
    pipeline = profiled(plain, config=config.profile, folder=opened.folder / "profile", env=env)
    loop = _loop(
        config,
        opened.course,
        sharded=sharded,
        pipeline=pipeline,
        loader=train_loader,
        state=state,
        log=log,
        validations=validations,
        save=saver.save,
        stop_due=signals.due,
    )
    keep_large_blocks()
    first_step = state.step
    with log.noting_failure():
        with signals, saver:
            loop.run()
            if saver.skipped:
                # The signal may have come after the last question to the other ranks.
                signals.settle()
                state.finished = False
        if state.step > first_step:
            seconds = _cpu_seconds(opened)
            with sharing_errors():
                log.write(state.step, {CPU_SECONDS: seconds})
    is_stopped = bool(signals.exit_code) and not state.finished
    log.close("stopped" if is_stopped else "finished")
    pipeline.close()
    if is_stopped:
        say(f"stopped by {signals.name} at step {state.step:,}, {_saved(saver)}")
        return signals.exit_code
    return 0


def _validations(
    opened: OpenedRun,
    loaders: list[Loader],
    *,
    sharded: ShardedRanker,
    signals: StopSignals,
    log: RunLog,
) -> list[Validation]:
    """Return the validations of what the loaders of scoring read."""
    course = opened.course
    parts = [""] if course.validates else [", ".join(part) for part in course.scored_parts]
    return [
        Validation(
            sharded=sharded,
            loader=loader,
            log=log,
            env=opened.env,
            signals=signals,
            metric=opened.config.train.metric,
            of=f"{part} before training on it" if part else "",
        )
        for part, loader in zip(parts, loaders, strict=False)
    ]


def _cpu_seconds(opened: OpenedRun) -> float:
    """Return the processor time of all ranks and their threads since the run was opened."""
    return sum(gather(lambda: time.process_time() - opened.cpu_seconds_before))


def _saved(saver: Saver) -> str:
    """Return whether the last step was saved, and where a run that was stopped goes on if it was not."""
    if not saver.skipped:
        return "saved; the same command goes on"
    newest = latest_checkpoint(saver.folder)
    start = newest.name if newest else "the beginning"
    why = f"{saver.skipped}, train.stop_within_seconds"
    return f"not saved ({why}); the same command goes on from {start}"


def _loop(
    config: RunConfig,
    course: Course,
    *,
    sharded: ShardedRanker,
    pipeline: Pipeline,
    loader: LoaderSequence,
    state: TrainState,
    log: RunLog,
    validations: list[Validation],
    save: Callable[[TrainState, bool], None],
    stop_due: Callable[[], bool],
) -> Loop:
    """Return the step loop of a run, with the length and rhythm that its configuration says."""
    settings, optim = config.train, config.optim
    if course.parent is not None and course.parent.table_rows is not None:
        optim = dataclasses.replace(optim, warmup_steps=0)
    total_steps = course.epochs * loader.steps_per_epoch
    scores_parts = bool(validations) and not course.validates
    return Loop(
        sharded=sharded,
        pipeline=pipeline,
        loader=loader,
        learning_rate_factor=lambda step: learning_rate_factor(optim, step, total_steps),
        validate=validations[0].run if course.validates else None,
        save=save,
        stop_due=stop_due,
        state=state,
        log=log,
        epochs=course.epochs,
        evaluate_every_steps=settings.evaluate_every_steps,
        save_every_steps=settings.save_every_steps,
        patience=course.patience,
        higher_is_better=METRICS[settings.metric].direction > 0,
        plateau_factor=optim.plateau_factor,
        part_starts=loader.starts,
        score_part=(lambda state, part: validations[part].run(state)) if scores_parts else None,
    )


def _saver(
    opened: OpenedRun, *, sharded: ShardedRanker, signals: StopSignals, log: RunLog
) -> Saver:
    """Return what saves a run's checkpoints; a failed save stops the run on every rank."""
    settings = opened.config.train
    return Saver(
        opened.folder / "checkpoints",
        sharded=sharded,
        env=opened.env,
        keep_last=settings.keep_last,
        in_background=settings.save_in_background,
        on_failure=lambda: signals.ask(FAILED),
        report=log.write,
        seconds_left=signals.seconds_left,
    )
