"""Weighted lists in sharded tables: two ranks and every kind of plan learn what the slow formula says."""

from pathlib import Path

import numpy as np
import pytest

from tests.processes import worker_result
from tests.sharding.weights_worker import SHARDINGS, by_the_formula, trained_logits

WORKER = Path(__file__).with_name("weights_worker.py")


@pytest.fixture(scope="module")
def two_ranks():
    return worker_result(WORKER, ranks=2)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_ranks_learn_weighted_means_as_the_formula_says(two_ranks, one_process, sharding):
    expected = by_the_formula(one_process)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(two_ranks[sharding], expected, rtol=1e-4, atol=1e-5)


def test_one_rank_learns_weighted_means_as_the_formula_says(one_process):
    expected = by_the_formula(one_process)
    found = trained_logits(one_process, "table_wise")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
