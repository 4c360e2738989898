"""Result of the closed loop: what visitors got from every arm, by day and over all days.

In: the visits of every arm, and the worlds' truth. Out: records that the page shows and loop_result.json
holds. Intervals are percentile bootstraps over users: of a day and of an arm, the users of every seed
are drawn; differences of two arms draw the same users for both, and the seeds too.
Shapes: U users of a seed, R replicates, S seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys.demo.days import DayWorld
from recsys.files import read_json
from recsys.loop.arm import AGAIN
from recsys.loop.loop import seed_folder
from recsys.loop.visits import Visit, read_visits, visits_file
from recsys.metrics.bootstrap import interval, poisson_draws

NUM_REPLICATES = 1000
NEW_DAYS = 3
"""A picture is new on the day it appears and on the two days after."""
MEASURES = {
    "probability": "true probability of a shown picture",
    "bookmarks": "bookmarks a visit",
    "new_share": "share of new pictures among the shown",
    "coverage": "share of the catalogue shown",
    "new_coverage": "share of the new pictures shown",
}
"""Measures by name, with their labels; the first three have intervals."""
REFERENCES = {"never": "the model never refreshed", "ours": "the refreshed model"}
"""Arms that the others are compared with, and what they are called."""
_BY_VISITOR = ("probability", "bookmarks", "new_share")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its 95 % interval; nan bounds where it has none."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm on one day, or over all days, over the seeds together."""

    arm: str
    day: int
    """0: all days."""
    num_visits: int
    measures: dict[str, Estimate]
    """By name of MEASURES."""
    night_seconds: float
    """Of the jobs of the night, mean over seeds (and nights)."""


