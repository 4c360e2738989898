"""Ranking metrics against their definition over every order of ties, scikit-learn, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from recsys.metrics.ranking import mean_over_users, ranking_by_user
from tests.reference.ranking import metrics_over_orders

USER = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.2, 0.9])), min_size=1, max_size=6
)


@given(st.lists(USER, max_size=3), st.integers(1, 7))
def test_metrics_equal_the_mean_over_all_orders_of_ties(users, k):
    rows = [(user, *row) for user, rows in enumerate(users, 1) for row in rows]
    user_rows, relevant, scores = zip(*rows, strict=True) if rows else ((), (), ())
    found, metrics = ranking_by_user(relevant, scores, user_rows, ks=[k])
    expected = {
        user: metrics_over_orders(*zip(*rows, strict=True), k)
        for user, rows in enumerate(users, 1)
        if any(rel for rel, _ in rows)
    }
    assert found.tolist() == list(expected)
    assert set(metrics) == {f"recall@{k}", f"ndcg@{k}", f"hit_rate@{k}", "mrr"}
    for name, values in metrics.items():
        assert values.tolist() == pytest.approx([m[name] for m in expected.values()], abs=1e-9)


def test_the_unknown_user_is_not_ranked():
    users, metrics = ranking_by_user([1, 0, 1, 0], [0.1, 0.9, 0.9, 0.1], [0, 0, 4, 4], ks=[1])
    assert users.tolist() == [4] and metrics["recall@1"].tolist() == [1]


def test_ndcg_equals_scikit_learn(rng):
    relevant, scores = rng.integers(0, 2, (5, 30)), rng.random((5, 30))
    users = np.repeat(np.arange(5) + 1, 30)
    _, metrics = ranking_by_user(relevant.ravel(), scores.ravel(), users, ks=[10])
    assert mean_over_users(metrics["ndcg@10"]) == pytest.approx(ndcg_score(relevant, scores, k=10))


def test_two_users_by_hand():
    # user 7: relevant at 2 and 3 of 3; user 9: relevant at 1 of 2
    users, metrics = ranking_by_user(
        [0, 1, 1, 1, 0], [0.9, 0.8, 0.7, 0.5, 0.4], [7, 7, 7, 9, 9], ks=[2]
    )
    assert users.tolist() == [7, 9]
    assert metrics["recall@2"].tolist() == [0.5, 1]
    assert metrics["hit_rate@2"].tolist() == [1, 1]
    assert metrics["mrr"].tolist() == [0.5, 1]
    ideal = 1 + 1 / math.log2(3)
    assert metrics["ndcg@2"].tolist() == pytest.approx([1 / math.log2(3) / ideal, 1])


def test_k_larger_than_the_candidates_counts_them_all():
    _, few = ranking_by_user([0, 1], [0.9, 0.8], [1, 1], ks=[100])
    assert few["recall@100"].tolist() == [1] and few["hit_rate@100"].tolist() == [1]
    assert few["ndcg@100"].tolist() == pytest.approx([1 / math.log2(3)])


def test_equal_scores_get_what_a_shuffled_list_gets():
    relevant = np.zeros(1000)
    relevant[:10] = 1
    _, metrics = ranking_by_user(relevant, np.full(1000, 0.3), np.ones(1000), ks=[100])
    assert metrics["recall@100"][0] == pytest.approx(0.1)
    shuffled = [np.random.default_rng(i).permutation(1000) for i in range(4000)]
    first = np.array([np.flatnonzero(order < 10)[0] + 1 for order in shuffled])
    assert metrics["hit_rate@100"][0] == pytest.approx((first <= 100).mean(), abs=0.02)
    assert metrics["mrr"][0] == pytest.approx((1 / first).mean(), abs=0.004)


def test_a_checkerboard_has_its_diagonal_first():
    scores = np.eye(6) + 0.1
    users = np.repeat(np.arange(6), 6)
    _, metrics = ranking_by_user(np.eye(6).ravel(), scores.ravel(), users, ks=[1])
    assert all((values == 1).all() for values in metrics.values())


def test_users_without_a_relevant_candidate_are_left_out():
    users, metrics = ranking_by_user([0, 0, 1], [0.1, 0.2, 0.3], [1, 1, 2], ks=[1])
    assert users.tolist() == [2]
    users, metrics = ranking_by_user([0, 0], [0.1, 0.2], [1, 1], ks=[1])
    assert users.size == 0 and math.isnan(mean_over_users(metrics["mrr"]))


def test_a_user_with_one_row_counts_when_it_is_relevant():
    users, metrics = ranking_by_user([1], [0.3], [4], ks=[3])
    assert users.tolist() == [4] and metrics["ndcg@3"].tolist() == [1]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"ks=\[0\]"):
        ranking_by_user([1], [0.5], [1], ks=[0])
    with pytest.raises(ValueError, match="1 of 1 scores are NaN"):
        ranking_by_user([1], [np.nan], [1], ks=[1])
    with pytest.raises(ValueError, match=r"user rows \(2,\)"):
        ranking_by_user([1], [0.5], [1, 2], ks=[1])
