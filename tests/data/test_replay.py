"""Replay: earlier rows of every split by its share, each at most once, other ones after every append."""

from types import SimpleNamespace

import numpy as np
import pytest

from recsys.data.replay import replay_ranges


def manifest(**rows):
    return SimpleNamespace(splits={n: SimpleNamespace(num_rows=count) for n, count in rows.items()})


def places(ranges):
    """(split, place) of every row of ranges."""
    return [(one.split, place) for one in ranges for place in range(one.start, one.stop)]


@pytest.mark.parametrize("num_rows", [0, 1, 7, 100, 999, 1000])
def test_every_split_gives_its_share_and_no_row_is_drawn_twice(num_rows):
    sizes = {"train": 800, "valid": 0, "test": 150, "window_0001": 50}
    for seed in range(20):
        found = places(replay_ranges(manifest(**sizes), list(sizes), num_rows, seed))
        assert len(found) == len(set(found)) == num_rows
        for split, size in sizes.items():
            own = [place for name, place in found if name == split]
            assert abs(len(own) - num_rows * size / 1000) < 1 and all(0 <= p < size for p in own)


def test_no_more_rows_are_replayed_than_there_are():
    found = replay_ranges(manifest(train=5, test=3), ["train", "test"], 10**12, 0)
    assert sorted(places(found)) == [
        *(("test", place) for place in range(3)),
        *(("train", place) for place in range(5)),
    ]
    assert replay_ranges(manifest(train=5), [], 10, 0) == []


def test_shares_of_very_many_rows_are_exact():
    found = replay_ranges(manifest(train=10**10, test=10**9), ["train", "test"], 11 * 10**8, 0)
    sizes = {
        split: sum(r.num_rows for r in found if r.split == split) for split in ("train", "test")
    }
    assert sizes == {"train": 10**9, "test": 10**8}
    assert all(0 <= one.start < one.stop for one in found)


def test_rows_are_drawn_uniformly():
    draws = [places(replay_ranges(manifest(train=12), ["train"], 4, seed)) for seed in range(3000)]
    counts = np.bincount([place for draw in draws for _, place in draw])
    # A row's count is binomial: 3,000 draws with probability 1/3, standard deviation 26.
    assert len(counts) == 12 and (abs(counts - 1000) < 4 * 26).all()


def test_a_sample_depends_on_the_seed_and_on_the_rows_before():
    def sample(seed=0, **more):
        sizes = {"train": 10_000, **more}
        return places(replay_ranges(manifest(**sizes), ["train", *more], 100, seed))

    assert sample() == sample() != sample(seed=1)
    overlap = set(sample()) & set(sample(window_0001=10))
    assert len(overlap) < 50, "the next day replays other rows"