@dataclass(frozen=True, kw_only=True)
class ArmDifference:
    """Bookmarks a visit of one arm less those of another, over all days."""

    arm: str
    reference: str
    mean: float
    low: float
    high: float
    by_seed: list[float] = field(default_factory=list)

    @property
    def verdict(self) -> Literal["better", "worse", "within noise"]:
        """`better`, `worse`, or `within noise` where the interval holds 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "within noise"


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """Result of a loop."""

    seeds: list[int]
    arms: list[str]
    days: list[Row]
    """A row for each arm and day."""
    arms_total: list[Row]
    """A row for each arm, over all days."""
    differences: list[ArmDifference]


@dataclass(frozen=True)
class _Sums:
    """Sums of one arm, seed and day by user [U]."""

    visits: NDArray[np.float64]
    shown: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    """By name of _BY_VISITOR: of the shown pictures' probabilities, of bookmarks, of new pictures."""
    items: NDArray[np.bool_]
    """Pictures shown [N]."""
    there: NDArray[np.bool_]
    """Pictures that are there [N]."""
    new: NDArray[np.bool_]
    """New pictures [N]."""

    def parts(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return numerator and denominator of a measure by user [U]."""
        return self.values[name], self.visits if name == "bookmarks" else self.shown


def loop_result(worlds: Mapping[int, DayWorld], arms: Sequence[str], workspace: Path) -> LoopResult:
    """Return the result of a loop whose days are over."""
    num_days = next(iter(worlds.values())).config.num_days
    days = range(1, num_days + 1)
    found = {
        (seed, arm, day): _sums(world, day, _visits(workspace, seed, arm, day))
        for seed, world in worlds.items()
        for arm in arms
        for day in days
    }
    nights = {key: _night_seconds(workspace, *key) for key in found}
    draws = {seed: _draws(world, seed) for seed, world in worlds.items()}
    seeds = list(worlds)

    def row(arm: str, of_days: Sequence[int], day: int) -> Row:
        by_seed = {seed: [found[seed, arm, d] for d in of_days] for seed in seeds}
        measures = {name: _estimate(by_seed, name, draws) for name in _BY_VISITOR}
        measures["coverage"] = Estimate(value=_coverage(by_seed, "there"))
        measures["new_coverage"] = Estimate(value=_coverage(by_seed, "new"))
        visits = sum(float(s.visits.sum()) for sums in by_seed.values() for s in sums)
        seconds = [nights[seed, arm, d] for seed in seeds for d in of_days if d < num_days]
        mean = float(np.mean(seconds)) if seconds else 0.0
        return Row(arm=arm, day=day, num_visits=int(visits), measures=measures, night_seconds=mean)

    return LoopResult(
        seeds=seeds,
        arms=list(arms),
        days=[row(arm, [day], day) for arm in arms for day in days],
        arms_total=[row(arm, days, 0) for arm in arms],
        differences=[
            _difference(found, (arm, reference), days, draws)
            for reference in REFERENCES
            for arm in arms
            if reference in arms and arm != reference
        ],
    )


def _visits(workspace: Path, seed: int, arm: str, day: int) -> list[Visit]:
    return read_visits(visits_file(seed_folder(workspace, seed) / arm, day))


def _night_seconds(workspace: Path, seed: int, arm: str, day: int) -> float:
    over = visits_file(seed_folder(workspace, seed) / arm, day).with_suffix(".json")
    return float(read_json(over, AGAIN)["night_seconds"])


def _sums(world: DayWorld, day: int, visits: Sequence[Visit]) -> _Sums:
    num_users, num_items = len(world.user_day), len(world.item_day)
    truth = world.probabilities(day)
    new_N = (world.item_day > max(day - NEW_DAYS, 0)) & (world.item_day <= day)
    visits_U, shown_U = np.zeros(num_users), np.zeros(num_users)
    values = {name: np.zeros(num_users) for name in _BY_VISITOR}
    items_N = np.zeros(num_items, bool)
    for visit in visits:
        user, shown = visit.user, visit.shown
        visits_U[user] += 1
        shown_U[user] += len(shown)
        values["probability"][user] += truth[user, shown].sum()
        values["bookmarks"][user] += len(visit.liked)
        values["new_share"][user] += new_N[shown].sum()
        items_N[shown] = True
    return _Sums(visits_U, shown_U, values, items_N, world.item_day <= day, new_N)


def _draws(world: DayWorld, seed: int) -> NDArray[np.uint8]:
    """Return how often each user of a seed is drawn [U, R]: the same for all arms and days."""
    return poisson_draws(np.arange(len(world.user_day)), NUM_REPLICATES, seed)


def _estimate(
    by_seed: Mapping[int, Sequence[_Sums]], name: str, draws: Mapping[int, NDArray[np.uint8]]
) -> Estimate:
    """Return a measure over seeds, with its interval over users drawn [U, R] by seed."""
    above, below = 0.0, 0.0
    above_R, below_R = np.zeros(NUM_REPLICATES), np.zeros(NUM_REPLICATES)
    for seed, sums in by_seed.items():
        top_U, bottom_U = _sum_of_days(sums, name)
        above, below = above + top_U.sum(), below + bottom_U.sum()
        above_R += top_U @ draws[seed]
        below_R += bottom_U @ draws[seed]
    low, high = interval(above_R / np.maximum(below_R, 1))
    return Estimate(value=float(above / max(below, 1)), low=low, high=high)


def _sum_of_days(
    sums: Sequence[_Sums], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return numerator and denominator of a measure over days, by user [U]."""
    above, below = zip(*(s.parts(name) for s in sums), strict=True)
    return np.sum(above, axis=0), np.sum(below, axis=0)


def _coverage(by_seed: Mapping[int, Sequence[_Sums]], of: Literal["there", "new"]) -> float:
    """Return the share of pictures that anybody was shown, mean over seeds; nan where there is none."""
    shares = []
    for sums in by_seed.values():
        shown_N = np.any([s.items & getattr(s, of) for s in sums], axis=0)
        count = int(np.any([getattr(s, of) for s in sums], axis=0).sum())
        shares.append(shown_N.sum() / count if count else np.nan)
    return float(np.mean(shares))


def _difference(
    found: Mapping[tuple[int, str, int], _Sums],
    arms: tuple[str, str],
    days: Sequence[int],
    draws: Mapping[int, NDArray[np.uint8]],
) -> ArmDifference:
    """Return the difference of bookmarks a visit; users are drawn in pairs [U, R], and seeds, too."""
    means, replicates = [], []
    for seed, draws_UR in draws.items():
        (ours_U, visits_U), (theirs_U, others_U) = (
            _sum_of_days([found[seed, arm, day] for day in days], "bookmarks") for arm in arms
        )
        assert (visits_U == others_U).all(), "arms meet the same visitors"
        means.append(float((ours_U - theirs_U).sum() / visits_U.sum()))
        drawn_R = (ours_U - theirs_U) @ draws_UR
        replicates.append(drawn_R / np.maximum(visits_U @ draws_UR, 1))
    difference_SR = np.stack(replicates)
    drawn_SR = np.random.default_rng(0).integers(len(means), size=difference_SR.shape)
    low, high = interval(difference_SR[drawn_SR, np.arange(NUM_REPLICATES)].mean(axis=0))
    mean = float(np.mean(means))
    return ArmDifference(
        arm=arms[0], reference=arms[1], mean=mean, low=low, high=high, by_seed=means
    )
