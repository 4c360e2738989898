"""Coverage, novelty, popularity lift and diversity, by hand and against slow loops."""

import itertools
import math

import numpy as np
import pytest

from recsys.metrics.beyond_accuracy import (
    coverage,
    intra_list_diversity,
    novelty,
    popularity_lift,
)


def test_coverage_counts_items_once_and_not_the_unknown():
    assert coverage([[1, 2], [2, -1], [0, 2]], num_item_rows=5) == 0.5
    assert coverage(np.zeros((0, 3)), num_item_rows=5) == 0
    assert math.isnan(coverage([[-1]], num_item_rows=1))


def test_novelty_of_uniform_popularity_is_the_bits_of_the_catalogue():
    assert novelty([[1, 5], [3, -1]], count_I=[9] + [4] * 8) == pytest.approx(3)
    # counts + 1: 1, 3 of 4; item without a row: 2 bits, the other log2(4/3)
    assert novelty([[1, 2]], count_I=[0, 0, 2]) == pytest.approx((2 + math.log2(4 / 3)) / 2)
    assert math.isnan(novelty([[-1, -1]], count_I=[0, 1]))


def test_popularity_lift_is_zero_for_the_users_own_taste():
    counts = np.array([0, 10, 20, 30])
    assert popularity_lift([[1, 2]], count_I=counts, profile_mean_U=[15]) == pytest.approx(0)
    # user 2 has no history and user 3 no list: (30) / (10) - 1
    lists = [[3, -1], [1, 1], [-1, -1]]
    profile = [10, np.nan, 10]
    assert popularity_lift(lists, count_I=counts, profile_mean_U=profile) == pytest.approx(2)
    assert math.isnan(popularity_lift([[1]], count_I=counts, profile_mean_U=[np.nan]))
    assert math.isnan(popularity_lift([[1]], count_I=counts, profile_mean_U=[0]))


def test_diversity_equals_the_loop_over_pairs(rng):
    vectors = rng.normal(size=(9, 4))
    vectors[[0, 4]] = 0
    lists = [[1, 2, 3, 4], [5, 6, -1, -1], [4, 7, -1, -1], [8, 8, 8, -1]]

    def distance(a, b):
        u, v = vectors[a], vectors[b]
        return 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    expected = [
        np.mean([distance(a, b) for a, b in itertools.combinations(items, 2)])
        for items in ([1, 2, 3], [5, 6], [8, 8, 8])
    ]
    found = intra_list_diversity(lists, vectors_IE=vectors)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)
    assert math.isnan(intra_list_diversity([[4, 7]], vectors_IE=vectors))


def test_rows_outside_the_catalogue_are_refused():
    with pytest.raises(ValueError, match="rows 1 to 9: expected -1 to 4"):
        coverage([[1, 9]], num_item_rows=5)
    with pytest.raises(ValueError, match=r"lists \(2,\)"):
        novelty([1, 2], count_I=[1, 1])
