"""The comparison of models: its runs, made where they are missing, and the results side by side.

In: a suite of variants, or the names of evaluated runs. Out: a VariantResult per variant. Called by
launch/compare.py; the tables are recsys/report/comparison.py.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from recsys.errors import UserError
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.result import EvaluationResult
from recsys.evaluation.rows import ScoredRows
from recsys.files import read_json, write_json
from recsys.job import say, stage
from recsys.metrics.oracle import OracleMetrics
from recsys.metrics.registry import METRICS
from recsys.run.scoring import read_run
from recsys.runtime.threads import ProcessConfig
from recsys.schema import NOT_READ_BY_RANKERS, read_manifest
from recsys.study.differences import Difference, SeedScores, paired_difference, seed_scores
from recsys.study.runs import (
    Commands,
    StudyRun,
    read_metrics,
    read_predictions,
    study_run,
)
from recsys.study.suite import SuiteConfig, VariantConfig
from recsys.study.tuning import choose_settings
from recsys.tracking.config import TrackingConfig

NUM_REPLICATES = 400
OF_ALL_ROWS = ("auc", "log_loss", "gauc")
"""Metrics of the registry, over all rows, that a comparison shows."""
COLUMNS = {
    **{name: METRICS[name].label for name in OF_ALL_ROWS},
    "unseen_auc": "AUC, unseen items",
    "lift_recovered": "lift recovered",
}
"""Columns of the comparison: name in the CSV, and heading."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of a comparison: its runs, and the trainings that it needs."""

    suite: SuiteConfig | None = None
    """Variants to train and compare; presets in configs/suite/. Null: the runs below."""
    runs: list[str] = field(default_factory=list)
    """Names of evaluated runs, in the order of the table; the first is the reference."""
    variants: list[str] | None = None
    """Variants of the suite to compare; null: all. The reference always joins."""
    seeds: Annotated[int, Field(ge=1)] = 5
    """Trainings of every variant, run.seed 0, 1, 2, ..."""
    trials: Annotated[int, Field(ge=0)] = 0
    """Trials in which every variant chooses the settings of suite.space on validation; 0: none."""
    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads of every process of a job that is started; null: OMP_NUM_THREADS, else an equal share."""
    overrides: list[str] = field(default_factory=list)
    """Settings of launch/train.py for every variant, before the suite's and the variant's own."""
    embed: list[str] = field(default_factory=list)
    """Settings of launch/embed.py for variants with feature tables of their own."""
    parallel: Annotated[int, Field(ge=1)] = 1
    """Trainings (in a search: of different variants) side by side."""
    ranks: Annotated[int, Field(ge=1)] = 1
    """Processes of every training; together with `parallel` no more than the machine's cores."""
    overwrite: bool = False
    """Train runs anew whose settings or data have changed; false: stop and say which."""
    split: str = "test"
    """`train`, `valid`, `test`, an appended window such as window_0001, or `next`: the newest window."""


@dataclass(frozen=True, kw_only=True)
class VariantRuns:
    """One variant: a run per seed, and the settings that make it this variant."""

    runs: list[StudyRun]
    settings: list[str] = field(default_factory=list)
    """Overrides of launch/train.py, tuned settings included; empty for runs given by name."""


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One variant: metrics of every seed, and cost."""

    name: str
    validation: list[float]
    """Best validation metric of every seed."""
    metrics: dict[str, list[float]]
    """Value of every seed, by key of COLUMNS; nan where an evaluation has none."""
    difference: Difference | None
    """AUC minus the reference's; None for the reference."""
    num_parameters: int | None
    examples_per_second: float
    """Median over seeds."""
    settings: list[str] = field(default_factory=list)
    """Overrides that distinguish the variant, tuned settings included."""


