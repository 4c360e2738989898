"""Score a split with a trained run and report how good it is, for whom, why, and how sure that is.

In: W/prepared/, W/features/, W/runs/<run.name>/checkpoints/. Out: W/runs/<run.name>/eval/<split>/
with metrics.json, predictions.parquet and report.html. On the drawn world its truth is read too (by
nobody else): the best possible AUC, and what users were drawn to care for.

With compare=[a,b] nothing is scored: the predictions of two evaluated runs are compared over the same
resampled users. Out: a table, and W/runs/<b>/eval/<split>/against-<a>.json.

    torchrun --standalone --nproc-per-node 8 launch/evaluate.py data=demo workspace=W run.name=mine
    python launch/evaluate.py data=demo workspace=W run.name=smoke split=valid
    python launch/evaluate.py data=demo workspace=W compare=[ids_only,umair_fps]
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from embedding.features.store import open_features
from recsys.checkpoint.integrity import best_checkpoint, check_whole
from recsys.checkpoint.read import load_checkpoint
from recsys.config import from_config, plain, read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.evaluation.candidates import CandidateDataset, draw_candidates
from recsys.evaluation.evaluate import EvaluateConfig, check_evaluation, compare_files
from recsys.evaluation.importance import score_shuffled
from recsys.evaluation.predict import predict
from recsys.files import write_json
from recsys.job import hydra_job, next_command, open_command, run_job, say, stage
from recsys.model.build import batch_features
from recsys.overrides import override
from recsys.report.evaluation_folder import Evaluation
from recsys.report.evaluation_tables import print_comparison, print_metrics
from recsys.run.assembly import build_loader, loader_of, plan_and_shard
from recsys.run.fingerprint import scored_from
from recsys.run.folder import check_run_data, read_run_folder
from recsys.runtime.env import first_rank_work, rank_from_environment, start, stop
from recsys.schema import read_manifest
from recsys.sharding.optimizers import without_penalties
from recsys.sharding.plan import PlanConfig, check_plan


@dataclass(frozen=True, kw_only=True)
class ScoredRunConfig:
    """The run that is scored; its own config.yaml says what the model is."""

    name: str = "default"
    """Folder below workspace/runs/."""
    device: str = "auto"
    """`auto` (GPU where present), `cpu` or `cuda`."""
    threads: int | None = None
    """Threads of every rank; null: OMP_NUM_THREADS where torchrun did not set it, else the cores this
    host may use over its ranks."""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Which run is scored, and how its tables lie meanwhile."""

    run: ScoredRunConfig = field(default_factory=ScoredRunConfig)
    """The run."""
    plan: PlanConfig | None = None
    """Keys that differ from the run's own plan; null: none. It is planned anew either way."""


