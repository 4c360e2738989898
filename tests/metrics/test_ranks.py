"""Metrics over ranks: the numbers of one process, for any spread of the rows over any number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.metrics.auc import auc, gauc
from recsys.metrics.calibration import (
    brier_score,
    calibration_ratio,
    expected_calibration_error,
)
from recsys.metrics.entropy import log_loss, normalised_entropy
from recsys.metrics.precision import pr_auc
from recsys.runtime.ranks import ALONE
from tests.metrics.ranks_worker import CASES, COLUMNS, drawn, evaluated, sorted_columns
from tests.processes import run_worker
from tests.slow_cases import slow_but

WORKER = Path(__file__).with_name("ranks_worker.py")
FORMULAS = {
    "auc": auc,
    "pr_auc": pr_auc,
    "log_loss": log_loss,
    "normalised_entropy": normalised_entropy,
    "calibration": calibration_ratio,
    "brier": brier_score,
    "ece": expected_calibration_error,
}


@pytest.fixture(scope="module", params=slow_but([2, 4], 2))
def results(request, tmp_path_factory):
    """What every rank found, by number of ranks."""
    file = tmp_path_factory.mktemp("ranks") / "found.json"
    run_worker(WORKER, file, ranks=request.param)
    return {request.param: json.loads(file.read_text())}


def close(found, expected):
    """Whether two results are equal but for the rounding of sums."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(close(found[name], expected[name]) for name in expected)
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        return all(close(a, b) for a, b in zip(found, expected, strict=True))
    return found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_is_the_same_on_one_rank_and_on_several(results, case):
    expected = json.loads(json.dumps(evaluated(case, ALONE)))
    for size, every in results.items():
        for rank in every:
            assert rank["cases"][case] == every[0]["cases"][case], "every rank knows the result"
        found = every[0]["cases"][case]
        for name in expected:
            assert close(found[name], expected[name]), (size, name, found[name], expected[name])
        for name in ("auc", "gauc"):
            assert close(found["all"][name], expected["all"][name])
        exact = found["all"]["auc"], expected["all"]["auc"]
        assert exact[0] == exact[1] or np.isnan(exact).all(), "won pairs are whole numbers"


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_the_textbook_formulas_of_all_rows(case):
    rows, found = drawn(case), evaluated(case, ALONE)["all"]
    for name, formula in FORMULAS.items():
        expected = formula(rows.labels, rows.scores)
        assert found[name] == pytest.approx(expected, abs=1e-12, nan_ok=True), name
    if rows.users is not None:
        expected = gauc(rows.labels, rows.scores, rows.users)
        assert found["gauc"] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("kind", COLUMNS)
def test_rows_are_sorted_over_ranks_whatever_their_type(results, kind):
    for size, every in {1: [{"sorted": {kind: sorted_columns(kind, ALONE)}}], **results}.items():
        found = every[0]["sorted"][kind]
        longest = found.pop("longest")
        assert all(found.values()), (size, found)
        if kind in ("float", "float32", "int64", "uint64"):
            assert longest <= -(-700 // size), "equal parts"


def test_a_rank_without_memory_for_an_exchange_ends_it_on_all(results):
    for size, every in results.items():
        raised = [rank["without memory"] for rank in every]
        assert raised == ["RankError"] * (size - 1) + ["MemoryError"]


def test_nan_scores_of_one_rank_are_counted_among_those_of_all(results):
    for size, every in results.items():
        for rank in every:
            assert rank["of NaN"].startswith(f"20 of {30 * size} scores are NaN")
