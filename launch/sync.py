"""Copy a folder to an object store or from one: raw data to a machine, a workspace to where it is kept.

In: a folder or URL. Out: its files at another folder or URL; those that are there already are left.

    python launch/sync.py source=s3://bucket/raw target=raw
    python launch/sync.py source=workspaces/demo/runs/mine target=s3://bucket/demo/runs/mine
"""

from omegaconf import DictConfig

from recsys.data.object_store import sync
from recsys.job import hydra_job, run_job, say


def job(cfg: DictConfig) -> None:
    """Copy, and say how much."""
    num_copied, num_there = sync(str(cfg.source), str(cfg.target))
    say(f"{num_copied:,} files copied, {num_there:,} were there -> {cfg.target}")


@hydra_job("sync")
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
