"""evaluate_predictions: every metric at once, over all rows and over a segment."""

import math

import numpy as np
import pytest

from recsys.metrics.auc import auc, gauc
from recsys.metrics.entropy import log_loss
from recsys.metrics.summary import evaluate_predictions

KEYS = {
    "num_rows",
    "num_positives",
    "num_unknown_user_rows",
    "auc",
    "pr_auc",
    "log_loss",
    "gauc",
    "normalised_entropy",
    "calibration",
    "brier",
    "ece",
}


@pytest.fixture
def predictions(rng):
    labels = rng.integers(0, 2, 200)
    probabilities = np.clip(0.5 * labels + rng.random(200) * 0.5, 0, 1)
    return {
        "labels_N": labels,
        "probabilities_N": probabilities,
        "user_rows_N": rng.integers(1, 9, 200),
    }


def test_the_summary_holds_every_metric(predictions):
    result = evaluate_predictions(**predictions)
    labels, probabilities, users = predictions.values()
    assert set(result) == KEYS
    assert result["num_rows"] == 200
    assert result["num_positives"] == labels.sum()
    assert result["auc"] == auc(labels, probabilities)
    assert result["gauc"] == gauc(labels, probabilities, users)
    assert result["log_loss"] == log_loss(labels, probabilities)
    assert all(math.isfinite(value) for value in result.values())


def test_a_segment_equals_the_summary_of_its_rows(predictions, rng):
    segment = rng.random(200) < 0.3
    expected = evaluate_predictions(**{name: a[segment] for name, a in predictions.items()})
    assert evaluate_predictions(**predictions, segment_N=segment) == expected


def test_an_empty_segment_has_no_rows_and_no_values(predictions):
    result = evaluate_predictions(**predictions, segment_N=np.zeros(200, bool))
    counts = [result.pop(key) for key in list(result) if key.startswith("num_")]
    assert counts == [0, 0, 0]
    assert all(math.isnan(value) for value in result.values())


def test_rows_of_unknown_users_count_in_everything_but_gauc(predictions):
    labels, probabilities, users = predictions.values()
    unknown = users > 4
    result = evaluate_predictions(
        labels_N=labels, probabilities_N=probabilities, user_rows_N=np.where(unknown, 0, users)
    )
    assert result["num_unknown_user_rows"] == unknown.sum()
    assert result["gauc"] == gauc(labels[~unknown], probabilities[~unknown], users[~unknown])
    known = evaluate_predictions(**predictions)
    assert all(result[k] == known[k] for k in KEYS - {"gauc", "num_unknown_user_rows"})


def test_without_users_gauc_is_nan(predictions):
    assert math.isnan(evaluate_predictions(**(predictions | {"user_rows_N": None}))["gauc"])


def test_a_nan_outside_the_segment_is_refused_too(predictions):
    predictions["probabilities_N"][0] = np.nan
    segment = np.arange(200) > 10
    with pytest.raises(ValueError, match="1 of 200 scores are NaN"):
        evaluate_predictions(**predictions, segment_N=segment)


def test_a_segment_of_row_numbers_or_of_another_length_is_refused(predictions):
    with pytest.raises(ValueError, match="segment of int64: expected one boolean per row"):
        evaluate_predictions(**predictions, segment_N=np.arange(200))
    with pytest.raises(ValueError, match=r"segment \(3,\): expected the shape of the labels"):
        evaluate_predictions(**predictions, segment_N=np.ones(3, bool))
