"""Score a split with a trained run and report how good it is.

In: W/prepared/, W/features/, W/runs/<run.name>/checkpoints/. Out: W/runs/<run.name>/eval/<split>/
with metrics.json, predictions.parquet and report.html. On the drawn world the true probabilities
are read too (by nobody else), for the best possible AUC.

    torchrun --standalone --nproc-per-node 8 launch/evaluate.py data=demo workspace=W run.name=mine
    python launch/evaluate.py data=demo workspace=W run.name=smoke split=valid
"""

import dataclasses
import shutil
from pathlib import Path

import hydra
from omegaconf import DictConfig

from embedding.store import open_features
from recsys.distributed.env import first_rank_work, start, stop
from recsys.job import run_job, say, stage
from recsys.metrics.oracle import oracle_metrics
from recsys.model.build import batch_features
from recsys.report.evaluation import evaluate_rows, print_metrics, write_predictions, write_report
from recsys.schema import read_manifest, write_json
from recsys.train.checkpoint import best_checkpoint, load_checkpoint
from recsys.train.predict import predict
from recsys.train.run import build_loader, plan_and_shard, read_run_folder


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a split."""
    # 1. The run as it was trained, and the world we score it in (any number of ranks).
    workspace = Path(cfg.workspace).resolve()
    folder = workspace / "runs" / cfg.run.name
    config = read_run_folder(folder)
    env = start(cfg.run.device)
    manifest = read_manifest(workspace)
    if cfg.split not in manifest.splits:
        raise ValueError(
            f"split={cfg.split!r}: the data set {manifest.name!r} has {', '.join(manifest.splits)}"
        )
    sharding = config.plan.sharding if cfg.plan is None else dict(cfg.plan.sharding)
    config = dataclasses.replace(config, plan=config.plan.anywhere(sharding, env.device.type))

    # 2. The model with the weights of the best validation.
    vectors = open_features(
        workspace,
        [name for name in config.model.modalities if manifest.has_modality(name)],
        manifest.items_checksum,
        manifest.num_item_rows,
    )
    ranker, _, sharded = plan_and_shard(config=config, manifest=manifest, vectors=vectors, env=env)
    path = best_checkpoint(folder / "checkpoints")
    state = load_checkpoint(path, sharded=sharded, env=env, with_optimizer=False)
    say(f"model: {config.model.name}, {path.name} (epoch {state.epoch}), {env.world_size} rank(s)")

    # 3. Every row of the split exactly once.
    loader = build_loader(
        workspace=workspace,
        manifest=manifest,
        config=config,
        env=env,
        split=cfg.split,
        features=batch_features(ranker),
        shuffle=False,
    )
    with stage(f"score {cfg.split}") as scoring:
        predictions = predict(sharded, loader.batches(epoch=0), env, progress="score")
        scoring.done(f"{manifest.splits[cfg.split].num_rows:,} rows")

    # 4. Metrics, predictions and report, written aside and renamed.
    with first_rank_work(env) as is_first:
        if is_first:
            assert predictions is not None, "rank 0 gathers the predictions"
            if len(predictions.row_id) != manifest.splits[cfg.split].num_rows:
                raise ValueError(
                    f"{len(predictions.row_id):,} rows were scored and the manifest counts "
                    f"{manifest.splits[cfg.split].num_rows:,} in {cfg.split!r}: the files under "
                    f"{workspace / 'prepared'} do not belong together; run launch/prepare.py again"
                )
            metrics = evaluate_rows(predictions, loader.dataset.train_count())
            truth = oracle_metrics(
                workspace / "truth" / "probabilities.parquet",
                row_ids_N=predictions.row_id,
                labels_N=predictions.label,
                probabilities_N=predictions.score,
            )
            if truth is not None:
                metrics["oracle"] = truth
            target = folder / "eval" / cfg.split
            beside = target.with_name(f".{target.name}")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            names = ranker.modality_names
            write_json(beside / "metrics.json", metrics)
            write_predictions(beside / "predictions.parquet", predictions, names, workspace)
            write_report(
                beside / "report.html",
                title=f"{manifest.name} / {cfg.run.name} / {cfg.split}",
                metrics=metrics,
                predictions=predictions,
                modality_names=names,
            )
            shutil.rmtree(target, ignore_errors=True)
            beside.rename(target)
            print_metrics(metrics, title=f"{cfg.run.name} on {manifest.name}/{cfg.split}")
            say(f"results: {target} (metrics.json, predictions.parquet, report.html)")
            say(
                f"next: launch/compare.py data={cfg.data.name} workspace={cfg.workspace} "
                f"runs=[{cfg.run.name},...]"
            )
    stop()


@hydra.main(version_base=None, config_path="../configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
