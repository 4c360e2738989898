"""Recommend items to every user of a bundle, or to those of a file, and write the lists as Parquet.

In: a bundle. Out: W/lists/<version>/parts/: user, rank, item, score, modality weights, reason.
The same command goes on where a killed one stopped, on any number of ranks.

    torchrun --standalone --nproc-per-node 8 launch/recommend.py bundle=W/bundles/current k=50
    python launch/recommend.py bundle=W/bundles/current users=ids.txt k=20 out=lists
"""

import shlex

from omegaconf import DictConfig

from recsys.bundle.bundle import Bundle
from recsys.bundle.spec import resolve
from recsys.config import read_job
from recsys.job import hydra_job, run_job, say, stage
from recsys.runtime.collectives import gather, share
from recsys.runtime.env import start, stop
from recsys.schema import local_path
from recsys.serving.lists import ListsConfig, finish, open_users, open_work, write_parts
from recsys.serving.recommender import Recommender

KEYS = (ListsConfig,)


def job(cfg: DictConfig) -> None:
    """Make the lists of all users, each rank its share of the parts."""
    # 1. Settings, and one bundle for all ranks, whatever becomes current meanwhile.
    (config,) = read_job(cfg, KEYS)
    env = start("cpu", threads=config.threads)
    folder = share(lambda: resolve(local_path(config.bundle, "bundle")))
    bundle = Bundle.open(folder)

    # 2. Whose lists, and which parts of them are there.
    users = open_users(config, bundle)
    work = share(lambda: open_work(config, bundle, users))
    say(
        f"{bundle.version}: {len(users):,} users, {work.num_parts - len(work.missing):,} of "
        f"{work.num_parts:,} parts are there, {env.world_size} rank(s)"
    )

    # 3. Each rank its parts, each part written whole.
    with stage("lists") as made:
        recommender = Recommender.open(folder)
        num_lists = sum(gather(lambda: write_parts(work, users, recommender, config, env)))
        made.done(f"{num_lists:,} lists of up to {config.k}")

    # 4. Every part is there: say so beside them.
    num_rows = share(lambda: finish(work))
    say(f"results: {work.folder} ({work.num_parts:,} parts, {num_rows:,} rows)")
    read = f"import pyarrow.parquet as pq; print(pq.read_table({str(work.parts)!r}).to_pandas())"
    say(f"next: {shlex.join(['python', '-c', read])}")
    stop()


@hydra_job("recommend", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
