"""Validate progressively: every appended window is scored before it is trained on, day after day.

In: W/prepared/ with windows (launch/prepare.py append=true), W/features/. Out: a table, and
W/progressive/<name>/progressive.{html,csv,json}: AUC, normalised entropy and calibration by window of a
model that goes on from window to window, of one never refreshed and, with anew=true, of one trained anew
on everything before the window, with their costs. The runs are W/runs/<name>-seed<n>-<window>/. Finished
ones are not repeated: after the next append, the same command adds the new window.

    python launch/progressive.py data=demo workspace=W 'overrides=["experiment=umair_fps"]'
    python launch/progressive.py data=demo workspace=W seeds=3 anew=true anew_every=5
"""

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.job import hydra_job, open_command, run_job, same_data, say, stage
from recsys.report.progressive import print_progressive, write_progressive
from recsys.study.progressive import ProgressiveConfig, walk
from recsys.study.progressive_result import progressive_result
from recsys.study.runs import Commands
from recsys.tracking.config import TrackingConfig

KEYS = (WorkspaceConfig, ProgressiveConfig, TrackingConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: from windows to curves."""
    # 1. Settings, and the processes that train and score.
    place, config, tracking = read_job(cfg, KEYS)
    folder = place.folder / "progressive" / config.name
    commands = Commands(
        data=same_data(),
        num_parallel=1,
        num_ranks=config.ranks,
        threads=config.run.threads,
        logs=folder / "logs",
        tracking=tracking.arguments(place.folder, config.name),
    )
    commands.end_with_this_process()

    # 2. Window after window: score it by every model, then train on it.
    scored = walk(commands, place.folder, config)

    # 3. Metrics by window and over all, differences and costs.
    with stage("result") as measuring:
        result = progressive_result(scored)
        measuring.done(f"{len(result.windows)} windows, {len(scored)} evaluations")
    title = f"{place.data.name}: progressive validation, {config.name}"
    print_progressive(title, result)
    write_progressive(folder, title, result)
    say(f"results: {folder} (progressive.html, progressive.csv, progressive.json)")
    say(f"next: {open_command(folder / 'progressive.html')}")


@hydra_job("progressive", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
