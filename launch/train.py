"""Train a ranker on prepared data and embedded features.

In: W/prepared/, W/features/. Out: W/runs/<run.name>/ with config.yaml, plan.json, metrics.jsonl,
tensorboard/ and checkpoints/.

    torchrun --standalone --nproc-per-node 8 launch/train.py data=demo workspace=W run.name=mine
    torchrun --max-restarts=3 --nnodes=1:4 --nproc-per-node 8 --rdzv-backend=c10d --rdzv-id=mine \
        --rdzv-endpoint=HOST:29400 launch/train.py data=demo workspace=W run.name=mine
    python launch/train.py data=demo workspace=W run.name=smoke experiment=smoke

SIGTERM and SIGINT: all ranks finish the step, save and end with code 143 or 130. The same command
goes on from the newest whole checkpoint, on any number of ranks.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from embedding.features.store import open_features
from recsys.checkpoint.integrity import newest_whole, restore_best
from recsys.checkpoint.read import load_checkpoint
from recsys.checkpoint.saver import Saver
from recsys.checkpoint.state import TrainState
from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.model.build import batch_features
from recsys.overrides import override
from recsys.report.plan import print_plan
from recsys.run.assembly import build_loader, build_plannable, plan_and_shard
from recsys.run.config import RunConfig, check_classes
from recsys.run.folder import open_run_folder
from recsys.runtime.env import (
    Env,
    agents_of_start,
    first_rank_work,
    start,
    stop,
)
from recsys.runtime.signals import FAILED, StopSignals
from recsys.schema import read_manifest
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.optimizers import learning_rate_factor
from recsys.sharding.pipeline import build_pipeline
from recsys.sharding.plan import write_plan
from recsys.train.gradients import Gradients
from recsys.train.log import RunLog
from recsys.train.loop import Loop
from recsys.train.profile import profiled
from recsys.train.validate import Validation

KEYS = (WorkspaceConfig, RunConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a run."""
    # 1. Configuration, all of it checked before anything is built.
    place, config = read_job(cfg, KEYS)
    workspace = place.folder

    # 2. Who we are, and which data there is.
    env = start(
        config.run.device,
        threads=config.run.threads,
        deterministic=config.run.deterministic,
    )
    manifest = read_manifest(workspace)
    check_classes(manifest, config.train.metric)
    vectors = open_features(
        workspace,
        [name for name in config.model.modalities if manifest.has_modality(name)],
        manifest,
        say,
    )
    folder = workspace / "runs" / config.run.name
    agents = agents_of_start()
    with first_rank_work(env) as is_first:
        if is_first:
            # What does not fit the data is refused before a folder says how this run was started.
            build_plannable(
                config=config,
                manifest=manifest,
                modality_dims={name: table.dim for name, table in vectors.items()},
                device_type=env.device.type,
            )
            open_run_folder(workspace, config, manifest, agents)

    # 3. The model: built for one process, planned for this world, sharded.
    with stage("model") as model_stage:
        ranker, plan, sharded = plan_and_shard(
            config=config, manifest=manifest, vectors=vectors, env=env
        )
        num_dense = sum(p.numel() for p in ranker.dense.parameters())
        model_stage.done(
            f"{config.model.name}, {num_dense:,} dense weights, {len(vectors)} modalities"
        )
    if env.is_first:
        write_plan(folder / "plan.json", plan)
        print_plan(plan)

    # 4. The data: ids and labels only, every rank its own lanes.
    train_loader, valid_loader = (
        build_loader(
            workspace=workspace,
            manifest=manifest,
            config=config,
            env=env,
            split=split,
            features=batch_features(ranker),
            shuffle=split == "train",
        )
        for split in ("train", "valid")
    )
    total_steps = config.train.epochs * train_loader.steps_per_epoch
    say(
        f"data: {manifest.splits['train'].num_rows:,} training rows, "
        f"{train_loader.steps_per_epoch:,} steps an epoch of {config.train.global_batch_size:,} "
        f"rows on {env.world_size} rank(s), {env.device.type}"
    )

    # 5. Where the run stands. Order of initialisation: (1) own checkpoint, (2) scratch.
    state = restore(folder, sharded, config, env)
    if state.finished:
        say(f"run {config.run.name!r} is finished (step {state.step:,}); nothing to train")

    # 6. Train, validating and saving on the way.
    log = RunLog(
        folder,
        env=env,
        state=state,
        gradients=Gradients(sharded, max_norm=config.optim.max_grad_norm),
        total_steps=total_steps,
        log_every_steps=config.train.log_every_steps,
    )
    signals = StopSignals(env, within_seconds=config.train.stop_within_seconds)
    validation = Validation(
        sharded=sharded,
        loader=valid_loader,
        log=log,
        env=env,
        signals=signals,
        metric=config.train.metric,
    )
    saver = Saver(
        folder / "checkpoints",
        sharded=sharded,
        env=env,
        keep_last=config.train.keep_last,
        in_background=config.train.save_in_background,
        on_failure=lambda: signals.ask(FAILED),
        report=log.write,
    )
    pipeline = profiled(
        build_pipeline(config.train.pipeline, sharded, env),
        config=config.profile,
        folder=folder / "profile",
        env=env,
    )
    with log.noting_divergence(), signals, saver:
        Loop(
            sharded=sharded,
            pipeline=pipeline,
            loader=train_loader,
            learning_rate_factor=lambda step: learning_rate_factor(config.optim, step, total_steps),
            validate=validation.run,
            save=saver.save,
            stop_due=signals.due,
            state=state,
            log=log,
            epochs=config.train.epochs,
            evaluate_every_steps=config.train.evaluate_every_steps,
            save_every_steps=config.train.save_every_steps,
            patience=config.train.patience,
            higher_is_better=config.train.metric != "log_loss",
            plateau_factor=config.optim.plateau_factor,
        ).run()
    log.close()
    pipeline.close()
    if signals.exit_code and not state.finished:
        say(f"stopped by {signals.name} at step {state.step:,}, saved; the same command goes on")
        stop(signals.exit_code)

    # 7. What came out, and what to do next.
    best = "none" if state.best_metric is None else f"{state.best_metric:.4f}"
    say(f"best validation {config.train.metric} {best} at step {state.best_step:,} -> {folder}")
    name = override("run.name", config.run.name)
    say(f"next: {next_command('evaluate', place.workspace, name, 'split=test')}")
    stop()


def restore(folder: Path, sharded: ShardedRanker, config: RunConfig, env: Env) -> TrainState:
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
    return state


@hydra_job("train", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
