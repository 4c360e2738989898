"""Put models side by side: what is missing is trained, and one table says who is better, by how much.

In: W/prepared/, W/features/, and a suite of variants (configs/suite/), or the names of evaluated
runs. Out: a table in the terminal and W/comparisons/<suite>/comparison.{md,csv,html}. The runs lie in
W/runs/<suite>-<variant>-seed<n>/; those that are there are not trained again. Settings are chosen on
the validation split (trials=); the test split is scored once everything is trained.

    python launch/compare.py data=demo workspace=W suite=baselines 'overrides=["experiment=umair_fps"]'
    python launch/compare.py data=demo workspace=W runs=[ids_only,umair_fps]
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.errors import UserError
from recsys.evaluation.evaluate import EvaluateConfig
from recsys.files import read_json, write_json
from recsys.job import hydra_job, open_command, run_job, same_data, say, stage
from recsys.report.comparison import METRICS, Line, print_comparison, write_comparison
from recsys.run.folder import check_run_data, read_run_folder
from recsys.runtime.threads import ProcessConfig
from recsys.schema import NOT_READ_BY_RANKERS, read_manifest
from recsys.study.differences import SeedScores, paired_difference, seed_scores
from recsys.study.runs import (
    Commands,
    StudyRun,
    evaluate_again,
    read_predictions,
    study_run,
)
from recsys.study.suite import SuiteConfig, VariantConfig, check_suite
from recsys.study.tuning import choose_settings

NUM_REPLICATES = 400
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared, and how the trainings that it needs are carried out."""

    suite: SuiteConfig | None = None
    """Variants to train and compare; presets in configs/suite/. Null: the runs below."""
    runs: list[str] = field(default_factory=list)
    """Names of evaluated runs, in the order of the table; the first is the reference."""
    variants: list[str] | None = None
    """Variants of the suite to compare; null: all. The reference always joins."""
    seeds: int = 5
    """Trainings of every variant, run.seed 0, 1, 2, ..."""
    trials: int = 0
    """Trials in which every variant chooses the settings of suite.space on validation; 0: none."""
    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads of every process of a job that is started; null: OMP_NUM_THREADS, else an equal share."""
    overrides: list[str] = field(default_factory=list)
    """Settings of launch/train.py for every variant, before the suite's and the variant's own."""
    embed: list[str] = field(default_factory=list)
    """Settings of launch/embed.py for variants with feature tables of their own."""
    parallel: int = 1
    """Trainings (in a search: of different variants) side by side."""
    ranks: int = 1
    """Processes of every training; together with `parallel` no more than the machine's cores."""
    overwrite: bool = False
    """Train runs anew whose settings or data have changed; false: stop and say which."""
    split: str = "test"
    """`train`, `valid` or `test`."""


