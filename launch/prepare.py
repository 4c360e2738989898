"""Turn raw files into prepared data: checked, numbered, split, with histories.

In: the files below data.source, as the recipe configs/data/<R>.yaml maps them. Out: W/prepared/.

    python launch/prepare.py data=movielens data.source=/path/to/ml-latest-small workspace=W
    python launch/prepare.py data=demo workspace=W          # the drawn world, after launch/demo.py
"""

import dataclasses
import os

from omegaconf import DictConfig

from recsys.config import from_config, plain
from recsys.data.object_store import is_url
from recsys.data.prepare import prepare
from recsys.data.recipe import Recipe
from recsys.job import hydra_job, run_job, say
from recsys.schema import local_path


def job(cfg: DictConfig) -> None:
    """Read the recipe, prepare, say where the result lies."""
    recipe = from_config(Recipe, plain(cfg.data), "data")
    if not is_url(recipe.source):
        source = local_path(recipe.source, "data.source")
        recipe = dataclasses.replace(recipe, source=str(source))
    workspace = local_path(cfg.workspace, "workspace")
    manifest = prepare(
        recipe,
        workspace,
        memory_limit=cfg.memory_limit,
        threads=cfg.threads or len(os.sched_getaffinity(0)),
    )
    for table in manifest.tables:
        say(f"table {table.name}: {table.num_rows:,} rows ({table.kind})")
    for reason, count in manifest.rows_dropped.items():
        say(f"dropped: {count:,} rows, {reason}")
    say(f"results: {workspace / 'prepared'} (manifest.json)")
    step = "embed" if manifest.has_images or manifest.has_texts else "train"
    say(f"next: launch/{step}.py data={cfg.data.name} workspace={cfg.workspace}")


@hydra_job("prepare", sections=("data",))
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
