"""PR-AUC against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from recsys.metrics.precision import pr_auc

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(st.sampled_from([0.0, 0.5]), st.floats(-5, 5))),
    min_size=1,
    max_size=40,
)


@given(ROWS)
def test_pr_auc_equals_scikit_learn(rows):
    labels, scores = zip(*rows, strict=True)
    if any(labels):
        assert pr_auc(labels, scores) == pytest.approx(average_precision_score(labels, scores))


def test_by_hand():
    # thresholds 0.9: P 1, R 1/2; 0.8: no positive more; 0.7: P 2/3, R 1
    assert pr_auc([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_equal_scores_get_the_share_of_positives():
    assert pr_auc([1, 0, 0, 0], [0.4] * 4) == 0.25


def test_without_positives_there_is_no_value_and_without_negatives_it_is_one():
    assert math.isnan(pr_auc([], [])) and math.isnan(pr_auc([0, 0], [0.1, 0.2]))
    assert pr_auc([1, 1], [0.1, 0.2]) == 1


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        pr_auc([0, 1], [np.nan, 0.5])
