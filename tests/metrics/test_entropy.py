"""Log-loss and normalised entropy against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss

from recsys.metrics.entropy import CLIP, log_loss, normalised_entropy

ROWS = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


@given(ROWS)
def test_log_loss_equals_scikit_learn_on_clipped_probabilities(rows):
    labels, probabilities = zip(*rows, strict=True)
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    expected = sklearn_log_loss(labels, clipped, labels=[0, 1])
    assert log_loss(labels, probabilities) == pytest.approx(expected, rel=1e-9)


def test_log_loss_of_a_confident_mistake_is_bounded():
    assert log_loss([1], [0.0]) == pytest.approx(-math.log(CLIP))
    assert log_loss([0], [1.0]) == pytest.approx(-math.log(CLIP))


def test_log_loss_by_hand():
    assert log_loss([1, 0], [0.8, 0.4]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)


def test_normalised_entropy_of_the_positive_rate_is_one():
    assert normalised_entropy([1, 0, 0, 0], [0.25] * 4) == pytest.approx(1)


def test_normalised_entropy_of_a_better_model_is_below_one():
    loss = -(3 * math.log(0.9) + math.log(0.7)) / 4
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert normalised_entropy([1, 0, 0, 0], [0.7, 0.1, 0.1, 0.1]) == pytest.approx(loss / base)


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_normalised_entropy_of_one_class_is_nan(labels):
    assert math.isnan(normalised_entropy(labels, [0.5] * len(labels)))


def test_log_loss_without_rows_is_nan():
    assert math.isnan(log_loss([], []))


def test_logits_are_refused():
    with pytest.raises(ValueError, match=r"2 of 3 probabilities lie outside \[0, 1\] \(-3 to 2\)"):
        log_loss([0, 1, 1], [-3.0, 0.5, 2.0])


def test_nan_probabilities_are_refused_with_their_count():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        log_loss([0, 1], [0.5, float("nan")])
