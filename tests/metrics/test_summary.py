"""evaluate_predictions: every metric at once, over all rows and over a segment."""

import math

import numpy as np
import pytest

from recsys.metrics.auc import auc, gauc
from recsys.metrics.entropy import log_loss
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.registry import METRICS
from recsys.metrics.summary import RowMetrics, evaluate_predictions, evaluate_rows_of

COUNTS = {"num_rows", "num_positives", "num_unknown_user_rows"}


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
    assert list(result.values) == list(METRICS) and set(result.flat()) == COUNTS | set(METRICS)
    assert result.num_rows == 200
    assert result.num_positives == labels.sum()
    assert result.values["auc"] == auc(labels, probabilities)
    assert result.values["gauc"] == gauc(labels, probabilities, users)
    expected = log_loss(labels, probabilities)
    assert result.values["log_loss"] == pytest.approx(expected, abs=1e-12)
    assert all(math.isfinite(value) for value in result.flat().values())


def test_a_segment_equals_the_summary_of_its_rows(predictions, rng):
    rows = labelled_scores(*predictions.values())
    segment = rng.random(200) < 0.3
    part = evaluate_rows_of(rows.where(segment))
    expected = evaluate_predictions(
        labels_N=rows.positive_N[segment],
        probabilities_N=rows.probability_N[segment],
        user_rows_N=rows.user_row_N[segment],
    )
    assert part == expected and 0 < part.num_rows < 200


def test_an_empty_segment_has_no_rows_and_no_values(predictions):
    rows = labelled_scores(*predictions.values())
    result = evaluate_rows_of(rows.where(np.zeros(200, bool)))
    assert (result.num_rows, result.num_positives, result.num_unknown_user_rows) == (0, 0, 0)
    assert all(math.isnan(value) for value in result.values.values())


def test_rows_of_unknown_users_count_in_everything_but_gauc(predictions):
    labels, probabilities, users = predictions.values()
    unknown = users > 4
    result = evaluate_predictions(
        labels_N=labels, probabilities_N=probabilities, user_rows_N=np.where(unknown, 0, users)
    )
    assert result.num_unknown_user_rows == unknown.sum()
    assert result.values["gauc"] == gauc(labels[~unknown], probabilities[~unknown], users[~unknown])
    known = evaluate_predictions(**predictions)
    for name in set(METRICS) - {"gauc"}:
        assert result.values[name] == known.values[name], name


def test_without_users_gauc_is_nan(predictions):
    assert math.isnan(evaluate_predictions(**(predictions | {"user_rows_N": None})).values["gauc"])


def test_nan_scores_and_columns_of_other_lengths_are_refused(predictions):
    with pytest.raises(ValueError, match=r"user rows \(3,\): expected the shape of the labels"):
        evaluate_predictions(**(predictions | {"user_rows_N": [1, 2, 3]}))
    predictions["probabilities_N"][0] = np.nan
    with pytest.raises(ValueError, match="1 of 200 scores are NaN"):
        evaluate_predictions(**predictions)


def test_metrics_are_read_back_as_they_were_written(predictions):
    result = evaluate_predictions(**(predictions | {"user_rows_N": None}))
    flat = result.flat()
    flat["gauc"] = None  # JSON has no nan
    again = RowMetrics.from_flat(flat | {"auc_interval": [0, 1], "another": 3})
    assert again.flat() == pytest.approx(result.flat(), nan_ok=True)
    earlier = RowMetrics.from_flat({"num_rows": 3, "num_positives": 1, "auc": 0.5})
    assert earlier.value("auc") == 0.5 and math.isnan(earlier.value("pr_auc"))


def test_every_metric_of_the_registry_says_what_it_is():
    for name, metric in METRICS.items():
        assert metric.name == name and metric.label and metric.meaning
        assert metric.direction in (1, 0, -1)
