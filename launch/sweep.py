"""Choose a model's settings on the validation split, by Optuna; the test split is never read.

In: W/prepared/, W/features/. Out: W/sweeps/<sweep.name>/best.json; the trials are the runs
W/runs/<sweep.name>-trial<n>/. A killed sweep goes on, and one with more trials adds to what is there.

    python launch/sweep.py data=demo workspace=W sweep.name=fm \\
        'overrides=["experiment=umair_fps","model=fm"]'
"""

from omegaconf import DictConfig

from recsys.config import from_config, plain
from recsys.job import hydra_job, run_job, say
from recsys.schema import local_path
from recsys.study.runs import Commands
from recsys.study.suite import SweepConfig, space_problems
from recsys.study.tuning import choose_settings


def job(cfg: DictConfig) -> None:
    """Read down once: from a space to the settings that validate best."""
    sweep = from_config(SweepConfig, plain(cfg.sweep), "sweep")
    problems = space_problems(sweep.space, "sweep.space")
    if not sweep.space:
        problems.append("sweep.space={}: expected at least one setting to choose")
    if sweep.trials < 1:
        problems.append(f"sweep.trials={sweep.trials}: expected 1 or more")
    if problems:
        raise ValueError("configuration: " + "\n  ".join(problems))
    workspace = local_path(cfg.workspace, "workspace")
    folder = workspace / "sweeps" / sweep.name
    commands = Commands(
        recipe=cfg.data.name, num_parallel=1, num_ranks=cfg.ranks, logs=folder / "logs"
    )
    commands.end_with_this_process()
    overrides = list(cfg.overrides)
    chosen = choose_settings(
        commands,
        folder,
        workspace=workspace,
        name=sweep.name,
        overrides=overrides,
        space=sweep.space,
        num_trials=sweep.trials,
        overwrite=cfg.overwrite,
    )
    say(f"best on validation: {' '.join(chosen) or 'the settings as they are'}")
    say(f"results: {folder / 'best.json'}")
    command = ["launch/train.py", f"data={cfg.data.name}", f"workspace={cfg.workspace}"]
    say(f"next: {' '.join([*command, f'run.name={sweep.name}', *overrides, *chosen])}")


@hydra_job("sweep", sections=("sweep",))
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
