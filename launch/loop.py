"""Close the loop in a drawn world: visitors meet the server day by day, and nights teach the model.

In: nothing. Out: W/seed-<n>/ with every arm's workspace and visits, and W/loop.html, days.csv and
loop_result.json: what visitors got each day from the refreshed model, one never refreshed, one trained
anew, exploring ones, popularity, random and the oracle. The same command goes on after a kill.

    python launch/loop.py workspace=W
    python launch/loop.py workspace=W seeds=[0,1,2]
    python launch/loop.py workspace=W arms=[never,random,oracle] world.num_days=2 world.num_exposures=3000
"""

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.job import hydra_job, open_command, run_job, say, stage
from recsys.loop.config import LoopConfig
from recsys.loop.loop import run_loop
from recsys.loop.result import loop_result
from recsys.report.loop_page import print_loop, write_loop
from recsys.schema import local_path

KEYS = (LoopConfig,)


def job(cfg: DictConfig) -> None:
    """Run the days of all arms, then show what visitors got."""
    # 1. Days and nights of every arm; those that are over are not lived again.
    (config,) = read_job(cfg, KEYS)
    workspace = local_path(config.workspace, "workspace")
    worlds = run_loop(config, workspace)

    # 2. What visitors got, with intervals.
    with stage("result") as measuring:
        result = loop_result(worlds, config.arms, workspace)
        visits = sum(row.num_visits for row in result.arms_total)
        measuring.done(f"{visits:,} visits of {len(config.arms)} arms, {len(config.seeds)} seed(s)")

    # 3. The table in the terminal, and the page.
    print_loop(result)
    write_loop(workspace, result, config)
    say(f"results: {workspace} (loop.html, days.csv, loop_result.json)")
    say(f"next: {open_command(workspace / 'loop.html')}")


@hydra_job("loop", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
