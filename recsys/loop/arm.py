"""One arm of the loop: its visitors day by day, and its nights; a killed arm goes on where it was.

    <seed>/start/          the workspace before day 1: raw/, prepared/, features/, runs/, bundles/
    <seed>/<arm>/          the arm's own: a copy of it, with its own log and events.db
      visits/day-003.jsonl   visits of a day (visits.py); .json: the day and its night are over
      nights/day-003.json    jobs of the night after it that are done, and their seconds
      nights/day-003/        their output

Called by loop.py, in a thread for each arm.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recsys.bundle.spec import CURRENT, resolve
from recsys.demo.days import DayWorld, add_items, add_users, part_name
from recsys.files import new_folder, read_json, write_json
from recsys.loop.config import ARMS, Arm, LoopConfig
from recsys.loop.night import Jobs, Step, night_steps
from recsys.loop.rules import Rule
from recsys.loop.site import Site
from recsys.loop.visitors import Visitors
from recsys.loop.visits import Visit, read_visits, visits_file, visits_writer
from recsys.overrides import override
from recsys.serving.load.server import started_server

Chooser = Rule | Site
AGAIN = "run launch/loop.py again with overwrite=true"


class ArmRun:
    """One arm in one world."""

    def __init__(self, name: str, config: LoopConfig, world: DayWorld, folder: Path, jobs: Jobs):
        """Args: folder: of the seed; the arm's is below it."""
        self.name, self.config, self.world, self.jobs = name, config, world, jobs
        self.arm: Arm = ARMS[name]
        self.visitors = Visitors(world, config.visitors)
        self.start, self.folder = folder / "start", folder / name
        self.pictures = folder / "pictures"
        self._seen = _shown_before(world, self.start)

    def run(self, day_done: Callable[[str], None]) -> None:
        """Live through all days.

        Args:
            day_done: called after every day and its night with a sentence about it.
        """
        self._make_folder()
        num_days = self.config.world.num_days
        first = next((d for d in range(1, num_days + 1) if not self._is_over(d)), num_days + 1)
        past = [read_visits(visits_file(self.folder, day)) for day in range(1, first)]
        for day, visits in enumerate(past, start=1):
            self._remember(visits)
            day_done(f"{self.name} day {day}: done before")
        if first > num_days:
            return
        with self._chooser() as chooser:
            for day, visits in enumerate(past, start=1):
                _tell(chooser, day, visits)
            for day in range(first, num_days + 1):
                visits = self._day(day, chooser)
                self._remember(visits)
                seconds = self._night(day, chooser) if day < num_days else 0.0
                write_json(self._over(day), {"night_seconds": seconds})
                day_done(f"{self.name} day {day}: {_sentence(visits)}, night {seconds:.0f} s")

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        with new_folder(self.folder) as made:
            if self.arm.served:
                shutil.copytree(self.start, made, dirs_exist_ok=True)

    # The day

    @contextmanager
    def _chooser(self) -> Iterator[Chooser]:
        """Yield the site of a running server, or the rule, which knows the log before day 1."""
        if not self.arm.served:
            yield Rule(self.name, self.world, _likes(self.world, self.start))
            return
        with started_server(self.server_arguments(), self.folder / "server.log") as server:
            site = Site(server, self.visitors)
            yield site
            site.close()

    def server_arguments(self) -> list[str]:
        """Return the arguments of launch/serve.py, but the port."""
        arguments = [
            override("bundle", self.folder / "bundles" / CURRENT),
            override("events", self.folder / "events.db"),
            "workers=1",
        ]
        kind = self.arm.explores
        if kind:
            arguments.append(override(f"explore.{kind}", getattr(self.config, kind)))
        return arguments

    def _day(self, day: int, chooser: Chooser) -> list[Visit]:
        """Return the visits of a day, of which those in its file are not made again."""
        path = visits_file(self.folder, day)
        visits = read_visits(path)
        _tell(chooser, day, visits)
        with visits_writer(path) as writer:
            for place, user in enumerate(self.visitors.of_day(day)):
                if place < len(visits):
                    continue
                self.jobs.refuse_stopped()
                visit = self._visit(day, user, chooser)
                writer.add(visit)
                visits.append(visit)
                chooser.tell(day, place, visit)
        return visits

    def _visit(self, day: int, user: int, chooser: Chooser) -> Visit:
        size = self.config.visitors.pictures
        shown, version = chooser.choose(day, user, size, self._seen[user])
        return Visit(user, shown, self.visitors.bookmarks(day, user, shown), version)

    def _remember(self, visits: Sequence[Visit]) -> None:
        for visit in visits:
            self._seen[visit.user] += visit.shown

    # The night

    def _night(self, day: int, chooser: Chooser) -> float:
        """Run the night's jobs that are not done yet; return the seconds of all of them."""
        if self.arm.night == "items":
            new = np.flatnonzero(self.world.item_day == day + 1)
            chooser.add_items(new.tolist(), self.pictures)
        steps = self.steps(day)
        if not steps:
            return 0.0
        raw = self.folder / "raw"
        add_users(self.world, raw, day)
        add_items(self.world, raw, self.pictures, day + 1)
        seconds = run_steps(self.jobs, steps, self.folder / "nights", day)
        chooser.wait_for(resolve(self.folder / "bundles" / CURRENT).name)
        return seconds

    def steps(self, day: int) -> list[Step]:
        """Return the jobs of the night after a day."""
        return night_steps(self.arm.night, self.config, self.folder, day, self.world.seed)

    def _over(self, day: int) -> Path:
        """Return the file that says that a day and its night are over."""
        return self.folder / "visits" / f"day-{day:03d}.json"

    def _is_over(self, day: int) -> bool:
        return self._over(day).is_file()