def run_suite(
    config: CompareConfig,
    suite: SuiteConfig,
    workspace: Path,
    data: Sequence[str],
    tracking: TrackingConfig,
) -> dict[str, VariantRuns]:
    """Train and score the runs that are missing; return the variants with theirs.

    Args:
        data: arguments that name the recipe (recsys.job.same_data).
        tracking: of the runs, grouped by the name of the suite.
    """
    # 1. The variants asked for, and the processes that train them.
    wanted, folder = _wanted(config, suite), workspace / "comparisons" / suite.name
    commands = _commands(config, folder, data, tracking.arguments(workspace, suite.name))

    # 2. Feature tables of variants that have their own.
    places = {
        name: own_features(
            commands, workspace, folder, name, suite.all_variants[name], config.embed
        )
        for name in wanted
    }

    # 3. Settings: chosen per variant on validation, with equal numbers of trials.
    settings = {name: list(suite.all_variants[name].overrides) for name in wanted}
    if config.trials:
        settings = _tuned(config, suite, commands, folder, places, settings)

    # 4. Every variant from every seed.
    shared = [*config.overrides, *suite.overrides]
    variants = {
        name: VariantRuns(
            runs=[
                study_run(
                    commands.data,
                    places[name],
                    f"{suite.name}-{name}-seed{seed}",
                    [*shared, *settings[name], f"run.seed={seed}"],
                )
                for seed in range(config.seeds)
            ],
            settings=settings[name],
        )
        for name in wanted
    }
    # Seed by seed, so that an interrupted study has whole seeds.
    in_order = [variants[name].runs[seed] for seed in range(config.seeds) for name in wanted]
    commands.train(in_order, overwrite=config.overwrite)

    # 5. The split that answers, once nothing is chosen any more.
    commands.evaluate(in_order, config.split, EvaluateConfig(split=config.split))
    return variants


def _commands(
    config: CompareConfig, folder: Path, data: Sequence[str], tracking: Sequence[str]
) -> Commands:
    """Return what starts the jobs of a comparison, and ends them with this process."""
    commands = Commands(
        data=data,
        num_parallel=config.parallel,
        num_ranks=config.ranks,
        threads=config.run.threads,
        logs=folder / "logs",
        tracking=tracking,
    )
    commands.end_with_this_process()
    return commands


def _wanted(config: CompareConfig, suite: SuiteConfig) -> list[str]:
    """Return the names of the variants, the reference included."""
    variants = suite.all_variants
    wanted = list(variants if config.variants is None else config.variants)
    unknown = sorted(set(wanted) - set(variants))
    if unknown:
        raise UserError(
            f"variants={','.join(unknown)}: the suite {suite.name!r} has {', '.join(variants)}"
        )
    if suite.reference not in wanted:
        wanted.insert(0, suite.reference)
    if config.trials and not suite.space:
        raise UserError(
            f"trials={config.trials}: the suite {suite.name!r} has no settings to choose; add "
            f"suite.space, or trials=0"
        )
    return wanted


def _tuned(
    config: CompareConfig,
    suite: SuiteConfig,
    commands: Commands,
    folder: Path,
    places: Mapping[str, Path],
    settings: Mapping[str, list[str]],
) -> dict[str, list[str]]:
    """Return the settings of every variant with those that validate best.

    The trials of one variant follow each other; variants search side by side and share the cores of
    `commands`.
    """
    shared = [*config.overrides, *suite.overrides]

    def search(name: str) -> list[str]:
        say(f"choose settings of {name} on validation")
        return choose_settings(
            commands,
            folder / "search" / name,
            workspace=places[name],
            name=f"{suite.name}-{name}",
            overrides=[*shared, *settings[name]],
            space=suite.space,
            num_trials=config.trials,
            overwrite=config.overwrite,
        )

    with ThreadPoolExecutor(config.parallel) as pool:
        chosen = dict(zip(settings, pool.map(search, settings), strict=True))
    return {name: own + chosen[name] for name, own in settings.items()}


