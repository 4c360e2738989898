"""AUC and GAUC against scikit-learn and the pairwise definition."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from recsys.metrics.auc import auc, gauc
from tests.reference.gauc import auc_by_pairs, gauc_by_users

# Few distinct scores, so that ties are the rule.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(-5, 5)),
        st.integers(-2, 3),
    ),
    max_size=40,
)


def columns(rows):
    labels, scores, users = zip(*rows, strict=True) if rows else ((), (), ())
    return list(labels), list(scores), list(users)


@given(ROWS)
def test_auc_equals_the_pairwise_definition_and_scikit_learn(rows):
    labels, scores, _ = columns(rows)
    expected = auc_by_pairs(labels, scores)
    assert auc(labels, scores) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    if len(set(labels)) == 2:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(ROWS)
def test_gauc_equals_the_loop_over_users(rows):
    labels, scores, users = columns(rows)
    expected = gauc_by_users(labels, scores, users)
    assert gauc(labels, scores, users) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    labels, scores, users = columns(rows)
    labels_2, scores_2, users_2 = columns(shuffled)
    assert auc(labels, scores) == pytest.approx(auc(labels_2, scores_2), nan_ok=True, abs=0)
    assert gauc(labels, scores, users) == pytest.approx(
        gauc(labels_2, scores_2, users_2), nan_ok=True, abs=1e-15
    )


def test_auc_counts_a_tie_as_half_a_pair():
    # pairs: (0.7, 0.7) tied, (0.7, 0.1) won, (0.9, 0.7) won, (0.9, 0.1) won -> 3.5 / 4
    assert auc([1, 0, 1, 0], [0.7, 0.7, 0.9, 0.1]) == 0.875


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_auc_of_one_class_is_nan(labels):
    assert math.isnan(auc(labels, [0.5] * len(labels)))


def test_gauc_weighs_users_by_rows_and_leaves_out_users_with_one_class():
    users = [1, 1, 2, 2, 2, 2, 3, 3]
    labels = [1, 0, 1, 0, 0, 0, 1, 1]
    scores = [0.9, 0.1, 0.1, 0.5, 0.6, 0.7, 0.2, 0.3]
    # user 1: AUC 1 on 2 rows; user 2: AUC 0 on 4 rows; user 3 has positives only
    assert gauc(labels, scores, users) == pytest.approx(2 / 6)


def test_gauc_of_a_score_that_depends_on_the_user_alone_is_one_half():
    users = np.array([1, 1, 1, 2, 2, 2])
    assert gauc([1, 0, 0, 1, 1, 0], users * 0.3, users) == 0.5


def test_gauc_leaves_unknown_users_out():
    """They share row 0 and are many: among them a score that says who somebody is wins pairs."""
    # user 1: AUC 0; the rows of row 0 alone would have AUC 1.
    assert gauc([1, 0, 1, 0, 0], [0.2, 0.3, 0.9, 0.1, 0.2], [1, 1, 0, 0, 0]) == 0
    assert math.isnan(gauc([1, 0], [0.9, 0.1], [0, 0]))


def test_gauc_without_a_user_with_both_classes_is_nan():
    assert math.isnan(gauc([1, 0], [0.5, 0.6], [1, 2]))


def test_infinite_scores_rank():
    assert auc([0, 1, 1], [-np.inf, 0.0, np.inf]) == 1.0


@pytest.mark.parametrize("metric", [auc, lambda y, s: gauc(y, s, [1, 1, 1])])
def test_nan_scores_are_refused_with_their_count(metric):
    with pytest.raises(ValueError, match="2 of 3 scores are NaN"):
        metric([0, 1, 1], [np.nan, 0.5, np.nan])


def test_labels_other_than_zero_and_one_are_refused_with_their_count():
    with pytest.raises(ValueError, match="1 of 3 labels are neither 0 nor 1"):
        auc([0, 1, 2], [0.1, 0.2, 0.3])


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"labels \(2,\) and scores \(3,\)"):
        auc([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"user rows \(1,\)"):
        gauc([0, 1], [0.1, 0.2], [1])


@pytest.mark.slow
def test_five_million_rows_take_seconds(rng):
    num_rows = 5_000_000
    labels = rng.integers(0, 2, num_rows)
    scores = rng.random(num_rows, dtype=np.float32)
    users = rng.integers(0, 200_000, num_rows)
    started = time.perf_counter()
    assert auc(labels, scores) == pytest.approx(0.5, abs=0.01)
    assert gauc(labels, scores, users) == pytest.approx(0.5, abs=0.01)
    seconds = time.perf_counter() - started
    print(f"auc and gauc of {num_rows:,} rows: {seconds:.1f} s")
    assert seconds < 30
