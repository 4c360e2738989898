"""The drawn world over days: new pictures and users day by day, and tastes that drift.

A quarter of the artists, subjects and themes is unknown at the start; they appear one after the other
over the days. Every day, each user's taste turns by a random angle in every modality:

    t_u,m(day) = t_u,m(day - 1) turned by a normal angle with standard deviation `drift` (radians)

The probability of a bookmark is that of exposure.py with the tastes of the day. Everything is drawn from
one seed. Days are numbered from 1; day 0 is the time before. Called by recsys/loop.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from recsys.demo.exposure import MODALITIES, Audience, draw_audience, draw_exposures, factors
from recsys.demo.scenes import SCENES, SUBJECTS
from recsys.demo.style import HANDS
from recsys.demo.words import THEME_WORDS, item_words, text_pairs
from recsys.demo.world import (
    Items,
    age_group_name,
    country_name,
    item_ids,
    paint,
    positions_of,
    user_ids,
    write_items,
    write_pairs,
    write_users,
)
from recsys.files import new_file

DAY_SECONDS = 24 * 3600
_DAY_1 = 1_735_689_600
"""Start of day 1: 2025-01-01, UTC."""
_START_DAYS = 30
"""Days that the log reaches back before day 1."""
_LATE_SHARE = 0.25
"""Of artists, subjects and themes: unknown at the start."""
_NEWS = 4.0
"""Weight of an artist, subject or theme on the two days after it appeared, against 1."""
_LOG = pa.schema([
    ("user_id", pa.string()),
    ("item_id", pa.string()),
    ("timestamp", pa.int64()),
    ("label", pa.uint8()),
    ("shown", pa.bool_()),
    ("opened", pa.bool_()),
    ("hidden", pa.bool_()),
    ("position", pa.int32()),
    ("propensity", pa.float64()),
    ("weight", pa.float64()),
])
"""Columns of a log of events with weights, which the log before day 1 has too."""


@dataclass(frozen=True, kw_only=True)
class DaysConfig:
    """Size and nature of the drawn world over days."""

    num_days: Annotated[int, Field(ge=1)] = 10
    """Days."""
    num_items: Annotated[int, Field(ge=50)] = 320
    """Pictures on day 1."""
    items_per_day: Annotated[int, Field(ge=0)] = 20
    """Pictures that appear on every later day."""
    num_users: Annotated[int, Field(ge=10)] = 200
    """Users before day 1."""
    users_per_day: Annotated[int, Field(ge=0)] = 8
    """Users who come for the first time on every day."""
    num_exposures: Annotated[int, Field(ge=100)] = 8000
    """Rows of the log before day 1."""
    num_captions: int = 1500
    """Caption pairs for the text encoder, beside names, relations and explanations."""
    picture_size: int = 64
    """Side of a picture in pixels."""
    strength: float = 4.0
    """Sum of a user's three sensitivities: how decided tastes are."""
    concentration: float = 0.8
    """Evenness of the sensitivities; below 1 many users care for one thing mostly."""
    bias: float = -3.6
    """Constant of the logit; sets the bookmark rate."""
    drift: Annotated[float, Field(ge=0)] = 0.15
    """Standard deviation of the angle by which a taste turns each day, in radians; 0: tastes stay."""

    def problems(self) -> list[str]:
        """Return a text where the log would need more pairs than there are."""
        most = self.num_users * self.num_items // 4
        if self.num_exposures <= most:
            return []
        return [
            f"num_exposures={self.num_exposures}: expected at most a quarter of num_users x "
            f"num_items, {most}"
        ]


