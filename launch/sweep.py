"""Choose a model's settings on the validation split, by Optuna; the test split is never read.

In: W/prepared/, W/features/. Out: W/sweeps/<sweep.name>/best.json; the trials are the runs
W/runs/<sweep.name>-<key>-trial<n>/, where the key stands for settings and data. A killed sweep goes on,
and one with more trials adds to what is there; other settings or data have trials of their own.

    python launch/sweep.py data=demo workspace=W sweep.name=fm \\
        'overrides=["experiment=umair_fps","model=fm"]'
"""

from dataclasses import dataclass, field

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.job import hydra_job, next_command, run_job, same_data, say
from recsys.overrides import override
from recsys.runtime.threads import ProcessConfig
from recsys.study.runs import Commands, study_run
from recsys.study.suite import SweepConfig
from recsys.study.tuning import choose_settings
from recsys.tracking.config import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class SearchJobConfig:
    """The search, and what its trials have in common."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    """What is chosen, and by how many trials."""
    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads of every process of a job that is started; null: OMP_NUM_THREADS, else an equal share."""
    overrides: list[str] = field(default_factory=list)
    """Settings of launch/train.py that stay: the experiment, the model."""
    ranks: int = 1
    """Processes of every training."""
    overwrite: bool = False
    """Train trials anew whose settings or data have changed; false: stop and say which."""


KEYS = (WorkspaceConfig, SearchJobConfig, TrackingConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: from a space to the settings that validate best."""
    place, config, tracking = read_job(cfg, KEYS)
    sweep, overrides = config.sweep, config.overrides
    folder = place.folder / "sweeps" / sweep.name
    commands = Commands(
        data=same_data(),
        num_parallel=1,
        num_ranks=config.ranks,
        threads=config.run.threads,
        logs=folder / "logs",
        tracking=tracking.arguments(place.folder, sweep.name),
    )
    commands.end_with_this_process()
    chosen = choose_settings(
        commands,
        folder,
        workspace=place.folder,
        name=sweep.name,
        overrides=overrides,
        space=sweep.space,
        num_trials=sweep.trials,
        overwrite=config.overwrite,
    )
    say(f"best on validation: {' '.join(chosen) or 'the settings as they are'}")
    say(f"results: {folder / 'best.json'}")
    best = study_run(commands.data, place.folder, sweep.name, [*overrides, *chosen])
    settings = [override("run.name", best.name), *best.overrides]
    say(f"next: {next_command('train', place.workspace, *settings)}")


@hydra_job("sweep", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
