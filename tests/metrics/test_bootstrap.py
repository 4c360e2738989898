"""The bootstrap over users: units, pairing, edge cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.metrics.auc import auc
from recsys.metrics.bootstrap import bootstrap_units, draw_units, interval
from recsys.metrics.calibration import bootstrap_ece, ece_interval
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.registry import METRICS
from recsys.metrics.resamples import Resamples, bootstrap_auc
from recsys.metrics.summary import bootstrap_metrics, evaluate_predictions, intervals


def world(rng, num_users=60):
    users = np.repeat(np.arange(num_users) + 1, 20)
    labels = rng.integers(0, 2, users.size)
    return labels, labels + rng.normal(0, 1.5, users.size), users


def test_a_replicate_equals_auc_on_the_rows_of_the_drawn_users(rng):
    labels, scores, users = world(rng, num_users=7)
    drawn = np.random.default_rng(3).integers(7, size=7)
    rows = np.concatenate([np.flatnonzero(users == user + 1) for user in drawn])
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


def test_units_of_another_length_are_refused(rng):
    with pytest.raises(ValueError, match=r"units \(1,\)"):
        bootstrap_auc([0, 1], [0.1, 0.2], [3], num_replicates=1, rng=rng)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.one_of(st.sampled_from([0.2, 0.5]), st.floats(0, 1)),
            st.integers(1, 5),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_replicates_equal_the_metrics_of_the_drawn_users_rows(rows):
    labels, scores, users = (np.array(column) for column in zip(*rows, strict=True))
    rng = np.random.default_rng(len(rows))
    units = bootstrap_units(users, len(users), rng)
    draws = draw_units(units.max() + 1, 5, rng)
    found = bootstrap_metrics(labelled_scores(labels, scores, users), units_N=units, draws_UR=draws)
    for replicate, drawn in enumerate(draws.T):
        taken = np.repeat(np.arange(len(rows)), drawn[units])
        expected = evaluate_predictions(
            labels_N=labels[taken], probabilities_N=scores[taken], user_rows_N=users[taken]
        )
        # A user drawn twice is two users with equal rows, not one with each row twice; gauc and ece
        # are held against this in their own tests.
        for name in set(METRICS) - {"gauc", "ece"}:
            value = found[name][replicate]
            assert value == pytest.approx(expected.values[name], abs=1e-9, nan_ok=True), name


def test_gauc_of_a_replicate_weighs_each_user_as_often_as_drawn(rng):
    labels, scores, users = world(rng, num_users=5)
    scores = np.clip(0.3 + 0.1 * scores, 0, 1)
    draws = np.array([[1, 2], [1, 0], [1, 1], [1, 2], [1, 0]], dtype=np.uint16)
    units = bootstrap_units(users, len(users), rng)
    found = bootstrap_metrics(
        labelled_scores(labels, scores, users), units_N=units, draws_UR=draws, names=("gauc", "ece")
    )
    whole = evaluate_predictions(labels_N=labels, probabilities_N=scores, user_rows_N=users)
    assert found["gauc"][0] == pytest.approx(whole.values["gauc"], abs=1e-12)
    assert found["ece"][0] == pytest.approx(whole.values["ece"], abs=1e-12)
    own = [auc(labels[users == u], scores[users == u]) for u in range(1, 6)]
    assert found["gauc"][1] == pytest.approx((2 * own[0] + own[2] + 2 * own[3]) / 5, abs=1e-12)


def test_a_group_of_ties_longer_than_a_piece_is_one_group(rng):
    labels = rng.integers(0, 2, 5000)
    scores = np.repeat([0.2, 0.6, 0.7], [2600, 2300, 100])
    units = bootstrap_units(None, 5000, rng)
    draws = np.ones((units.max() + 1, 1), dtype=np.uint16)
    found = bootstrap_metrics(labelled_scores(labels, scores, None), units_N=units, draws_UR=draws)
    whole = evaluate_predictions(labels_N=labels, probabilities_N=scores)
    for name in METRICS:
        assert found[name][0] == pytest.approx(whole.values[name], abs=1e-9, nan_ok=True)


def test_without_users_rows_are_dealt_to_equal_groups(rng):
    few = bootstrap_units(None, 7, rng)
    assert sorted(few) == list(range(7))
    many = bootstrap_units(None, 50_001, rng)
    assert set(np.bincount(many)) == {2, 3} and many.max() + 1 == 20_000


def test_unknown_users_are_units_of_their_own(rng):
    users = np.array([7, 0, 0, 7, 0, 0, 3])
    hashes = np.array([0, 5, 9, 0, 5, 0, 0], dtype=np.uint64)
    units = bootstrap_units(users, 7, rng, unknown_users_N=hashes)
    # ann's, x's, y's, ann's, x's, of nobody knows whom, bob's; a hash of 3 is not row 3.
    assert units.tolist() == [1, 2, 3, 1, 2, 4, 0]
    same = bootstrap_units([3, 0], 2, rng, unknown_users_N=np.array([0, 3], dtype=np.uint64))
    assert same.tolist() == [0, 1]
    untold = bootstrap_units(users, 7, rng)
    assert untold[[0, 3, 6]].tolist() == [1, 1, 0] and sorted(untold[[1, 2, 4, 5]]) == [2, 3, 4, 5]


def test_gauc_of_a_replicate_leaves_unknown_users_out(rng):
    labels, scores, users = world(rng, num_users=9)
    scores = np.clip(0.3 + 0.1 * scores, 0, 1)
    hashes = np.where(users > 5, users, 0).astype(np.uint64)
    rows = np.where(users > 5, 0, users)
    units = bootstrap_units(rows, rows.size, rng, unknown_users_N=hashes)
    assert units.max() + 1 == 9
    found = bootstrap_metrics(
        labelled_scores(labels, scores, rows),
        units_N=units,
        draws_UR=np.ones((9, 1), dtype=np.uint16),
        names=("gauc",),
    )
    known = users <= 5
    whole = evaluate_predictions(
        labels_N=labels[known], probabilities_N=scores[known], user_rows_N=users[known]
    )
    assert found["gauc"][0] == pytest.approx(whole.values["gauc"], abs=1e-12)


def test_the_interval_of_unknown_users_is_as_wide_as_if_they_were_known(rng):
    """As one unit they would be drawn all or not at all."""
    labels, scores, users = world(rng, num_users=120)
    scores = scores + 0.8 * rng.normal(size=121)[users]
    hashes = np.where(users > 60, users, 0).astype(np.uint64)
    rows = np.where(users > 60, 0, users)
    told = bootstrap_units(rows, rows.size, rng, unknown_users_N=hashes)
    known, unknown = (
        interval(bootstrap_auc(labels, scores, u, num_replicates=2000, rng=rng))
        for u in (users, told)
    )
    assert unknown == pytest.approx(known, abs=0.005)


def test_each_replicate_draws_as_many_units_as_there_are(rng):
    draws = draw_units(30, 8, rng)
    assert draws.shape == (30, 8) and (draws.sum(axis=0) == 30).all()


def logistic(values):
    return 1 / (1 + np.exp(-values))


def draw_clicks(rng, num_users, slope=1.0, luck=0.0):
    """Clicks whose log-odds are `slope` times those that the model predicts, and luck of the user."""
    users = np.repeat(np.arange(num_users) + 1, 20)
    odds = rng.normal(-1, 1, users.size)
    truth = logistic(slope * odds + luck * rng.normal(size=num_users + 1)[users])
    return users, (rng.random(users.size) < truth).astype(int), logistic(odds)


@pytest.mark.parametrize("luck", [0.0, 1.0])
@pytest.mark.parametrize("num_users", [20, 150])
def test_every_metrics_interval_holds_its_estimate(rng, num_users, luck):
    for _ in range(10):
        users, labels, p = draw_clicks(rng, num_users, luck=luck)
        shared = {"labels_N": labels, "probabilities_N": p, "user_rows_N": users}
        found = intervals(
            labelled_scores(labels, p, users),
            units_N=users - 1,
            num_replicates=200,
            level=0.95,
            rng=rng,
        )
        estimates = evaluate_predictions(**shared).values
        for name in METRICS:
            low, high = found[name]
            assert low <= estimates[name] <= high, name


@pytest.mark.parametrize("slope", [1.0, 0.9, 0.5])
def test_the_ece_interval_covers_the_true_error(rng, slope):
    """Plain percentiles nearly never cover a small one: noise moves all of them up."""
    _, many, p = draw_clicks(rng, 50_000, slope)
    true = (
        0.0 if slope == 1 else evaluate_predictions(labels_N=many, probabilities_N=p).values["ece"]
    )
    covered, plain = 0, 0
    for _ in range(100):
        users, labels, p = draw_clicks(rng, 100, slope)
        draws = draw_units(100, 200, rng)
        rows = labelled_scores(labels, p, None)
        found = bootstrap_ece(Resamples(rows, units_N=users - 1, draws_UR=draws))
        low, high = ece_interval(found)
        covered += low <= true <= high
        low, high = interval(found.replicates_R)
        plain += low <= true <= high
    assert covered >= 82
    assert slope == 0.5 or plain < 20


def test_pairing_decides_what_two_intervals_alone_do_not(rng):
    """Two models share the luck of the drawn users; their difference does not have it."""
    labels, scores, users = world(rng, num_users=300)
    scores = 1 / (1 + np.exp(-scores))
    slightly = np.clip(scores + 0.02 * labels, 0, 1)
    units = bootstrap_units(users, len(users), rng)
    draws = draw_units(300, 200, rng)
    first, second = (
        bootstrap_metrics(
            labelled_scores(labels, s, users), units_N=units, draws_UR=draws, names=("auc",)
        )["auc"]
        for s in (scores, slightly)
    )
    assert interval(first)[1] > interval(second)[0]
    assert interval(second - first)[0] > 0


def test_bad_rows_are_refused(rng):
    draws = np.ones((2, 3), dtype=np.uint16)
    units = np.arange(2)
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        bootstrap_metrics(
            labelled_scores([0, 1], [np.nan, 0.5], None), units_N=units, draws_UR=draws
        )
    with pytest.raises(ValueError, match=r"units \(2,\): expected the shape of the labels"):
        bootstrap_metrics(labelled_scores([0], [0.5], None), units_N=units, draws_UR=draws)
    nothing = bootstrap_metrics(labelled_scores([], [], None), units_N=units[:0], draws_UR=draws)
    assert all(np.isnan(values).all() and values.shape == (3,) for values in nothing.values())