KEYS = (WorkspaceConfig, CompareConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: from names to a table."""
    place, config = read_job(cfg, KEYS)
    check_compare(config)
    workspace, suite = place.folder, config.suite
    if suite is not None:
        runs, settings = run_suite(config, suite, workspace)
        title, reference = f"{place.data.name}: {suite.name}", suite.reference
        folder = workspace / "comparisons" / suite.name
    else:
        runs, settings = named_runs(workspace, config.runs, config.split), {}
        title, reference = f"{place.data.name}: {', '.join(config.runs)}", config.runs[0]
        folder = workspace / "comparisons" / "runs"
    with stage("compare") as comparing:
        lines, oracle = compare_runs(runs, settings, reference, config.split)
        comparing.done(f"{len(runs)} variants, reference {reference}")
    num_seeds = len(runs[reference])
    title += f", {config.split} split"
    notes = [
        f"{num_seeds} seed(s); validation is the metric by which checkpoints and settings are "
        f"chosen. Differences to {reference}: mean over seeds, interval over users and seeds "
        f"({NUM_REPLICATES} bootstrap draws). Samples/s were measured as the runs happened; they "
        f"compare only where nothing else ran."
    ]
    print_comparison(title, lines, oracle)
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison(folder, title, lines, oracle, notes)
    say(f"results: {folder} (comparison.md, comparison.csv, comparison.html)")
    say(f"next: {open_command(folder / 'comparison.html')}")


def check_compare(config: CompareConfig) -> None:
    """Raise UserError for a suite or numbers that cannot be, all at once."""
    problems = []
    if config.suite is not None:
        try:
            check_suite(config.suite)
        except UserError as error:
            problems.append(str(error).removeprefix("configuration: "))
    problems += [
        f"{key}={getattr(config, key)}: expected {least} or more"
        for key, least in (("seeds", 1), ("trials", 0), ("parallel", 1), ("ranks", 1))
        if getattr(config, key) < least
    ]
    if config.split not in SPLITS:
        problems.append(f"split={config.split!r}: expected one of {', '.join(SPLITS)}")
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def run_suite(
    config: CompareConfig, suite: SuiteConfig, workspace: Path
) -> tuple[dict[str, list[StudyRun]], dict[str, list[str]]]:
    """Train and score what is missing; return the runs and the settings of every variant."""
    # 1. The variants asked for.
    wanted = list(suite.variants if config.variants is None else config.variants)
    unknown = sorted(set(wanted) - set(suite.variants))
    if unknown:
        raise UserError(
            f"variants={','.join(unknown)}: the suite {suite.name!r} has {', '.join(suite.variants)}"
        )
    if suite.reference not in wanted:
        wanted.insert(0, suite.reference)
    if config.trials and not suite.space:
        raise UserError(
            f"trials={config.trials}: the suite {suite.name!r} has no settings to choose; add "
            f"suite.space, or trials=0"
        )
    folder = workspace / "comparisons" / suite.name
    commands = Commands(
        data=same_data(),
        num_parallel=config.parallel,
        num_ranks=config.ranks,
        threads=config.run.threads,
        logs=folder / "logs",
    )
    commands.end_with_this_process()
    shared = [*config.overrides, *suite.overrides]

    # 2. Feature tables of variants that have their own.
    places = {
        name: own_features(commands, workspace, folder, name, suite.variants[name], config.embed)
        for name in wanted
    }

    # 3. Settings: chosen per variant on validation, with equal numbers of trials. The trials of one
    # variant follow each other; variants search side by side and share the cores of `commands`.
    settings = {name: list(suite.variants[name].overrides) for name in wanted}
    if config.trials:

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
            chosen = dict(zip(wanted, pool.map(search, wanted), strict=True))
        settings = {name: settings[name] + chosen[name] for name in wanted}

    # 4. Every variant from every seed.
    runs = {
        name: [
            study_run(
                commands.data,
                places[name],
                f"{suite.name}-{name}-seed{seed}",
                [*shared, *settings[name], f"run.seed={seed}"],
            )
            for seed in range(config.seeds)
        ]
        for name in wanted
    }
    # Seed by seed, so that an interrupted study has whole seeds.
    in_order = [runs[name][seed] for seed in range(config.seeds) for name in wanted]
    commands.train(in_order, overwrite=config.overwrite)

    # 5. The split that answers, once nothing is chosen any more.
    commands.evaluate(in_order, config.split, EvaluateConfig(split=config.split))
    return runs, settings


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
    # Of items.parquet and pairs.parquet: what encoders are trained on and what is encoded.
    manifest = read_manifest(workspace)
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


def named_runs(workspace: Path, names: list[str], split: str) -> dict[str, list[StudyRun]]:
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
        config = read_run_folder(workspace / "runs" / name)
        check_run_data(workspace / "runs" / name, config, read_manifest(workspace))
        run = StudyRun(workspace=workspace, name=name, overrides=(), config=config)
        changed = run.changed_since_evaluation(split, EvaluateConfig(split=split))
        if stale := [key for key in changed if key != "settings"]:
            raise UserError(
                f"{path}: scored with another {' and other '.join(stale)} than are here now; run "
                f"launch/evaluate.py with run.name={name} split={split} again"
            )
        runs[name] = [run]
    return runs


def compare_runs(
    runs: dict[str, list[StudyRun]], settings: dict[str, list[str]], reference: str, split: str
) -> tuple[list[Line], dict[str, float] | None]:
    """Return a line per variant, and the metrics of the true probabilities where they are known."""
    scores: dict[str, SeedScores] = {}
    for name, seeds in runs.items():
        rows = [read_predictions(run, split) for run in seeds]
        scores[name] = seed_scores(rows, num_replicates=NUM_REPLICATES, seed=0)
    lines, oracle = [], None
    for name, seeds in runs.items():
        metrics = [read_metrics(run, split) for run in seeds]
        if known := metrics[0].get("oracle"):
            oracle = {k: math.nan if v is None else float(v) for k, v in known.items()}
        lines.append(
            Line(
                name=name,
                validation=[run.validation_metric() for run in seeds],
                metrics={key: [metric_of(m, key) for m in metrics] for key in METRICS},
                difference=(
                    None
                    if name == reference
                    else paired_difference(scores[name], scores[reference], seed=0)
                ),
                num_parameters=seeds[0].num_parameters(),
                examples_per_second=float(np.median([r.examples_per_second() for r in seeds])),
                settings=settings.get(name, []),
            )
        )
    return lines, oracle


def read_metrics(run: StudyRun, split: str) -> dict[str, Any]:
    """Return a run's metrics.json."""
    path = run.folder / "eval" / split / "metrics.json"
    return read_json(path, evaluate_again(run.name, split))


def metric_of(metrics: dict[str, Any], key: str) -> float:
    """Return a column's value; nan where the evaluation has none (null in JSON)."""
    if key == "unseen_auc":
        value = metrics.get("items_unseen_in_training", {}).get("auc")
    elif key == "lift_recovered":
        value = metrics.get("oracle", {}).get("lift_recovered")
    else:
        value = metrics["all"][key]
    return math.nan if value is None else float(value)


@hydra_job("compare", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
