"""Visitors: position bias as stated, bookmarks by the truth, the same luck whatever is shown."""

import numpy as np
import pytest

from recsys.demo.days import DaysConfig, draw_days
from recsys.loop.config import VisitorsConfig
from recsys.loop.rules import Rule
from recsys.loop.visitors import Visitors, examination
from recsys.loop.visits import Visit

SMALL = DaysConfig(num_days=3, num_items=80, items_per_day=10, num_users=60, users_per_day=5,
                   num_exposures=300)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return draw_days(SMALL, seed=2)


def visitors(world, **more):
    return Visitors(world, VisitorsConfig(**more))


def test_places_are_looked_at_with_the_stated_probability(world):
    people = visitors(world, position_bias=1.0, pictures=4)
    looks = np.mean(
        [people.looks(day, user) for day in range(1, 4) for user in range(75)]
        + [people.looks(day, user) for day in range(4, 30) for user in range(75)],
        axis=0,
    )
    assert looks[0] == 1
    assert looks == pytest.approx(examination(4, 1.0), abs=0.03)
    assert examination(4, 1.0).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_without_position_bias_every_place_is_looked_at(world):
    assert visitors(world, position_bias=0.0).looks(1, 3).all()


def test_bookmarks_follow_the_true_probability(world):
    people, day = visitors(world), 2
    would = np.array([people.would_bookmark(day, user) for user in range(75)])
    truth = world.probabilities(day)
    assert would.mean() == pytest.approx(truth.mean(), abs=0.015)
    likely = truth > 0.8
    assert would[likely].mean() == pytest.approx(truth[likely].mean(), abs=0.05)


def test_a_picture_is_bookmarked_where_its_place_is_looked_at_and_it_is_liked(world):
    people = visitors(world)
    looks, would = people.looks(1, 4), people.would_bookmark(1, 4)
    shown = np.argsort(~would, kind="stable")[:10].tolist()
    expected = [item for place, item in enumerate(shown) if looks[place] and would[item]]
    assert people.bookmarks(1, 4, shown) == expected and expected


def test_arms_meet_the_same_visitors_with_the_same_luck(world):
    one, other = visitors(world), visitors(draw_days(SMALL, seed=2))
    assert one.of_day(2) == other.of_day(2)
    # The same picture at the same place is bookmarked by both or by none, whatever else is shown.
    first, second = [3, 14, 15], [3, 14, 16]
    for user in one.of_day(2):
        ours, theirs = one.bookmarks(2, user, first), other.bookmarks(2, user, second)
        assert [i for i in ours if i != 15] == [i for i in theirs if i != 16]


def test_new_users_come_on_their_first_day_and_others_now_and_then(world):
    people = visitors(world, visit_rate=0.5)
    days = [set(people.of_day(day)) for day in (1, 2, 3)]
    for day, came in enumerate(days, start=1):
        assert set(np.flatnonzero(world.user_day == day)) <= came
        assert came <= set(world.users_until(day))
        assert 0.3 * len(world.users_until(day)) < len(came) < 0.75 * len(world.users_until(day))
    assert len({frozenset(day) for day in days}) == 3


def test_rules_show_what_is_there_and_not_yet_seen_by_their_own_order(world):
    oracle = Rule("oracle", world, [])
    shown, version = oracle.choose(1, 5, 10, seen=[1, 2, 3])
    truth = world.probabilities(1)[5]
    left = [i for i in np.argsort(-truth, kind="stable") if i < 80 and i not in (1, 2, 3)]
    assert shown == left[:10] and version == ""

    popularity = Rule("popularity", world, [(0, 7), (1, 7), (2, 9)])
    assert popularity.choose(1, 5, 2, [])[0] == [7, 9]
    for user in (3, 4):
        popularity.tell(1, 0, Visit(user, [9, 11], [9]))
    assert popularity.choose(1, 5, 2, [])[0] == [9, 7]

    random = Rule("random", world, [])
    assert random.choose(1, 5, 10, []) == Rule("random", world, []).choose(1, 5, 10, [])
    assert random.choose(1, 5, 10, [])[0] != random.choose(1, 6, 10, [])[0]
    assert set(random.choose(3, 5, 200, [])[0]) == set(range(100))