@dataclass(frozen=True, kw_only=True)
class DayWorld:
    """The world and its truth."""

    config: DaysConfig
    seed: int
    items: Items
    """Of all days."""
    item_day: NDArray[np.int64]
    """[items] day on which the picture appears; 0: it was there before day 1."""
    positions: dict[str, np.ndarray]
    """[items, 2] per modality."""
    audience: Audience
    """Users of all days, with their tastes before day 1."""
    user_day: NDArray[np.int64]
    """[users] day of the first visit; 0: known before day 1."""
    turns: NDArray[np.float64]
    """[days + 1, users, modalities] angle by which tastes have turned since, in radians; 0 on day 0."""
    _truth: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """Probabilities of the days asked for so far."""

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items by index."""
        return item_ids(len(self.item_day))

    @property
    def user_ids(self) -> list[str]:
        """Ids of the users by index."""
        return user_ids(len(self.user_day))

    def features_of(self, user: int) -> dict[str, str]:
        """Return what a site knows of a user at the first visit, by feature."""
        audience = self.audience
        return {
            "age_group": age_group_name(audience, user),
            "country": country_name(audience, user),
        }

    def items_until(self, day: int) -> NDArray[np.int64]:
        """Return the indices [N] of the pictures that are there on a day."""
        return np.flatnonzero(self.item_day <= day)

    def users_until(self, day: int) -> NDArray[np.int64]:
        """Return the indices [U] of the users who may come on a day."""
        return np.flatnonzero(self.user_day <= day)

    def tastes(self, day: int) -> dict[str, np.ndarray]:
        """Return the tastes of a day: unit vectors [users, 2] per modality."""
        found = {}
        for place, modality in enumerate(MODALITIES):
            x, y = self.audience.tastes[modality].T
            cos, sin = np.cos(self.turns[day, :, place]), np.sin(self.turns[day, :, place])
            found[modality] = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)
        return found

    def probabilities(self, day: int) -> NDArray[np.float64]:
        """Return the true probability of a bookmark on a day [users, items], by the formula."""
        if day not in self._truth:
            audience = dataclasses.replace(self.audience, tastes=self.tastes(day))
            users, items = factors(audience, self.positions, self.config.bias)
            self._truth[day] = 1 / (1 + np.exp(-users @ items.T))
        return self._truth[day]


def day_start(day: int) -> int:
    """Return the first second of a day, since 1970."""
    return _DAY_1 + (day - 1) * DAY_SECONDS


def draw_days(config: DaysConfig, seed: int) -> DayWorld:
    """Draw the world of all days, without pictures."""
    rng = np.random.default_rng([seed, 20])
    days = np.arange(2, config.num_days + 1)
    item_day = np.repeat([0, *days], [config.num_items, *[config.items_per_day] * len(days)])
    items = _draw_items(item_day, config.num_days, rng)
    positions = positions_of(items, rng)
    days = np.arange(1, config.num_days + 1)
    user_day = np.repeat([0, *days], [config.num_users, *[config.users_per_day] * len(days)])
    audience = draw_audience(len(user_day), config.strength, config.concentration, rng)
    turns = rng.normal(0, config.drift, (config.num_days + 1, len(user_day), len(MODALITIES)))
    turns[0] = 0
    return DayWorld(
        config=config,
        seed=seed,
        items=items,
        item_day=item_day,
        positions=positions,
        audience=audience,
        user_day=user_day,
        turns=turns.cumsum(axis=0),
    )


def debuts(count: int, num_days: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the day [count] on which each of some names appears; 0 for those known from the start."""
    late = rng.permutation(count)[: round(_LATE_SHARE * count)]
    days = np.zeros(count, np.int64)
    if num_days > 1:
        days[late] = 2 + np.arange(len(late)) * (num_days - 1) // len(late)
    return days


