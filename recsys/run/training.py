"""Training of one run: its folder and data opened, its state restored, its steps taken.

In: a workspace, a run's configuration, and the sharded ranker. Out: the files of W/runs/<run.name>/.
Called by launch/train.py.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from embedding.features.store import FeatureTable, open_features
from recsys.checkpoint.integrity import newest_whole, restore_best
from recsys.checkpoint.read import load_checkpoint
from recsys.checkpoint.saver import Saver
from recsys.checkpoint.state import TrainState
from recsys.data.loader import Loader
from recsys.job import say
from recsys.metrics.registry import METRICS
from recsys.run.assembly import build_plannable
from recsys.run.config import RunConfig, check_classes
from recsys.run.folder import open_run_folder, tracked_run
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import Env, agents_of_start
from recsys.runtime.signals import FAILED, StopSignals
from recsys.schema import Manifest, read_manifest
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.compilation import compile_dense
from recsys.sharding.optimizers import learning_rate_factor
from recsys.sharding.pipeline import Pipeline, build_pipeline
from recsys.tracking.config import TrackingConfig
from recsys.tracking.opening import open_trackers
from recsys.train.gradients import Gradients
from recsys.train.log import RunLog
from recsys.train.loop import Loop
from recsys.train.profile import profiled
from recsys.train.validate import Validation


def open_run(
    workspace: Path, config: RunConfig, env: Env
) -> tuple[Path, Manifest, dict[str, FeatureTable]]:
    """Return the folder of a run, the manifest of its data, and the vectors of its modalities.

    Raises:
        UserError: the data lacks a class or a feature table, the configuration does not fit the data,
            or the folder holds another run.
    """
    manifest = read_manifest(workspace)
    check_classes(manifest, config.train.metric)
    modalities = [name for name in config.model.modalities if manifest.has_modality(name)]
    vectors = open_features(workspace, modalities, manifest, say)
    agents = agents_of_start()
    with sharing_errors():
        if env.is_first:
            # What does not fit the data is refused before a folder says how this run was started.
            build_plannable(
                config=config,
                manifest=manifest,
                modality_dims={name: table.dim for name, table in vectors.items()},
                device_type=env.device.type,
            )
            open_run_folder(workspace, config, manifest, agents)
    return workspace / "runs" / config.run.name, manifest, vectors


def restore_run(folder: Path, sharded: ShardedRanker, config: RunConfig, env: Env) -> TrainState:
    """Return the state of the newest whole checkpoint, loaded, or a new one with seeded dropout."""
    torch.manual_seed(1_000_003 * config.run.seed + env.rank)
    newest = newest_whole(folder / "checkpoints", env)
    if newest is None:
        return TrainState()
    state = load_checkpoint(newest, sharded=sharded, env=env)
    restore_best(folder / "checkpoints", state)
    say(f"resumed from {newest.name}: epoch {state.epoch}, step {state.step:,}")
    # Asked again: the number of epochs and the patience may have been raised since.
    patience = config.train.patience
    stalled = bool(patience) and state.evaluations_without_improvement >= patience
    done = stalled or state.epoch >= config.train.epochs
    state.finished = done and not state.validation_due
    if state.finished:
        say(f"run {config.run.name!r} is finished (step {state.step:,}); nothing to train")
    return state


def open_log(
    folder: Path,
    config: RunConfig,
    env: Env,
    tracking: TrackingConfig,
    *,
    sharded: ShardedRanker,
    loader: Loader,
    state: TrainState,
) -> RunLog:
    """Return the log of a run, with its trackers open.

    Raises:
        UserError: a tracker in which the run is new cannot be opened.
    """
    return RunLog(
        folder,
        env=env,
        state=state,
        gradients=Gradients(sharded, max_norm=config.optim.max_grad_norm),
        total_steps=config.train.epochs * loader.steps_per_epoch,
        log_every_steps=config.train.log_every_steps,
        open_trackers=lambda: open_trackers(
            tracked_run(folder, last_step=state.step), tracking, new_must_open=True
        ),
    )


def train_run(
    folder: Path,
    config: RunConfig,
    env: Env,
    *,
    sharded: ShardedRanker,
    loaders: tuple[Loader, Loader],
    state: TrainState,
    log: RunLog,
) -> int:
    """Train a run to its end, or to a signal; return the exit code that a signal asks for, else 0.

    Args:
        folder: of the run; receives metrics, checkpoints and profile.
        loaders: of training and of validation.
        state: where training goes on; says in the end where it stopped.
        log: of the run; closed.
    """
    train_loader, valid_loader = loaders
    settings = config.train
    signals = StopSignals(env, within_seconds=settings.stop_within_seconds)
    validation = Validation(
        sharded=sharded,
        loader=valid_loader,
        log=log,
        env=env,
        signals=signals,
        metric=settings.metric,
    )
    saver = _saver(folder, config, env, sharded=sharded, signals=signals, log=log)
    if settings.compile != "none":
        compile_dense(sharded.dense, settings.compile)
    plain = build_pipeline(settings.pipeline, sharded, env)
    pipeline = profiled(plain, config=config.profile, folder=folder / "profile", env=env)
    loop = _loop(
        config,
        sharded=sharded,
        pipeline=pipeline,
        loader=train_loader,
        state=state,
        log=log,
        validate=validation.run,
        save=saver.save,
        stop_due=signals.due,
    )
    with log.noting_failure(), signals, saver:
        loop.run()
    is_stopped = bool(signals.exit_code) and not state.finished
    log.close("stopped" if is_stopped else "finished")
    pipeline.close()
    if is_stopped:
        say(f"stopped by {signals.name} at step {state.step:,}, saved; the same command goes on")
        return signals.exit_code
    return 0


def _loop(
    config: RunConfig,
    *,
    sharded: ShardedRanker,
    pipeline: Pipeline,
    loader: Loader,
    state: TrainState,
    log: RunLog,
    validate: Callable[[TrainState], float],
    save: Callable[[TrainState, bool], None],
    stop_due: Callable[[], bool],
) -> Loop:
    """Return the step loop of a run, with the length and rhythm that its configuration says."""
    settings, optim = config.train, config.optim
    total_steps = settings.epochs * loader.steps_per_epoch
    return Loop(
        sharded=sharded,
        pipeline=pipeline,
        loader=loader,
        learning_rate_factor=lambda step: learning_rate_factor(optim, step, total_steps),
        validate=validate,
        save=save,
        stop_due=stop_due,
        state=state,
        log=log,
        epochs=settings.epochs,
        evaluate_every_steps=settings.evaluate_every_steps,
        save_every_steps=settings.save_every_steps,
        patience=settings.patience,
        higher_is_better=METRICS[settings.metric].direction > 0,
        plateau_factor=optim.plateau_factor,
    )


def _saver(
    folder: Path,
    config: RunConfig,
    env: Env,
    *,
    sharded: ShardedRanker,
    signals: StopSignals,
    log: RunLog,
) -> Saver:
    """Return what saves a run's checkpoints; a failed save stops the run on every rank."""
    return Saver(
        folder / "checkpoints",
        sharded=sharded,
        env=env,
        keep_last=config.train.keep_last,
        in_background=config.train.save_in_background,
        on_failure=lambda: signals.ask(FAILED),
        report=log.write,
    )
