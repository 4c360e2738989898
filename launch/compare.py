"""Compare models: missing runs are trained, and one table gives paired differences with intervals.

In: W/prepared/, W/features/, and a suite of variants (configs/suite/), or the names of evaluated
runs. Out: a table in the terminal and W/comparisons/<suite>/comparison.{md,csv,html}. The runs are
W/runs/<suite>-<variant>-seed<n>/; those that are there are not trained again. Settings are chosen on
the validation split (trials=); the test split is scored once everything is trained.

    python launch/compare.py data=demo workspace=W suite=baselines 'overrides=["experiment=umair_fps"]'
    python launch/compare.py data=demo workspace=W runs=[ids_only,umair_fps]
"""

from dataclasses import replace

from omegaconf import DictConfig

from recsys.chain import FIRST_SPLITS
from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.job import hydra_job, open_command, run_job, same_data, say, stage
from recsys.report.comparison import print_comparison, write_comparison
from recsys.schema import read_manifest
from recsys.study.comparison import (
    NUM_REPLICATES,
    CompareConfig,
    compare_variants,
    named_runs,
    run_suite,
)
from recsys.tracking.config import TrackingConfig

KEYS = (WorkspaceConfig, CompareConfig, TrackingConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: from names to a table."""
    # 1. The variants and their runs: of a suite, trained and scored where missing, or by name.
    place, config, tracking = read_job(cfg, KEYS)
    workspace, suite = place.folder, config.suite
    if config.split not in FIRST_SPLITS:
        config = replace(config, split=read_manifest(workspace).split_named(config.split))
    if suite is not None:
        variants = run_suite(config, suite, workspace, same_data(), tracking)
        name, reference = suite.name, suite.reference
        title = f"{place.data.name}: {name}"
    else:
        variants = named_runs(workspace, config.runs, config.split)
        name, reference = "runs", config.runs[0]
        title = f"{place.data.name}: {', '.join(config.runs)}"

    # 2. Metrics side by side, and paired differences to the reference.
    with stage("compare") as comparing:
        results, oracle = compare_variants(variants, reference, config.split)
        comparing.done(f"{len(variants)} variants, reference {reference}")

    # 3. The table, in the terminal and as files.
    title += f", {config.split} split"
    notes = [
        f"{len(variants[reference].runs)} seed(s); validation is the metric by which checkpoints and "
        f"settings are chosen. Differences to {reference}: mean over seeds, interval over users and "
        f"seeds ({NUM_REPLICATES} bootstrap draws). Samples/s were measured as the runs happened; "
        f"they compare only where nothing else ran."
    ]
    folder = workspace / "comparisons" / name
    print_comparison(title, results, oracle)
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison(folder, title, results, oracle, notes)
    say(f"results: {folder} (comparison.md, comparison.csv, comparison.html)")
    say(f"next: {open_command(folder / 'comparison.html')}")


@hydra_job("compare", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
