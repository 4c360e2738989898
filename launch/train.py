"""Train a ranker on prepared data and embedded features.

In: W/prepared/, W/features/. Out: W/runs/<run.name>/ with config.yaml, plan.json, metrics.jsonl,
tensorboard/ and checkpoints/.

    torchrun --standalone --nproc-per-node 8 launch/train.py data=demo workspace=W run.name=mine
    python launch/train.py data=demo workspace=W run.name=smoke experiment=smoke
"""

from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from embedding.store import open_features
from recsys.config import plain
from recsys.distributed.env import Env, first_rank_work, start, stop
from recsys.distributed.pipeline import build_pipeline
from recsys.distributed.shard import ShardedRanker
from recsys.job import run_job, say, stage
from recsys.model.build import batch_features
from recsys.report.plan import print_plan
from recsys.schema import read_manifest, write_json
from recsys.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from recsys.train.log import RunLog
from recsys.train.loop import train
from recsys.train.optim import learning_rate_factor
from recsys.train.profile import profiled
from recsys.train.run import (
    SECTIONS,
    RunConfig,
    build_loader,
    open_run_folder,
    plan_and_shard,
    read_run_config,
)
from recsys.train.state import TrainState
from recsys.train.validate import Validation


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a run."""
    # 1. Configuration, all of it checked before anything is built.
    config = read_run_config({name: plain(cfg[name]) for name in SECTIONS})
    workspace = Path(cfg.workspace).resolve()

    # 2. Who we are, and which data there is.
    env = start(config.run.device)
    manifest = read_manifest(workspace)
    folder = workspace / "runs" / config.run.name
    with first_rank_work(env) as is_first:
        if is_first:
            open_run_folder(workspace, config, manifest)

    # 3. The model: built for one process, planned for this world, sharded.
    vectors = open_features(
        workspace,
        [name for name in config.model.modalities if manifest.has_modality(name)],
        manifest.items_checksum,
        manifest.num_item_rows,
    )
    with stage("model") as model_stage:
        ranker, plan, sharded = plan_and_shard(
            config=config, manifest=manifest, vectors=vectors, env=env
        )
        num_dense = sum(p.numel() for p in ranker.dense.parameters())
        model_stage.done(
            f"{config.model.name}, {num_dense:,} dense weights, {len(vectors)} modalities"
        )
    if env.is_first:
        write_json(folder / "plan.json", plan)
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
        total_steps=total_steps,
        log_every_steps=config.train.log_every_steps,
    )
    validation = Validation(
        sharded=sharded, loader=valid_loader, log=log, env=env, metric=config.train.metric
    )

    def save(now: TrainState, best: bool) -> None:
        save_checkpoint(
            folder / "checkpoints",
            sharded=sharded,
            state=now,
            env=env,
            keep_last=config.train.keep_last,
            best=best,
        )

    pipeline = profiled(
        build_pipeline(config.train.pipeline, sharded, env),
        config=config.profile,
        folder=folder / "profile",
        env=env,
    )
    train(
        sharded=sharded,
        pipeline=pipeline,
        loader=train_loader,
        learning_rate_factor=lambda step: learning_rate_factor(config.optim, step, total_steps),
        validate=validation.run,
        save=save,
        state=state,
        log=log,
        epochs=config.train.epochs,
        evaluate_every_steps=config.train.evaluate_every_steps,
        save_every_steps=config.train.save_every_steps,
        patience=config.train.patience,
        higher_is_better=config.train.metric != "log_loss",
        plateau_factor=config.optim.plateau_factor,
    )
    log.close()
    pipeline.close()

    # 7. What came out, and what to do next.
    best = "none" if state.best_metric is None else f"{state.best_metric:.4f}"
    say(f"best validation {config.train.metric} {best} at step {state.best_step:,} -> {folder}")
    say(
        f"next: launch/evaluate.py data={cfg.data.name} workspace={cfg.workspace} "
        f"run.name={config.run.name} split=test"
    )
    stop()


def restore(folder: Path, sharded: ShardedRanker, config: RunConfig, env: Env) -> TrainState:
    """Return the state of the newest checkpoint, loaded, or a new one with seeded dropout."""
    torch.manual_seed(1_000_003 * config.run.seed + env.rank)
    newest: Any = latest_checkpoint(folder / "checkpoints")
    if newest is None:
        return TrainState()
    state = load_checkpoint(newest, sharded=sharded, env=env)
    say(f"resumed from {newest.name}: epoch {state.epoch}, step {state.step:,}")
    # Asked again: the number of epochs and the patience may have been raised since.
    patience = config.train.patience
    stalled = bool(patience) and state.evaluations_without_improvement >= patience
    state.finished = stalled or state.epoch >= config.train.epochs
    return state


@hydra.main(version_base=None, config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
