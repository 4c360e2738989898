"""The bootstrap over users: units, pairing, edge cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.metrics.auc import auc
from recsys.metrics.bootstrap import drawn_means, interval, poisson_draws, unit_keys
from recsys.metrics.calibration import last_of_bins
from recsys.metrics.formulas import bootstrap_auc
from recsys.metrics.precision import pr_auc
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.registry import METRICS
from recsys.metrics.row_sums import RowSums
from recsys.metrics.summary import evaluate_predictions, intervals


def world(rng, num_users=60):
    users = np.repeat(np.arange(num_users) + 1, 20)
    labels = rng.integers(0, 2, users.size)
    return labels, labels + rng.normal(0, 1.5, users.size), users


def drawn_rows(units, num_replicates, seed):
    """Numbers of rows by replicate, each as often as its unit is drawn."""
    draws = poisson_draws(units, num_replicates, seed)
    return [np.repeat(np.arange(len(units)), times) for times in draws.T]


def test_a_replicate_equals_auc_on_the_rows_of_the_drawn_users(rng):
    labels, scores, users = world(rng, num_users=7)
    replicates = bootstrap_auc(labels, scores, users, num_replicates=3, seed=3)
    for value, rows in zip(replicates, drawn_rows(users, 3, seed=3), strict=True):
        assert value == pytest.approx(auc(labels[rows], scores[rows]), abs=1e-12)


def test_the_interval_holds_the_auc_and_narrows_with_more_users(rng):
    widths = []
    for num_users in (30, 480):
        labels, scores, users = world(rng, num_users)
        replicates = bootstrap_auc(labels, scores, users, num_replicates=200, seed=1)
        low, high = interval(replicates)
        assert low < auc(labels, scores) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_equal_seeds_draw_equal_users(rng):
    labels, scores, users = world(rng)
    first, second = (
        bootstrap_auc(labels, s, users, num_replicates=20, seed=1) for s in (scores, 3 * scores + 1)
    )
    # The same order of scores on the same users: every paired difference is 0.
    np.testing.assert_array_equal(first, second)


def test_replicates_without_both_classes_are_nan_and_left_out_of_the_interval():
    replicates = bootstrap_auc([1, 0], [0.9, 0.1], [0, 1], num_replicates=50, seed=0)
    assert np.isnan(replicates).any()
    assert set(replicates[~np.isnan(replicates)]) == {1.0}
    assert interval(replicates) == (1.0, 1.0)


def test_no_rows_give_nan():
    replicates = bootstrap_auc([], [], [], num_replicates=2, seed=0)
    assert np.isnan(replicates).all()
    assert np.isnan(interval(replicates)).all()


def test_a_level_outside_zero_and_one_is_refused():
    with pytest.raises(ValueError, match="level=95"):
        interval([0.5], level=95)


def test_units_of_another_length_are_refused(rng):
    with pytest.raises(ValueError, match=r"units \(1,\)"):
        bootstrap_auc([0, 1], [0.1, 0.2], [3], num_replicates=1, seed=1)


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
    given = labelled_scores(labels, scores, users, units_N=users)
    sums = RowSums(given, num_replicates=5, seed=len(rows))
    for replicate, taken in enumerate(drawn_rows(users, 5, seed=len(rows))):
        expected = evaluate_predictions(
            labels_N=labels[taken], probabilities_N=scores[taken], user_rows_N=users[taken]
        )
        # A user drawn twice is two users with equal rows, not one with each row twice; gauc and ece
        # are held against this in their own tests.
        for name in set(METRICS) - {"gauc", "ece"}:
            value = METRICS[name].formula(sums)[replicate]
            assert value == pytest.approx(expected.values[name], abs=1e-9, nan_ok=True), name


def test_gauc_of_a_replicate_weighs_each_user_as_often_as_drawn(rng):
    labels, scores, users = world(rng, num_users=5)
    scores = np.clip(0.3 + 0.1 * scores, 0, 1)
    rows = labelled_scores(labels, scores, users, units_N=users)
    found = METRICS["gauc"].formula(RowSums(rows, num_replicates=8, seed=0))
    own = [auc(labels[users == u], scores[users == u]) for u in range(1, 6)]
    for value, times in zip(found, poisson_draws(np.arange(1, 6), 8, 0).T, strict=True):
        assert value == pytest.approx(np.average(own, weights=times), abs=1e-12)


def test_ece_of_a_replicate_keeps_the_bins_of_all_rows(rng):
    labels, scores, users = world(rng, num_users=9)
    scores = np.clip(0.3 + 0.1 * scores, 0, 1)
    rows = labelled_scores(labels, scores, users, units_N=users)
    found = METRICS["ece"].formula(RowSums(rows, num_replicates=2, seed=0))
    last = last_of_bins(rows)
    for value, taken in zip(found, drawn_rows(users, 2, seed=0), strict=True):
        bins = np.searchsorted(last, scores[taken])
        gaps = np.bincount(bins, scores[taken] - labels[taken], minlength=10)
        assert value == pytest.approx(abs(gaps).sum() / len(taken), abs=1e-12)


def test_a_group_of_ties_longer_than_a_piece_is_one_group(rng, monkeypatch):
    labels = rng.integers(0, 2, 5000)
    scores = np.repeat([0.2, 0.6, 0.7], [2600, 2300, 100])
    whole = evaluate_predictions(labels_N=labels, probabilities_N=scores)
    monkeypatch.setattr("recsys.metrics.row_sums._PIECE_VALUES", 700)
    found = evaluate_predictions(labels_N=labels, probabilities_N=scores)
    assert found.values["auc"] == auc(labels, scores)
    assert found.values == pytest.approx(whole.values, abs=1e-12, nan_ok=True)


def test_negatives_between_two_positives_are_counted_together_and_exactly(rng, monkeypatch):
    labels = rng.random(3000) < 0.03
    scores = np.round(rng.random(3000), 3)
    for piece in (1 << 18, 50, 1):
        monkeypatch.setattr("recsys.metrics.row_sums._PIECE_VALUES", piece)
        found = evaluate_predictions(labels_N=labels, probabilities_N=scores).values
        assert found["auc"] == auc(labels, scores)
        assert found["pr_auc"] == pytest.approx(pr_auc(labels, scores), abs=1e-12)


def test_units_are_users_known_or_not_and_rows_of_nobody(rng):
    users = np.array([7, 0, 0, 7, 0, 0, 3])
    hashes = np.array([0, 5, 9, 0, 5, 0, 0], dtype=np.uint64)
    units = unit_keys(np.arange(7), users, hashes)
    # ann's, x's, y's, ann's, x's, of nobody knows whom, bob's.
    assert np.unique(units, return_inverse=True)[1].tolist() == [1, 3, 4, 1, 3, 2, 0]
    same = unit_keys([8, 9], [3, 0], np.array([0, 3], dtype=np.uint64))
    assert same[0] != same[1], "a hash of 3 is not row 3"
    untold = unit_keys(np.arange(7), users)
    assert untold[0] == untold[3] and len(set(untold)) == 6
    assert len(set(unit_keys(np.arange(50)))) == 50


def test_gauc_of_a_replicate_leaves_unknown_users_out(rng):
    labels, scores, users = world(rng, num_users=9)
    scores = np.clip(0.3 + 0.1 * scores, 0, 1)
    known = users <= 5
    rows = labelled_scores(labels, scores, np.where(known, users, 0), units_N=users)
    found = METRICS["gauc"].formula(RowSums(rows, num_replicates=4))
    own = labelled_scores(labels[known], scores[known], users[known], units_N=users[known])
    expected = METRICS["gauc"].formula(RowSums(own, num_replicates=4))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_interval_of_unknown_users_is_as_wide_as_if_they_were_known(rng):
    """As one unit they would be drawn all or not at all."""
    labels, scores, users = world(rng, num_users=120)
    scores = scores + 0.8 * rng.normal(size=121)[users]
    hashes = np.where(users > 60, users, 0).astype(np.uint64)
    rows = np.where(users > 60, 0, users)
    told = unit_keys(np.arange(rows.size), rows, hashes)
    known, unknown = (
        interval(bootstrap_auc(labels, scores, u, num_replicates=2000, seed=1))
        for u in (users, told)
    )
    assert unknown == pytest.approx(known, abs=0.005)


def test_draws_are_poisson_and_depend_on_nothing_but_key_replicate_and_seed(rng):
    keys = np.arange(4000)
    draws = poisson_draws(keys, 100, seed=5)
    assert draws.shape == (4000, 100)
    shares = np.bincount(draws.ravel(), minlength=5)[:5] / draws.size
    np.testing.assert_allclose(shares, np.exp(-1) / np.array([1, 1, 2, 6, 24]), atol=0.003)
    assert draws.var() == pytest.approx(1, abs=0.02)
    between = np.corrcoef(draws[:, :20].T) - np.eye(20)
    assert abs(between).max() < 0.07, "replicates are independent"
    order = rng.permutation(4000)[:50]
    np.testing.assert_array_equal(poisson_draws(keys[order], 30, seed=5), draws[order, :30])
    assert (poisson_draws(keys, 100, seed=6) != draws).mean() > 0.5


def test_a_mean_over_drawn_users_weighs_each_as_often_as_drawn():
    values, users = np.array([1.0, 5.0, 9.0]), np.array([4, 7, 9])
    found = drawn_means(values, users, num_replicates=6, seed=2)
    for value, times in zip(found, poisson_draws(users, 6, 2).T, strict=True):
        expected = np.average(values, weights=times) if times.any() else np.nan
        assert value == pytest.approx(expected, nan_ok=True)


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
        whole = RowSums(labelled_scores(labels, p, users, units_N=users))
        found = intervals(whole, num_replicates=200, level=0.95, seed=int(rng.integers(1000)))
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
    for seed in range(100):
        users, labels, p = draw_clicks(rng, 100, slope)
        rows = labelled_scores(labels, p, units_N=users)
        drawn = RowSums(rows, num_replicates=200, seed=seed)
        low, high = METRICS["ece"].interval(RowSums(rows), drawn, level=0.95)
        covered += low <= true <= high
        low, high = interval(METRICS["ece"].formula(drawn))
        plain += low <= true <= high
    assert covered >= 82
    assert slope == 0.5 or plain < 20


def test_replicates_that_draw_no_user_are_left_out_of_the_ece_interval(rng):
    users, labels, p = draw_clicks(rng, 3)
    rows = labelled_scores(labels, p, units_N=users)
    whole, drawn = RowSums(rows), RowSums(rows, num_replicates=200, seed=0)
    ece_R = METRICS["ece"].formula(drawn)
    assert 0 < np.count_nonzero(np.isnan(ece_R)) < 50
    low, high = METRICS["ece"].interval(whole, drawn, level=0.95)
    assert 0 <= low <= METRICS["ece"].formula(whole)[0] <= high <= 1


def test_pairing_decides_what_two_intervals_alone_do_not(rng):
    """Two models share the luck of the drawn users; their difference does not have it."""
    labels, scores, users = world(rng, num_users=300)
    scores = 1 / (1 + np.exp(-scores))
    slightly = np.clip(scores + 0.02 * labels, 0, 1)
    first, second = (
        bootstrap_auc(labels, s, users, num_replicates=200, seed=0) for s in (scores, slightly)
    )
    assert interval(first)[1] > interval(second)[0]
    assert interval(second - first)[0] > 0


def test_rows_without_units_are_not_resampled():
    rows = labelled_scores([0, 1], [0.2, 0.5])
    with pytest.raises(ValueError, match="rows without units cannot be resampled"):
        RowSums(rows, num_replicates=3)
    nothing = labelled_scores([], [], units_N=[])
    found = intervals(RowSums(nothing), num_replicates=3, level=0.95, seed=0)
    assert np.isnan(list(found.values())).all()
