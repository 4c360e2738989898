"""Score a split with a trained run: metrics with intervals, segments, feature importance, a report.

In: W/prepared/, W/features/, W/runs/<run.name>/checkpoints/. Out: W/runs/<run.name>/eval/<split>/
with metrics.json, predictions.parquet (a folder with a part of each rank) and report.html; the metrics
also go to the run's trackers (tracker=). On the drawn world its truth is read too (by nobody else): the
best possible AUC, and the sensitivities that users were drawn with.

    torchrun --standalone --nproc-per-node 8 launch/evaluate.py data=demo workspace=W run.name=mine
    python launch/evaluate.py data=demo workspace=W run.name=smoke split=next
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from omegaconf import DictConfig

from recsys.config import plain, read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.data import EvaluationData
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.two_stages import bundle_of
from recsys.job import hydra_job, next_command, open_command, run_job, say, stage
from recsys.overrides import override
from recsys.report.evaluation_folder import write_evaluation
from recsys.report.evaluation_tables import print_metrics
from recsys.run.fingerprint import scored_from
from recsys.run.lineage import trained_splits
from recsys.run.scoring import open_run, read_run, score_split, split_loader, track_evaluation
from recsys.runtime.collectives import share, sharing_errors
from recsys.runtime.env import start, stop
from recsys.runtime.hosts import once_a_host
from recsys.runtime.ranks import all_ranks
from recsys.schema import read_manifest
from recsys.sharding.plan import PlanConfig
from recsys.sharding.tables import TablePlacementConfig
from recsys.tracking.config import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class ScoredRunConfig:
    """The run that is scored; its own config.yaml says what the model is."""

    name: str = "default"
    """Folder below workspace/runs/."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` (GPU where present), `cpu` or `cuda`."""
    threads: int | None = None
    """Threads of every rank; null: OMP_NUM_THREADS where torchrun did not set it, else the cores this
    host may use over its ranks."""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """The run to score, and the sharding of its tables meanwhile."""

    run: ScoredRunConfig = field(default_factory=ScoredRunConfig)
    """The run."""
    plan: PlanConfig | None = None
    """Keys that differ from the run's own plan; null: none. It is planned anew either way."""
    tables: dict[str, TablePlacementConfig] = field(default_factory=dict)
    """Keys that differ from those of the run's own tables, by table name."""


KEYS = (WorkspaceConfig, ScoringConfig, EvaluateConfig, TrackingConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a split."""
    # 1. Settings, and the run as it was trained.
    place, asked, config, tracking = read_job(cfg, KEYS)
    workspace, name = place.folder, asked.run.name
    env = start(asked.run.device, threads=asked.run.threads)
    manifest = once_a_host(lambda: read_manifest(workspace))
    config = replace(config, split=manifest.split_named(config.split))
    run_config = once_a_host(lambda: read_run(workspace, name, manifest))
    if config.split in trained_splits(workspace / "runs" / name):
        say(f"note: run {name} was trained on split {config.split}: its metrics are of known rows")

    # 2. The model with the weights of the best validation, on any number of ranks.
    plan, tables = plain(cfg.get("plan")), plain(cfg.get("tables"))
    run = open_run(workspace, run_config, manifest, env, plan=plan, tables=tables)

    # 3. Every row of the split once; candidates of some users; some rows with each input shuffled.
    loader = split_loader(run, config.split)
    scored = score_split(run, loader, config)

    # 4. Metrics by all ranks, and the folder of all their predictions: written beside and renamed.
    ranks = all_ranks()
    target = workspace / "runs" / name / "eval" / config.split
    with sharing_errors():
        data = EvaluationData(
            workspace=workspace, dataset=loader.dataset, tables=run.tables, ranks=ranks
        )
        bundle = share(lambda: bundle_of(workspace, name, run.checkpoint))
        with stage("metrics"):
            evaluation = evaluate(data, scored, config, bundle=bundle)
        if env.is_first:
            evaluation.result.made_from = scored_from(
                workspace, run.checkpoint, run.config.model.modalities, config
            )
        title = f"{manifest.name} / {name} / {config.split}"
        write_evaluation(target, title, evaluation, data, config)
        if env.is_first:
            track_evaluation(run, tracking, config.split, evaluation.result)
            print_metrics(evaluation.result, title=f"{name} on {manifest.name}/{config.split}")
            say(f"results: {target} (metrics.json, predictions.parquet, report.html)")
            say(f"next: {open_command(target / 'report.html')}")
            say(f"next: {next_command('compare', place.workspace, override('runs', [name]))}")
    stop()


@hydra_job("evaluate", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
