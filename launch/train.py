"""Train a ranker on prepared data and embedded features.

In: W/prepared/, W/features/. Out: W/runs/<run.name>/ with config.yaml, plan.json, metrics.jsonl
and checkpoints/; metrics also go to the trackers (tracker=), in tensorboard/ unless others are named.

    torchrun --standalone --nproc-per-node 8 launch/train.py data=demo workspace=W run.name=mine
    python launch/train.py data=demo workspace=W run.name=today init=mine
    torchrun --max-restarts=3 --nnodes=1:4 --nproc-per-node 8 --rdzv-backend=c10d --rdzv-id=mine \
        --rdzv-endpoint=HOST:29400 launch/train.py data=demo workspace=W run.name=mine
    python launch/train.py data=demo workspace=W run.name=smoke experiment=smoke

SIGTERM and SIGINT: all ranks finish the step, save and end with code 143 or 130. The same command
goes on from the newest whole checkpoint, on any number of ranks.
"""

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.model.build import batch_features
from recsys.overrides import override
from recsys.report.plan import print_plan
from recsys.run.assembly import plan_and_shard
from recsys.run.config import RunConfig
from recsys.run.training import build_loaders, open_log, open_run, restore_run, train_run
from recsys.runtime.env import start, stop
from recsys.sharding.plan import write_plan
from recsys.tracking.config import TrackingConfig

KEYS = (WorkspaceConfig, RunConfig, TrackingConfig)


def job(cfg: DictConfig) -> None:
    """Train one run: configuration, data, model, loaders, state, steps."""
    # 1. Configuration, all of it checked before anything is built.
    place, config, tracking = read_job(cfg, KEYS)

    # 2. This process among its ranks, the data, and the folder of the run.
    run = config.run
    env = start(run.device, threads=run.threads, deterministic=run.deterministic)
    opened = open_run(place.folder, config, env)
    config = opened.config
    folder, manifest, vectors = opened.folder, opened.manifest, opened.vectors

    # 3. The model: built for one process, planned for this world, sharded.
    with stage("model") as built:
        ranker, plan, sharded = plan_and_shard(
            config=config, manifest=manifest, vectors=vectors, env=env
        )
        num_dense = sum(p.numel() for p in ranker.dense.parameters())
        built.done(f"{config.model.name}, {num_dense:,} dense weights, {len(vectors)} modalities")
    if env.is_first:
        write_plan(folder / "plan.json", plan)
        print_plan(plan)

    # 4. The data: ids and labels only, every rank its own lanes.
    loaders = build_loaders(opened, batch_features(ranker))
    splits, num_replayed = opened.course.splits, opened.course.num_replayed
    num_rows = sum(manifest.splits[split].num_rows for split in splits)
    replayed = f" and {num_replayed:,} earlier ones (train.replay)" if num_replayed else ""
    order = " by time" * opened.course.in_time_order
    say(
        f"data: {num_rows:,} training rows of {', '.join(splits)}{order}{replayed}, "
        f"{loaders[0].steps_per_epoch:,} steps an epoch of {config.train.global_batch_size:,} rows "
        f"on {env.world_size} rank(s), {env.device.type}"
    )

    # 5. The state. Order of initialisation: (1) own checkpoint, (2) run of init=, (3) scratch.
    state = restore_run(opened, sharded, plan)

    # 6. Train, logging, validating and saving on the way.
    log = open_log(opened, tracking, sharded=sharded, loader=loaders[0], state=state)
    exit_code = train_run(opened, sharded=sharded, loaders=loaders, state=state, log=log)
    for sentence in sharded.id_maps.summary():
        say(sentence)
    if exit_code:
        stop(exit_code)

    # 7. The result, and the next command.
    best = "none" if state.best_metric is None else f"{state.best_metric:.4f}"
    say(f"best validation {config.train.metric} {best} at step {state.best_step:,} -> {folder}")
    name = override("run.name", run.name)
    if "test" in splits:
        say(f"next: {next_command('export', place.workspace, name)}")
    else:
        say(f"next: {next_command('evaluate', place.workspace, name, 'split=test')}")
    stop()


@hydra_job("train", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