KEYS = (WorkspaceConfig, ScoringConfig, EvaluateConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a split."""
    # 1. Settings; two runs that were scored already are compared and nothing else.
    place, asked, config = read_job(cfg, KEYS)
    workspace = place.folder
    manifest = read_manifest(workspace)
    check_evaluation(config, manifest.splits)
    if asked.plan is not None:
        check_plan(asked.plan)
    if config.compare:
        if rank_from_environment() == 0:
            for name in config.compare:
                folder = workspace / "runs" / name
                check_run_data(folder, read_run_folder(folder), manifest)
            compare_runs(workspace, config)
        return

    # 2. The run as it was trained, and the world we score it in (any number of ranks).
    folder = workspace / "runs" / asked.run.name
    run = read_run_folder(folder)
    check_run_data(folder, run, manifest)
    env = start(asked.run.device, threads=asked.run.threads)
    plan = run.plan.anywhere(env.device.type)
    if asked.plan is not None:
        plan = from_config(PlanConfig, plain(cfg.plan), "plan", base=plan)
    run = dataclasses.replace(run, plan=plan, optim=without_penalties(run.optim))

    # 3. The model with the weights of the best validation.
    vectors = open_features(
        workspace,
        [name for name in run.model.modalities if manifest.has_modality(name)],
        manifest,
        say,
    )
    ranker, _, sharded = plan_and_shard(
        config=run, manifest=manifest, vectors=vectors, env=env, saves=False
    )
    path = best_checkpoint(folder / "checkpoints")
    check_whole(path, env)
    state = load_checkpoint(path, sharded=sharded, env=env, with_optimizer=False)
    say(f"model: {run.model.name}, {path.name} (epoch {state.epoch}), {env.world_size} rank(s)")

    # 4. Every row of the split exactly once.
    loader = build_loader(
        workspace=workspace,
        manifest=manifest,
        config=run,
        env=env,
        split=config.split,
        features=batch_features(ranker),
        shuffle=False,
    )
    with stage(f"score {config.split}") as scoring:
        predictions = predict(sharded, loader.batches(epoch=0), env, progress="score")
        scoring.done(f"{manifest.splits[config.split].num_rows:,} rows")

    # 5. Candidates of some users, for ranking and recommendations.
    candidates = draw_candidates(
        loader.dataset, config=config.ranking, rng=np.random.default_rng(config.seed)
    )
    scored = None
    if candidates is not None:
        with stage("score candidates") as scoring:
            pairs = CandidateDataset(loader.dataset, candidates)
            pair_loader = loader_of(pairs, config=run, env=env, shuffle=False)
            scored = predict(sharded, pair_loader.batches(epoch=0), env, progress="candidates")
            kind = "all" if candidates.is_full else "drawn"
            num_users = np.unique(candidates.user_row_N).size
            scoring.done(f"{pairs.num_rows:,} pairs, {kind} items for {num_users:,} users")

    # 6. Some rows again, once for each input shuffled.
    with stage("shuffle inputs") as shuffling:
        whole, shuffled = score_shuffled(
            ranker, sharded, loader, env, num_rows=config.importance_rows, seed=config.seed
        )
        shuffling.done(f"{len(shuffled)} inputs")

    # 7. Metrics, predictions and report, written aside and renamed.
    with first_rank_work(env) as is_first:
        if is_first:
            assert predictions is not None, "rank 0 gathers the predictions"
            evaluation = Evaluation(workspace, manifest, loader.dataset, config, vectors)
            evaluation.take(predictions, ranker.modality_names)
            evaluation.take_candidates(candidates, scored)
            evaluation.take_shuffled(whole, shuffled)
            evaluation.metrics["made_from"] = scored_from(
                workspace, path, run.model.modalities, config
            )
            target = folder / "eval" / config.split
            evaluation.write(target, title=f"{manifest.name} / {asked.run.name} / {config.split}")
            title = f"{asked.run.name} on {manifest.name}/{config.split}"
            print_metrics(evaluation.metrics, title=title)
            say(f"results: {target} (metrics.json, predictions.parquet, report.html)")
            say(f"next: {open_command(target / 'report.html')}")
            names = override("runs", [asked.run.name])
            say(f"next: {next_command('compare', place.workspace, names)}")
    stop()


def compare_runs(workspace: Path, config: EvaluateConfig) -> None:
    """Compare the predictions of two evaluated runs; print and write the differences."""
    folders = [workspace / "runs" / name / "eval" / config.split for name in config.compare]
    first, second = (folder / "predictions.parquet" for folder in folders)
    found = compare_files((first, second), config)
    print_comparison(found, config.compare, config.bootstrap.level)
    path = folders[1] / f"against-{config.compare[0]}.json"
    write_json(
        path,
        {
            "first": config.compare[0],
            "second": config.compare[1],
            "split": config.split,
            "level": config.bootstrap.level,
            "num_replicates": config.bootstrap.num_replicates,
            "metrics": {name: dataclasses.asdict(line) for name, line in found.items()},
        },
    )
    say(f"results: {path}")


@hydra_job("evaluate", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
