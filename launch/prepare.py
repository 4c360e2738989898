"""Turn raw files into prepared data: checked, numbered, split, with histories.

In: the files below data.source, as the recipe configs/data/<R>.yaml maps them. Out: W/prepared/, and
W/features/<modality>/ of vectors that the recipe brings along (items.vectors).

    python launch/prepare.py data=movielens data.source=/path/to/ml-latest-small workspace=W
    python launch/prepare.py data=demo workspace=W          # the drawn world, after launch/demo.py
    python launch/prepare.py data=R workspace=W append=true # the files of new days become a window
    python launch/prepare.py data=R workspace=W engine=ray  # the log in partitions, by Ray
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.prepare.append import append
from recsys.data.prepare.new_files import time_problems
from recsys.data.prepare.object_store import is_url
from recsys.data.prepare.pipeline import prepare, whole_log
from recsys.data.prepare.ray_cluster import RayConfig
from recsys.data.prepare.ray_rows import partitioned_log
from recsys.data.prepare.ray_window import partitioned_window
from recsys.data.prepare.window import whole_window
from recsys.data.workspace import WorkspaceConfig
from recsys.errors import UserError
from recsys.job import hydra_job, next_command, run_job, say
from recsys.runtime.threads import ProcessConfig, threads_of_process, use_threads
from recsys.schema import local_path


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Resources of `prepare`; the result does not depend on it."""

    memory_limit: str = "2GB"
    """DuckDB's memory, with engine=ray that of each worker; what does not fit spills to the
    workspace."""
    engine: Literal["local", "ray"] = "local"
    """Where the log is prepared: `local`, by one process; `ray`, in partitions by workers of Ray."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Ray, where engine=ray."""
    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads."""
    append: bool = False
    """Whether the files that prepared data has not read are added to it, as the next window of time."""
    since: str | None = None
    """With append, for a log file that has grown: its new rows begin at this time, in seconds since 1970
    or such as 2026-11-01 or "2026-11-01 12:00" (UTC); null: files that were read have not changed."""

    def problems(self) -> list[str]:
        """Return a text for every key that another one rules out, and for a time that is none."""
        problems = []
        if self.ray != RayConfig() and self.engine != "ray":
            problems.append("ray: ray.address and ray.partitions are read with engine=ray only")
        if self.since is None:
            return problems
        if not self.append:
            return [*problems, f"since={self.since}: only with append=true"]
        return problems + time_problems(self.since)


KEYS = (WorkspaceConfig, PrepareConfig)


def job(cfg: DictConfig) -> None:
    """Read the recipe, prepare, say where the result lies."""
    place, config = read_job(cfg, KEYS)
    recipe, workspace = place.data, place.folder
    if not recipe.source:
        raise UserError("data.source: missing, a value is required: the folder of the raw files")
    threads = threads_of_process(config.run.threads).count
    use_threads(threads)
    if not is_url(recipe.source):
        source = local_path(recipe.source, "data.source")
        recipe = dataclasses.replace(recipe, source=str(source))
    limits: dict[str, Any] = {"memory_limit": config.memory_limit, "threads": threads}
    if config.append:
        in_parts = functools.partial(partitioned_window, ray=config.ray, **limits)
        hold_window = in_parts if config.engine == "ray" else whole_window
        manifest = append(recipe, workspace, since=config.since, hold=hold_window, **limits)
        say(f"window: split={manifest.split_named('next')}, or split=next")
    else:
        on_ray = functools.partial(partitioned_log, ray=config.ray, **limits)
        hold = on_ray if config.engine == "ray" else whole_log
        manifest = prepare(recipe, workspace, hold=hold, **limits)
    for table in manifest.tables:
        say(f"table {table.name}: {table.num_rows:,} rows ({table.kind})")
    for number in manifest.dense:
        values = f"mean {number.mean:.4g}, deviation {number.deviation:.4g}"
        flagged = ", missing ones flagged" if number.has_missing else ""
        say(f"dense {number.name}: {number.scale}, {values}{flagged}")
    for reason, count in manifest.rows_dropped.items():
        say(f"dropped: {count:,} rows, {reason}")
    say(f"results: {workspace / 'prepared'} (manifest.json)")
    step = "embed" if manifest.has_images or manifest.has_texts else "train"
    say(f"next: {next_command(step, place.workspace)}")


@hydra_job("prepare", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
