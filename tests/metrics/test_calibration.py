"""Calibration ratio, Brier score, bins and ECE."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from recsys.metrics.calibration import (
    CalibrationBin,
    EceReplicates,
    brier_score,
    calibration_bins,
    calibration_ratio,
    ece_interval,
    expected_calibration_error,
)

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(st.sampled_from([0.1, 0.5]), st.floats(0, 1))),
    min_size=1,
    max_size=60,
)


@given(ROWS)
def test_brier_score_equals_scikit_learn(rows):
    labels, probabilities = zip(*rows, strict=True)
    expected = brier_score_loss(labels, probabilities, labels=[0, 1])
    assert brier_score(labels, probabilities) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(ROWS, st.integers(1, 12), st.randoms(use_true_random=False))
def test_bins_hold_every_row_once_and_never_part_ties(rows, num_bins, random):
    labels, probabilities = zip(*rows, strict=True)
    bins = calibration_bins(labels, probabilities, num_bins=num_bins)
    assert len(bins) <= num_bins
    assert sum(b.num_rows for b in bins) == len(rows)
    for lower, upper in zip(bins, bins[1:], strict=False):
        assert lower.highest < upper.lowest
    for b in bins:
        inside = [y for y, p in rows if b.lowest <= p <= b.highest]
        assert b.num_rows == len(inside)
        assert b.positive_rate == pytest.approx(np.mean(inside))
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = calibration_bins(*zip(*shuffled, strict=True), num_bins=num_bins)
    assert [(b.num_rows, b.lowest, b.highest) for b in bins] == [
        (b.num_rows, b.lowest, b.highest) for b in again
    ]


def test_bins_without_ties_are_equally_large():
    bins = calibration_bins([0] * 100, np.arange(100) / 100)
    assert [b.num_rows for b in bins] == [10] * 10


def test_two_bins_by_hand():
    assert calibration_bins([0, 1, 1, 1], [0.1, 0.3, 0.6, 0.8], num_bins=2) == [
        CalibrationBin(
            num_rows=2,
            lowest=0.1,
            highest=0.3,
            mean_prediction=pytest.approx(0.2),
            positive_rate=0.5,
        ),
        CalibrationBin(
            num_rows=2,
            lowest=0.6,
            highest=0.8,
            mean_prediction=pytest.approx(0.7),
            positive_rate=1.0,
        ),
    ]
    ece = expected_calibration_error([0, 1, 1, 1], [0.1, 0.3, 0.6, 0.8], num_bins=2)
    assert ece == pytest.approx((0.3 + 0.3) / 2)


def test_ece_of_a_constant_is_its_distance_from_the_positive_rate():
    assert expected_calibration_error([1, 0, 0, 0], [0.4] * 4) == pytest.approx(0.15)


@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_an_ece_interval_is_that_of_the_replicates_with_a_value(rng, noise):
    replicates, noises = 0.1 + 0.05 * rng.random(50), noise * rng.random(50)
    expected = ece_interval(
        EceReplicates(estimate=0.1, replicates_R=replicates, noise_R=noises), level=0.9
    )
    nothing = np.full(4, np.nan)
    found = EceReplicates(
        estimate=0.1,
        replicates_R=np.concatenate([nothing, replicates]),
        noise_R=np.concatenate([nothing, noises]),
    )
    assert ece_interval(found, level=0.9) == pytest.approx(expected)


def test_calibration_ratio_is_mean_prediction_over_positive_rate():
    assert calibration_ratio([1, 0, 0, 0], [0.5] * 4) == pytest.approx(2)


def test_metrics_without_what_they_divide_by_are_nan():
    assert math.isnan(calibration_ratio([0, 0], [0.5, 0.5]))
    assert math.isnan(calibration_ratio([], []))
    assert math.isnan(brier_score([], []))
    assert math.isnan(expected_calibration_error([], []))
    assert calibration_bins([], []) == []


def test_num_bins_below_one_is_refused():
    with pytest.raises(ValueError, match="num_bins=0"):
        calibration_bins([1], [0.5], num_bins=0)
