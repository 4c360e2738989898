"""Copy a folder to an object store or from one: raw data to a machine, a workspace to where it is kept.

In: a folder or URL. Out: its files at another folder or URL; those that are there already are left.

    python launch/sync.py source=s3://bucket/raw target=raw
    python launch/sync.py source=workspaces/demo/runs/mine target=s3://bucket/demo/runs/mine
"""

from dataclasses import dataclass

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.prepare.object_store import sync
from recsys.job import hydra_job, run_job, say


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Source and target of a copy."""

    source: str
    """Folder, or a URL of fsspec's: s3://, gs://, file://, ..."""
    target: str
    """The same."""


KEYS = (SyncConfig,)


def job(cfg: DictConfig) -> None:
    """Copy, and say how much."""
    (config,) = read_job(cfg, KEYS)
    num_copied, num_there = sync(config.source, config.target)
    say(f"{num_copied:,} files copied, {num_there:,} were there -> {config.target}")


@hydra_job("sync", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
