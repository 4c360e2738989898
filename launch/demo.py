"""Draw an illustration world with known truth: pictures, words, users, bookmarks.

In: nothing. Out: W/raw/ (what a site would have) and W/truth/ (what no site has: the true
probabilities, the users' sensitivities, and contact_sheet.png to look at).

    python launch/demo.py workspace=W
    python launch/demo.py workspace=W world.num_items=200 world.num_users=50 world.num_exposures=2000
"""

from dataclasses import dataclass, field

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.demo.world import WorldConfig, draw_world, drawn_already
from recsys.errors import UserError
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.runtime.threads import ProcessConfig, threads_of_process, use_threads
from recsys.schema import local_path


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The drawn world, and where it is drawn."""

    workspace: str
    """Folder that gets raw/ and truth/."""
    overwrite: bool = False
    """Draw it anew where a world is drawn already."""
    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads."""
    processes: int | None = None
    """Processes that paint; null: as many as there may be threads. The pictures do not depend on it."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """Its size and nature."""


KEYS = (DemoConfig,)


def job(cfg: DictConfig) -> None:
    """Draw the world unless it is there already."""
    (config,) = read_job(cfg, KEYS)
    if config.processes is not None and config.processes < 1:
        raise UserError(f"processes={config.processes}: expected 1 or more, or null")
    threads = threads_of_process(config.run.threads).count
    use_threads(threads)
    workspace = local_path(config.workspace, "workspace")
    if not config.overwrite and drawn_already(config.world, workspace):
        say(f"the world is drawn already: {workspace / 'raw'}")
    else:
        workspace.mkdir(parents=True, exist_ok=True)
        with stage("world") as drawn:
            oracle = draw_world(
                config.world,
                workspace,
                processes=config.processes or threads,
                say=say,
            )
            drawn.done(f"best possible AUC over all rows {oracle:.4f}")
        say(f"results: {workspace / 'raw'}; look at {workspace / 'truth' / 'contact_sheet.png'}")
    say(f"next: {next_command('prepare', config.workspace, data='demo')}")


@hydra_job("demo", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
