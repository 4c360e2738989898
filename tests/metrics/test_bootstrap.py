"""The bootstrap over users: units, pairing, edge cases."""

import numpy as np
import pytest

from recsys.metrics.auc import auc
from recsys.metrics.bootstrap import bootstrap_auc, interval


def world(rng, num_users=60):
    users = np.repeat(np.arange(num_users), 20)
    labels = rng.integers(0, 2, users.size)
    return labels, labels + rng.normal(0, 1.5, users.size), users


def test_a_replicate_equals_auc_on_the_rows_of_the_drawn_users(rng):
    labels, scores, users = world(rng, num_users=7)
    drawn = np.random.default_rng(3).integers(7, size=7)
    rows = np.concatenate([np.flatnonzero(users == user) for user in drawn])
    replicates = bootstrap_auc(
        labels, scores, users, num_replicates=1, rng=np.random.default_rng(3)
    )
    assert replicates[0] == pytest.approx(auc(labels[rows], scores[rows]), abs=1e-12)


def test_the_interval_holds_the_auc_and_narrows_with_more_users(rng):
    widths = []
    for num_users in (30, 480):
        labels, scores, users = world(rng, num_users)
        replicates = bootstrap_auc(labels, scores, users, num_replicates=200, rng=rng)
        low, high = interval(replicates)
        assert low < auc(labels, scores) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_equal_seeds_draw_equal_users(rng):
    labels, scores, users = world(rng)
    first, second = (
        bootstrap_auc(labels, s, users, num_replicates=20, rng=np.random.default_rng(1))
        for s in (scores, 3 * scores + 1)
    )
    # The same order of scores on the same users: every paired difference is 0.
    np.testing.assert_array_equal(first, second)


def test_replicates_without_both_classes_are_nan_and_left_out_of_the_interval():
    replicates = bootstrap_auc(
        [1, 0], [0.9, 0.1], [0, 1], num_replicates=50, rng=np.random.default_rng(0)
    )
    assert np.isnan(replicates).any()
    assert set(replicates[~np.isnan(replicates)]) == {1.0}
    assert interval(replicates) == (1.0, 1.0)


def test_no_rows_give_nan():
    replicates = bootstrap_auc([], [], [], num_replicates=2, rng=np.random.default_rng(0))
    assert np.isnan(replicates).all()
    assert np.isnan(interval(replicates)).all()


def test_a_level_outside_zero_and_one_is_refused():
    with pytest.raises(ValueError, match="level=95"):
        interval([0.5], level=95)


def test_user_rows_of_another_length_are_refused(rng):
    with pytest.raises(ValueError, match=r"user rows \(1,\)"):
        bootstrap_auc([0, 1], [0.1, 0.2], [3], num_replicates=1, rng=rng)
