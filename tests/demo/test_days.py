"""The drawn world over days: equal for equal seeds, true to its formula, news on their days."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.demo.days import (
    DaysConfig,
    add_items,
    add_users,
    day_start,
    debuts,
    draw_days,
    start_log,
    write_start,
)
from recsys.demo.exposure import MODALITIES
from recsys.demo.style import HANDS

SMALL = DaysConfig(num_days=4, num_items=60, items_per_day=12, num_users=20, users_per_day=3,
                   num_exposures=300, num_captions=20)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return draw_days(SMALL, seed=5)


def test_drawn_again_the_world_of_all_days_is_the_same(world):
    again = draw_days(SMALL, seed=5)
    assert again.items.words == world.items.words
    assert np.array_equal(again.items.hand, world.items.hand)
    assert np.array_equal(again.probabilities(4), world.probabilities(4))
    assert start_log(again).equals(start_log(world))
    assert not np.array_equal(draw_days(SMALL, seed=6).items.hand, world.items.hand)


def test_truth_of_a_day_is_the_formula_with_the_tastes_of_that_day(world):
    day, user, item = 3, 7, 41
    audience, logit = world.audience, SMALL.bias + world.audience.bias[7]
    for place, modality in enumerate(MODALITIES):
        x, y = audience.tastes[modality][user]
        angle = world.turns[day, user, place]
        turned = (x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle))
        score = np.dot(turned, world.positions[modality][item])
        logit += audience.sensitivities[user, place] * score
    assert world.probabilities(day)[user, item] == pytest.approx(1 / (1 + np.exp(-logit)))


def test_tastes_turn_day_by_day_with_the_stated_deviation_and_keep_their_length():
    world = draw_days(dataclasses.replace(SMALL, num_users=4000, num_exposures=300), seed=1)
    steps = np.diff(world.turns, axis=0)
    assert steps.std() == pytest.approx(SMALL.drift, rel=0.02)
    assert np.allclose(np.linalg.norm(world.tastes(4)["style"], axis=1), 1)
    assert np.array_equal(world.tastes(0)["style"], world.audience.tastes["style"])


def test_tastes_stay_without_drift():
    world = draw_days(dataclasses.replace(SMALL, drift=0.0), seed=1)
    assert np.array_equal(world.probabilities(1), world.probabilities(4))


def test_pictures_and_users_come_on_their_days(world):
    assert [len(world.items_until(day)) for day in range(5)] == [60, 60, 72, 84, 96]
    assert [len(world.users_until(day)) for day in range(5)] == [20, 23, 26, 29, 32]


def test_a_quarter_of_the_artists_appears_over_the_days_and_none_paints_before(world):
    days = debuts(12, 10, np.random.default_rng(0))
    assert sorted(days[days > 0]) == [2, 5, 8]
    for hand in range(len(HANDS)):
        own = world.item_day[world.items.hand == hand]
        late = len(own) and own.min() > 0
        assert not late or (own >= own.min()).all()
    at_start = set(world.items.hand[world.item_day == 0])
    assert len(at_start) == len(HANDS) - 3


def test_log_before_day_1_knows_the_first_pictures_and_users_alone(world):
    log = start_log(world)
    assert log.num_rows == SMALL.num_exposures
    assert max(log["timestamp"].to_pylist()) < day_start(1)
    assert set(log["item_id"].to_pylist()) <= set(world.item_ids[:60])
    assert set(log["user_id"].to_pylist()) <= set(world.user_ids[:20])
    pairs = list(zip(log["user_id"].to_pylist(), log["item_id"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs), "nobody is shown a picture twice"


def test_days_are_written_as_parts_of_items_and_users(world, tmp_path):
    pictures, raw = tmp_path / "pictures", tmp_path / "raw"
    pictures.mkdir()
    for name in world.item_ids:
        (pictures / f"{name}.png").write_bytes(name.encode())
    write_start(world, raw, pictures)
    assert add_items(world, raw, pictures, 1) == 0 and add_users(world, raw, 1) == 3
    assert add_items(world, raw, pictures, 2) == 12
    parts = [pq.read_table(path) for path in sorted((raw / "items").iterdir())]
    assert [part.num_rows for part in parts] == [60, 12]
    ids = [name for part in parts for name in part["item_id"].to_pylist()]
    assert ids == world.item_ids[:72] and len(list((raw / "images").iterdir())) == 72
    assert pq.read_table(raw / "users" / "day-001.parquet")["user_id"].to_pylist() == [
        "u00020", "u00021", "u00022"
    ]  # fmt: skip
