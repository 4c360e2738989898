"""Ten million predictions: every pointwise metric, ten segments, 200 user draws. `make bench`."""

import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from recsys.evaluation.predict import Predictions, by_score
from recsys.evaluation.split import RowUsers, scored_rows_of
from recsys.metrics.row_sums import RowSums
from recsys.metrics.summary import evaluate_rows_of, intervals
from recsys.runtime.ranks import ALONE

pytestmark = pytest.mark.bench
ROWS, USERS, ITEMS = 10_000_000, 500_000, 200_000
MOST_SECONDS, MOST_GB = 180, 6.0


def drawn_predictions() -> tuple[Predictions, list[np.ndarray]]:
    """Rows with popular and rare users and items, and ten overlapping segments of items."""
    rng = np.random.default_rng(0)
    user = np.minimum(rng.exponential(USERS / 5, ROWS).astype(np.int64) + 1, USERS)
    item = np.minimum(rng.exponential(ITEMS / 5, ROWS).astype(np.int64) + 1, ITEMS)
    label = (rng.random(ROWS) < 0.2).astype(np.float64)
    score = 1 / (1 + np.exp(1.5 - label - rng.normal(0, 1, ROWS)))
    predictions = Predictions(
        row_id=rng.permutation(ROWS),
        user_row=user,
        item_row=item,
        label=label,
        score=score,
        weights=np.zeros((ROWS, 0), np.float32),
    )
    kinds = rng.random((10, ITEMS + 1)) < np.linspace(0.02, 0.5, 10)[:, None]
    return predictions, list(kinds)


def evaluate() -> None:
    """What the bounds are for; prints seconds by part."""
    predictions, kinds = drawn_predictions()
    begun = part = time.perf_counter()
    begun_cpu = time.process_time()

    def done(name: str) -> None:
        nonlocal part
        print(f"{name}: {time.perf_counter() - part:.1f} s", flush=True)
        part = time.perf_counter()

    predictions = by_score(predictions)
    done("sort")
    users = RowUsers(user_row_N=predictions.user_row, unknown_user_N=None)
    rows = scored_rows_of(predictions, users, ALONE)
    sums = RowSums(rows)
    whole = evaluate_rows_of(rows, sums)
    assert whole.num_rows == ROWS
    done("all rows")
    for kind in kinds:
        found = evaluate_rows_of(rows.where(kind[predictions.item_row]))
        assert abs(found.values["auc"] - whole.values["auc"]) < 0.01
    done(f"{len(kinds)} segments")
    found = intervals(sums, num_replicates=200, level=0.95, seed=1)
    for name, (low, high) in found.items():
        assert low < whole.values[name] < high, name
    done("200 draws of users, all metrics")
    seconds = time.perf_counter() - begun
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    of_cpu = time.process_time() - begun_cpu
    print(f"in all: {seconds:.1f} s ({of_cpu:.1f} s of CPU), {gigabytes:.2f} GB", flush=True)
    assert seconds < MOST_SECONDS
    assert gigabytes < MOST_GB


def test_ten_million_predictions_take_less_than_three_minutes_and_six_gigabytes():
    """In a process of its own: the peak of its memory is this evaluation's alone."""
    code = "from tests.benchmarks.test_evaluation_scale import evaluate; evaluate()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