def own_features(
    commands: Commands,
    workspace: Path,
    folder: Path,
    name: str,
    variant: VariantConfig,
    embed: list[str],
) -> Path:
    """Return the workspace of a variant; one with `embed` gets a folder with its own features.

    Everything else in that folder points to the workspace.
    """
    if not variant.embed:
        return workspace
    own = folder / "workspaces" / name
    own.mkdir(parents=True, exist_ok=True)
    for part in ("prepared", "raw", "truth"):
        if (workspace / part).exists() and not (own / part).exists():
            (own / part).symlink_to(workspace / part)
    overrides = [*embed, *variant.embed]
    manifest = read_manifest(workspace)
    for name in manifest.vectors:  # which no encoder makes
        (own / "features").mkdir(exist_ok=True)
        if not (own / "features" / name).exists():
            (own / "features" / name).symlink_to(workspace / "features" / name)
    # Of items.parquet and pairs.parquet: what encoders are trained on and what is encoded.
    made = {
        "overrides": overrides,
        "items": manifest.items_checksum,
        "read": {name: manifest.checksums.get(name) for name in NOT_READ_BY_RANKERS},
    }
    stamp = own / "embed.json"
    if not stamp.is_file() or read_json(stamp, "delete it and run launch/compare.py again") != made:
        with stage(f"embed {name}"):
            commands.job("embed", own, None, overrides)
        write_json(stamp, made)
    return own


def named_runs(workspace: Path, names: list[str], split: str) -> dict[str, VariantRuns]:
    """Return evaluated runs by name.

    Raises:
        UserError: no names, or a run that has not been evaluated on the split, as it is now and on
            the data and features that are here now.
    """
    if not names:
        raise UserError(
            "neither suite= nor runs= given: name a suite of configs/suite, for example "
            "suite=baselines, or evaluated runs, for example runs=[ids_only]"
        )
    runs = {}
    for name in names:
        path = workspace / "runs" / name / "eval" / split / "metrics.json"
        if not path.is_file():
            raise UserError(
                f"{path}: no metrics; run launch/evaluate.py with run.name={name} split={split} "
                f"first"
            )
        config = read_run(workspace, name, read_manifest(workspace))
        run = StudyRun(workspace=workspace, name=name, overrides=(), config=config)
        changed = run.changed_since_evaluation(split, EvaluateConfig(split=split))
        if stale := [key for key in changed if key not in ("settings", "candidates")]:
            raise UserError(
                f"{path}: scored with another {' and other '.join(stale)} than are here now; run "
                f"launch/evaluate.py with run.name={name} split={split} again"
            )
        runs[name] = VariantRuns(runs=[run])
    return runs


def compare_variants(
    variants: Mapping[str, VariantRuns], reference: str, split: str
) -> tuple[list[VariantResult], OracleMetrics | None]:
    """Return a result per variant, and the metrics of the true probabilities where they are known."""
    common = _common_rows(variants, split)
    scores: dict[str, SeedScores] = {}
    for name, variant in variants.items():
        rows = [read_predictions(run, split).with_units_of(common) for run in variant.runs]
        scores[name] = seed_scores(rows, num_replicates=NUM_REPLICATES, seed=0)
    results, oracle = [], None
    for name, variant in variants.items():
        runs = variant.runs
        evaluations = [read_metrics(run, split) for run in runs]
        oracle = evaluations[0].oracle or oracle
        is_reference = name == reference
        results.append(
            VariantResult(
                name=name,
                validation=[run.validation_metric() for run in runs],
                metrics={key: [metric_of(e, key) for e in evaluations] for key in COLUMNS},
                difference=(
                    None
                    if is_reference
                    else paired_difference(scores[name], scores[reference], seed=0)
                ),
                num_parameters=runs[0].num_parameters(),
                examples_per_second=float(np.median([r.examples_per_second() for r in runs])),
                settings=variant.settings,
            )
        )
    return results, oracle


def _common_rows(variants: Mapping[str, VariantRuns], split: str) -> ScoredRows:
    """Return the rows whose users are resampled for all variants: of a file that tells all users apart.

    Predictions of earlier versions do not tell unknown users apart; without any that does, the first.
    """
    first: ScoredRows | None = None
    for variant in variants.values():
        rows = read_predictions(variant.runs[0], split)
        if rows.tells_unknown_users:
            return rows
        first = first or rows
    assert first is not None, "there is a reference"
    return first


def metric_of(evaluation: EvaluationResult, column: str) -> float:
    """Return a column's value; nan where the evaluation has none."""
    if column == "unseen_auc":
        unseen = evaluation.by_item_kind.get("unseen_in_training")
        return math.nan if unseen is None else unseen.value("auc")
    if column == "lift_recovered":
        return math.nan if evaluation.oracle is None else evaluation.oracle.lift_recovered
    return evaluation.all.value(column)
