"""Ten million predictions: every pointwise metric, ten segments, 200 user draws. `make bench`."""

import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from recsys.evaluation.predict import Predictions, by_score
from recsys.metrics.bootstrap import bootstrap_units, draw_units, interval
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.summary import bootstrap_metrics, evaluate_predictions

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
    shared = {
        "labels_N": predictions.label,
        "probabilities_N": predictions.score,
        "user_rows_N": predictions.user_row,
    }
    whole = evaluate_predictions(**shared)
    assert whole.num_rows == ROWS
    done("all rows")
    for kind in kinds:
        found = evaluate_predictions(**shared, segment_N=kind[predictions.item_row])
        assert abs(found.values["auc"] - whole.values["auc"]) < 0.01
    done(f"{len(kinds)} segments")
    rng = np.random.default_rng(1)
    units_N = bootstrap_units(predictions.user_row, ROWS, rng)
    draws_UR = draw_units(int(units_N.max()) + 1, 200, rng)
    replicates = bootstrap_metrics(
        labelled_scores(predictions.label, predictions.score, predictions.user_row),
        units_N=units_N,
        draws_UR=draws_UR,
        names=("auc", "log_loss"),
    )
    for name, values in replicates.items():
        low, high = interval(values)
        assert low < whole.values[name] < high
    done("200 draws of users, AUC and log-loss")
    seconds = time.perf_counter() - begun
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    of_cpu = time.process_time() - begun_cpu
    print(f"in all: {seconds:.1f} s ({of_cpu:.1f} s of CPU), {gigabytes:.2f} GB", flush=True)
    assert seconds < MOST_SECONDS
    assert gigabytes < MOST_GB


@pytest.mark.timeout(1000)
def test_ten_million_predictions_take_less_than_three_minutes_and_six_gigabytes():
    """In a process of its own: the peak of its memory is this evaluation's alone."""
    code = "from tests.benchmarks.test_evaluation_scale import evaluate; evaluate()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
