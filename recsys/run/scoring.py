"""A trained run, opened to score a split: its model with the weights of the best validation.

In: the run's folder, prepared data and vectors. Out: the scores of the split on every rank, of
candidates, and with each input shuffled. Called by launch/evaluate.py; any number of ranks may score what
another number trained.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedding.features.opening import open_features
from embedding.features.store import FeatureTable
from recsys.checkpoint.integrity import best_checkpoint, check_whole
from recsys.checkpoint.read import load_checkpoint
from recsys.config import from_config
from recsys.data.loader import Loader
from recsys.evaluation.candidates import CandidateDataset, Candidates, draw_candidates
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import ScoredSplit
from recsys.evaluation.importance import score_shuffled
from recsys.evaluation.predict import Predictions, predict
from recsys.evaluation.result import EvaluationResult
from recsys.job import say, stage
from recsys.model.build import batch_features
from recsys.model.ranker import Ranker
from recsys.run.assembly import build_loader, loader_of_own, plan_and_shard
from recsys.run.config import RunConfig
from recsys.run.folder import check_run_data, read_run_folder, tracked_run
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import Env
from recsys.runtime.ranks import all_ranks
from recsys.schema import Manifest
from recsys.sharding.apply import ShardedRanker
from recsys.sharding.optimizers import without_penalties
from recsys.sharding.plan import PlanConfig
from recsys.sharding.tables import TableConfig
from recsys.tracking.config import TrackingConfig
from recsys.tracking.opening import open_trackers


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run's model on this rank, with trained weights."""

    workspace: Path
    manifest: Manifest
    config: RunConfig
    checkpoint: Path
    """Folder of the weights."""
    tables: Mapping[str, FeatureTable]
    """Item vectors by modality."""
    ranker: Ranker
    sharded: ShardedRanker
    env: Env


def read_run(workspace: Path, name: str, manifest: Manifest) -> RunConfig:
    """Return the configuration of a run that was trained on the data and vectors that are here.

    Raises:
        UserError: no such run, or one of other data.
    """
    folder = workspace / "runs" / name
    config = read_run_folder(folder)
    check_run_data(folder, config, manifest)
    return config


def open_run(
    workspace: Path,
    config: RunConfig,
    manifest: Manifest,
    env: Env,
    *,
    plan: Any = None,
    tables: Mapping[str, Any] | None = None,
) -> TrainedRun:
    """Return the run's model, planned for this world, with the weights of the best validation.

    Args:
        plan: keys that differ from the run's own plan; None: none. It is planned anew either way.
        tables: keys that differ from the run's own tables, by table name.
    """
    config = _only_read(config, env.device.type, plan=plan, placements=tables or {})
    modalities = [name for name in config.model.modalities if manifest.has_modality(name)]
    vectors = open_features(workspace, modalities, manifest, say)
    ranker, _, sharded = plan_and_shard(
        config=config, manifest=manifest, vectors=vectors, env=env, trains=False
    )
    checkpoint = best_checkpoint(workspace / "runs" / config.run.name / "checkpoints")
    check_whole(checkpoint, env)
    state = load_checkpoint(
        checkpoint,
        sharded=sharded,
        env=env,
        with_optimizer=False,
        is_grown=bool(manifest.chain),
    )
    say(
        f"model: {config.model.name}, {checkpoint.name} (epoch {state.epoch}), "
        f"{env.world_size} rank(s)"
    )
    return TrainedRun(
        workspace=workspace,
        manifest=manifest,
        config=config,
        checkpoint=checkpoint,
        tables=vectors,
        ranker=ranker,
        sharded=sharded,
        env=env,
    )


def _only_read(
    config: RunConfig, device_type: str, *, plan: Any, placements: Mapping[str, Any]
) -> RunConfig:
    """Return the configuration under which a run is read: planned anew, and without penalties."""
    # A saved plan belongs to the world that it was made for. Scores do not depend on the number of ranks
    # where vectors are sent as they are.
    exact: Any = {"forward_communication": "fp32", "backward_communication": "fp32"}
    own_plan = dataclasses.replace(config.plan, file="auto", **exact)
    if plan is not None:
        own_plan = from_config(PlanConfig, plan, "plan", base=own_plan)
    tables = {name: table.only_read(device_type) for name, table in config.tables.items()}
    for name, given in placements.items():
        own = tables.get(name, TableConfig())
        tables[name] = from_config(TableConfig, given, f"tables.{name}", base=own)
    optim = without_penalties(config.optim)
    return dataclasses.replace(config, plan=own_plan, tables=tables, optim=optim)


def score_split(run: TrainedRun, loader: Loader, config: EvaluateConfig) -> ScoredSplit:
    """Score every row of the split, candidates, and some rows with each input shuffled.

    All rows stay on the rank that scored them; candidates are on the rank of their user.
    """
    with stage(f"score {config.split}") as scoring:
        predictions = predict(run.sharded, loader.batches(epoch=0), run.env, progress="score")
        scoring.done(f"{loader.dataset.num_rows:,} rows")
    candidates, of_candidates = _score_candidates(run, loader, config)
    with stage("shuffle inputs") as shuffling:
        first_rows, shuffled = score_shuffled(
            run.ranker,
            run.sharded,
            loader,
            run.env,
            num_rows=config.importance_rows,
            seed=config.seed,
        )
        shuffling.done(f"{len(shuffled)} inputs")
    return ScoredSplit(
        predictions=predictions,
        modality_names=run.ranker.modality_names,
        candidates=candidates,
        of_candidates=of_candidates,
        first_rows=first_rows,
        shuffled=shuffled,
        id_maps=run.sharded.id_maps.rows_by_table(),
    )


def _score_candidates(
    run: TrainedRun, loader: Loader, config: EvaluateConfig
) -> tuple[Candidates | None, Predictions | None]:
    """Draw candidates, and score them, each rank those of its users, in their order."""
    ranks = all_ranks()
    with sharing_errors():
        candidates = draw_candidates(
            loader.dataset, config=config.ranking, seed=config.seed, ranks=ranks
        )
    if candidates is None:
        return None, None
    with stage("score candidates") as scoring:
        pairs = CandidateDataset(loader.dataset, candidates)
        pair_loader = loader_of_own(pairs, config=run.config, env=run.env)
        scored = predict(run.sharded, pair_loader.batches(epoch=0), run.env, progress="candidates")
        num_pairs, num_users = ranks.total(
            np.array([pairs.num_rows, candidates.templates.num_rows])
        )
        kind = "all" if candidates.is_full else "drawn"
        scoring.done(f"{num_pairs:,} pairs, {kind} items for {num_users:,} users")
    return candidates, scored.take(np.argsort(scored.row_id))


def split_loader(run: TrainedRun, split: str) -> Loader:
    """Return the loader of a split's rows, each once and in order, with the model's features."""
    return build_loader(
        workspace=run.workspace,
        manifest=run.manifest,
        config=run.config,
        env=run.env,
        split=split,
        features=batch_features(run.ranker),
        shuffle=False,
    )


def track_evaluation(
    run: TrainedRun, tracking: TrackingConfig, split: str, result: EvaluationResult
) -> None:
    """Hand the metrics over all rows of a split to the run's trackers, at the step of its weights."""
    folder = run.workspace / "runs" / run.config.run.name
    trackers = open_trackers(tracked_run(folder), tracking, new_must_open=False)
    metrics = {f"{split}/{name}": value for name, value in result.all.flat().items()}
    trackers.log(int(run.checkpoint.name.removeprefix("step-")), metrics)
    trackers.close("finished")