def _draw_items(item_day: NDArray[np.int64], num_days: int, rng: np.random.Generator) -> Items:
    """Draw subject, scene, artist and theme of every item, among those known on its day."""

    def drawn(count: int, appear: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a name's index for each item [N]; appear: the days of the names [count]."""
        chosen = np.empty(len(item_day), np.int64)
        for place, day in enumerate(item_day):
            weight = np.where(appear > day, 0.0, 1.0)
            weight[(appear > 0) & (appear <= day) & (appear > day - 2)] = _NEWS
            chosen[place] = rng.choice(count, p=weight / weight.sum())
        return chosen

    names = [list(SUBJECTS), list(SCENES), list(THEME_WORDS)]
    subjects, scenes, themes = (
        [known[i] for i in drawn(len(known), appear)]
        for known, appear in (
            (names[0], debuts(len(names[0]), num_days, rng)),
            (names[1], np.zeros(len(names[1]), np.int64)),
            (names[2], debuts(len(names[2]), num_days, rng)),
        )
    )
    hand = drawn(len(HANDS), debuts(len(HANDS), num_days, rng))
    words = [item_words(*named, rng) for named in zip(subjects, scenes, themes, strict=True)]
    return Items(subjects, scenes, hand, themes, words)


def write_pictures(world: DayWorld, folder: Path, processes: int) -> None:
    """Paint the pictures of all days into a folder."""
    size = world.config.picture_size
    paint(world.items, folder, size=size, seed=world.seed, processes=processes)


def start_log(world: DayWorld) -> pa.Table:
    """Return the log before day 1, by time: what some recommender showed to the first users.

    It showed one picture at a time, so that every row was looked at.
    """
    config = world.config
    rng = np.random.default_rng([world.seed, 21])
    first = world.users_until(0)
    audience = dataclasses.replace(
        world.audience,
        tastes={name: taste[first] for name, taste in world.audience.tastes.items()},
        sensitivities=world.audience.sensitivities[first],
        bias=world.audience.bias[first],
    )
    there = world.items_until(0)
    exposures = draw_exposures(
        audience,
        {name: position[there] for name, position in world.positions.items()},
        num_exposures=config.num_exposures,
        bias=config.bias,
        rng=rng,
        period=(day_start(1 - _START_DAYS), day_start(1)),
    )
    users, items = world.user_ids, world.item_ids
    none = np.zeros(config.num_exposures, bool)
    columns = {
        "user_id": [users[u] for u in exposures.user],
        "item_id": [items[i] for i in exposures.item],
        "timestamp": exposures.timestamp,
        "label": exposures.label,
        "shown": ~none,
        "opened": none,
        "hidden": none,
        "position": [None] * config.num_exposures,
        "propensity": [None] * config.num_exposures,
        "weight": [1.0] * config.num_exposures,
    }
    return pa.table(columns, schema=_LOG)


def write_start(world: DayWorld, raw: Path, pictures: Path) -> None:
    """Write the raw files of a site on the morning of day 1: log, items and users in folders."""
    for name in ("interactions", "items", "users", "images"):
        (raw / name).mkdir(parents=True)
    pq.write_table(start_log(world), raw / "interactions" / part_name(0))
    pairs = text_pairs(np.random.default_rng([world.seed, 22]), world.config.num_captions)
    write_pairs(raw / "pairs.parquet", pairs)
    add_items(world, raw, pictures, 0)
    add_users(world, raw, 0)


def add_items(world: DayWorld, raw: Path, pictures: Path, day: int) -> int:
    """Write the pictures that appear on a day, and their part of the items; return how many."""
    new = np.flatnonzero(world.item_day == day)
    for index in new:
        name = f"{world.item_ids[index]}.png"
        shutil.copy2(pictures / name, raw / "images" / name)
    return _write_part(raw / "items", day, new, lambda p, n: write_items(p, world.items, n))


def add_users(world: DayWorld, raw: Path, day: int) -> int:
    """Write the users who first came on a day, as a part of the users; return how many."""
    new = np.flatnonzero(world.user_day == day)
    return _write_part(raw / "users", day, new, lambda p, n: write_users(p, world.audience, n))


def _write_part(
    folder: Path, day: int, indices: NDArray[np.int64], write: Callable[[Path, Sequence[int]], None]
) -> int:
    """Write the rows of some indices [N] as a day's part, if there are any; return how many."""
    if len(indices):
        with new_file(folder / part_name(day)) as path:
            write(path, indices.tolist())
    return len(indices)


def part_name(day: int) -> str:
    """Return the name of a day's part file."""
    return f"day-{day:03d}.parquet"