def _tell(chooser: Chooser, day: int, visits: Sequence[Visit]) -> None:
    """Tell a chooser that has just begun about visits of an earlier process."""
    for place, visit in enumerate(visits):
        chooser.tell(day, place, visit)


def _sentence(visits: Sequence[Visit]) -> str:
    num_liked = sum(len(visit.liked) for visit in visits)
    return f"{len(visits)} visits, {num_liked / max(len(visits), 1):.2f} bookmarks a visit"


def run_steps(jobs: Jobs, steps: Sequence[Step], folder: Path, day: int) -> float:
    """Run the jobs that `<folder>/day-003.json` does not call done; return the seconds of all."""
    note = folder / f"day-{day:03d}.json"
    done = read_json(note, AGAIN)["seconds"] if note.is_file() else {}
    for step in steps:
        if step.name not in done:
            done[step.name] = jobs.run(step, folder / f"day-{day:03d}")
            write_json(note, {"seconds": done})
    return float(sum(done.values()))


def _shown_before(world: DayWorld, start: Path) -> list[list[int]]:
    """Return the pictures that every user was shown before day 1."""
    seen: list[list[int]] = [[] for _ in world.user_day]
    for user, item, _ in _log_rows(world, start):
        seen[user].append(item)
    return seen


def _likes(world: DayWorld, start: Path) -> list[tuple[int, int]]:
    return [(user, item) for user, item, label in _log_rows(world, start) if label]


def _log_rows(world: DayWorld, start: Path) -> Iterator[tuple[int, int, int]]:
    """Yield (user, picture, label) of the log before day 1, by index."""
    users = {name: index for index, name in enumerate(world.user_ids)}
    items = {name: index for index, name in enumerate(world.item_ids)}
    path = start / "raw" / "interactions" / part_name(0)
    log = pq.read_table(path, columns=["user_id", "item_id", "label"]).to_pydict()
    for user, item, label in zip(log["user_id"], log["item_id"], log["label"], strict=True):
        yield users[user], items[item], label
