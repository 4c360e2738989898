"""The closed loop: worlds, arms and days, some arms side by side.

In: LoopConfig. Out: below the workspace a folder for each seed, with the visits of every arm
(arm.py says how they are kept). Called by launch/loop.py, which a kill may end at any moment: the same
command goes on.
"""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from recsys.config import from_config
from recsys.demo.days import DayWorld, draw_days, write_pictures, write_start
from recsys.errors import UserError
from recsys.files import new_folder, read_json, remove_folder, write_json
from recsys.job import say, stage
from recsys.loop.arm import AGAIN, ArmRun, run_steps
from recsys.loop.config import LoopConfig
from recsys.loop.night import Jobs, start_steps
from recsys.runtime.limits import usable_cores

_FREE = ("workspace", "overwrite", "seeds", "arms", "parallel")
"""Keys that may differ from those of the loop that is there."""


def run_loop(config: LoopConfig, workspace: Path) -> dict[int, DayWorld]:
    """Run every arm of every seed to its last day; return the worlds by seed.

    Raises:
        UserError: a loop with other settings is there; more arms side by side than cores; a job failed.
    """
    if config.parallel > usable_cores():
        raise UserError(
            f"parallel={config.parallel}: expected at most the {usable_cores()} cores of this machine"
        )
    _claim(config, workspace)
    with _jobs_of_this_process() as jobs:
        return _run(config, workspace, jobs)


def _run(config: LoopConfig, workspace: Path, jobs: Jobs) -> dict[int, DayWorld]:
    """Run what is not over yet."""
    worlds = {seed: draw_days(config.world, seed) for seed in config.seeds}
    folders = {seed: seed_folder(workspace, seed) for seed in worlds}
    for seed, world in worlds.items():
        _paint(config, world, folders[seed])
    starts = [partial(_start, config, world, folders[seed], jobs) for seed, world in worlds.items()]
    _side_by_side(starts, config.parallel, jobs)
    progress = Progress(len(config.seeds) * len(config.arms) * config.world.num_days)

    def live(seed: int, arm: ArmRun) -> None:
        arm.run(lambda sentence: progress.done(f"seed {seed} {sentence}"))

    arms = [
        partial(live, seed, ArmRun(arm, config, worlds[seed], folders[seed], jobs))
        for seed in config.seeds
        for arm in config.arms
    ]
    _side_by_side(arms, config.parallel, jobs)
    return worlds


def _side_by_side(tasks: Sequence[Callable[[], None]], parallel: int, jobs: Jobs) -> None:
    """Run tasks in threads, `parallel` at a time; the first that fails stops the others and is raised."""
    failures: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            jobs.refuse_stopped()
            task()
        except BaseException as error:
            failures.append(error)
            jobs.stop()  # the same command goes on with the others
            raise

    with ThreadPoolExecutor(parallel) as pool:
        wait([pool.submit(run, task) for task in tasks])
    if failures:
        raise failures[0]


def seed_folder(workspace: Path, seed: int) -> Path:
    """Return the folder of a seed."""
    return workspace / f"seed-{seed}"


class Progress:
    """Says one line a day of an arm, with the time that is left."""

    def __init__(self, num_days: int, clock: Callable[[], float] = time.monotonic):
        """Args: num_days: of all arms together."""
        self._left, self._num_days, self._clock = num_days, num_days, clock
        self._started, self._num_done = clock(), 0
        self._lock = threading.Lock()

    def done(self, sentence: str) -> None:
        """Count one day of one arm; days that were done before do not count for the time left."""
        with self._lock:
            self._left -= 1
            if not sentence.endswith("done before"):
                self._num_done += 1
                each = (self._clock() - self._started) / self._num_done
                minutes = each * self._left / 60
                sentence += (
                    f"; {self._num_days - self._left} of {self._num_days}, {minutes:.0f} min left"
                )
            say(sentence)


def _claim(config: LoopConfig, workspace: Path) -> None:
    """Note the settings of the loop, or compare them with those of the one that is there."""
    note = workspace / "loop.json"
    settings = _settings(config)
    if note.is_file() and not config.overwrite:
        # A loop of an earlier version lacks keys that came later; it is as their defaults make it.
        content = {"workspace": config.workspace, **read_json(note, AGAIN)}
        there = from_config(LoopConfig, content, note.name, stored=True)
        different = _differences(_settings(there), settings)
        if different:
            raise UserError(
                f"{workspace}: holds a loop with other settings ({'; '.join(different)}); use "
                f"overwrite=true to begin anew, or another workspace="
            )
        return
    for folder in sorted(workspace.glob("seed-*")):
        remove_folder(folder)
    workspace.mkdir(parents=True, exist_ok=True)
    write_json(note, settings)


def _settings(config: LoopConfig) -> dict[str, Any]:
    """Return what another loop in the same workspace may not differ in."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE}


def _differences(there: dict[str, Any], given: dict[str, Any]) -> list[str]:
    return [
        f"{key}={there.get(key)} there, {given.get(key)} given"
        for key in sorted({*there, *given})
        if there.get(key) != given.get(key)
    ]


def _paint(config: LoopConfig, world: DayWorld, folder: Path) -> None:
    """Paint the pictures of a seed, unless they are there."""
    pictures = folder / "pictures"
    if pictures.is_dir():
        return
    folder.mkdir(exist_ok=True)
    with stage(f"seed {world.seed} pictures") as painting, new_folder(pictures) as made:
        write_pictures(world, made, config.parallel)
        painting.done(f"{len(world.item_day):,}")


def _start(config: LoopConfig, world: DayWorld, folder: Path, jobs: Jobs) -> None:
    """Make the workspace with a bundle that all arms of a seed start from."""
    start = folder / "start"
    if not start.is_dir():
        with new_folder(start) as made:
            write_start(world, made / "raw", folder / "pictures")
    with stage(f"seed {world.seed} start") as starting:
        steps = start_steps(config, start, world.seed)
        seconds = run_steps(jobs, steps, start / "nights", 0)
        starting.done(f"prepare, embed, train, export, {seconds:.0f} s of jobs")


@contextmanager
def _jobs_of_this_process() -> Iterator[Jobs]:
    """Yield a runner of jobs, which SIGTERM and SIGINT end with this process, and the servers too."""
    jobs = Jobs()
    before = jobs.end_with_this_process()
    try:
        yield jobs
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
