"""Draw an illustration world with known truth: pictures, words, users, bookmarks.

In: nothing. Out: W/raw/ (what a site would have) and W/truth/ (what no site has: the true
probabilities, the users' sensitivities, and contact_sheet.png to look at).

    python launch/demo.py workspace=W
    python launch/demo.py workspace=W world.num_items=200 world.num_users=50 world.num_exposures=2000
"""

import os

from omegaconf import DictConfig

from recsys.config import from_config, plain
from recsys.data.demo.world import WorldConfig, draw_world, drawn_already
from recsys.job import hydra_job, run_job, say, stage
from recsys.schema import local_path


def job(cfg: DictConfig) -> None:
    """Draw the world unless it is there already."""
    config = from_config(WorldConfig, plain(cfg.world), "world")
    workspace = local_path(cfg.workspace, "workspace")
    if not cfg.overwrite and drawn_already(config, workspace):
        say(f"the world is drawn already: {workspace / 'raw'}")
    else:
        workspace.mkdir(parents=True, exist_ok=True)
        with stage("world") as drawn:
            oracle = draw_world(
                config,
                workspace,
                processes=cfg.processes or len(os.sched_getaffinity(0)),
                say=say,
            )
            drawn.done(f"best possible AUC over all rows {oracle:.4f}")
        say(f"results: {workspace / 'raw'}; look at {workspace / 'truth' / 'contact_sheet.png'}")
    say(f"next: launch/prepare.py data=demo workspace={cfg.workspace}")


@hydra_job("demo", sections=("world",))
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
