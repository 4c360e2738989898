"""Evaluates drawn predictions that are spread over the ranks: `torchrun evaluation_size.py ROWS USERS`.

Every rank draws its own rows. All metrics of the registry with their intervals over 200 resampled sets
of users. Rows are a label, a score and a user, who is the bootstrap's unit too; launch/evaluate.py also
holds and sorts row ids, items, weights and keys of units, and needs more time and memory than this.
Rank 0 prints seconds and the peak memory of a rank.
"""

import json
import resource
import sys
import time

import numpy as np
from numpy.typing import NDArray

from recsys.metrics.predictions import labelled_scores
from recsys.metrics.registry import METRICS
from recsys.metrics.row_sums import RowSums
from recsys.metrics.summary import evaluate_rows_of, intervals
from recsys.runtime.env import start, stop
from recsys.runtime.ranks import Ranks, all_ranks

_PIECE_ROWS = 1 << 20


def drawn(num_rows: int, num_users: int, ranks: Ranks) -> dict[str, NDArray]:
    """Return labels, scores and user rows [N] of this rank: users with many rows and with few."""
    rng = np.random.default_rng([7, ranks.rank])
    count = num_rows // ranks.size
    columns = {
        "label": np.empty(count, np.uint8),
        "score": np.empty(count, np.float64),
        "user": np.empty(count, np.int32),
    }
    for start_row in range(0, count, _PIECE_ROWS):
        piece = slice(start_row, min(start_row + _PIECE_ROWS, count))
        n = piece.stop - piece.start
        label = rng.random(n) < 0.2
        columns["label"][piece] = label
        columns["score"][piece] = 1 / (1 + np.exp(1.5 - label - rng.normal(0, 1, n)))
        user = rng.exponential(num_users / 5, n).astype(np.int32) + 1
        columns["user"][piece] = np.minimum(user, num_users)
    return columns


def megabytes() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def main() -> None:
    """Draw, evaluate, and print what it took."""
    num_rows, num_users = map(int, sys.argv[1:])
    env = start("cpu", threads=1, timeout_seconds=1800)
    ranks = all_ranks()
    before = megabytes()
    columns = drawn(num_rows, num_users, ranks)
    ranks.gather(None)
    begun, begun_cpu, seconds = time.perf_counter(), time.process_time(), {}
    peaks = {"drawn": megabytes()}

    def done(name: str) -> None:
        ranks.gather(None)
        seconds[name] = round(time.perf_counter() - begun - sum(seconds.values()), 2)
        peaks[name] = megabytes()

    # The arrays are handed over, so that they are let go as they are sorted.
    rows = labelled_scores(
        columns.pop("label"),
        columns.pop("score"),
        columns["user"],
        units_N=columns.pop("user"),
        ranks=ranks,
    )
    done("sort")
    whole = RowSums(rows)
    metrics = evaluate_rows_of(rows, whole)
    done("metrics")
    found = intervals(whole, num_replicates=200, level=0.95, seed=0)
    done("intervals")
    assert metrics.num_rows == num_rows // ranks.size * ranks.size
    for name in METRICS:
        low, high = found[name]
        assert low <= metrics.value(name) <= high, name
    used = {
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - begun_cpu, 2),
        "by_part": seconds,
        "peak_megabytes": megabytes(),
        "peak_megabytes_up_to": peaks,
        "megabytes_before": before,
        "rows": len(rows.positive_N),
    }
    every = ranks.gather(used)
    if env.is_first:
        print("RESULT " + json.dumps({"ranks": every, "auc": metrics.value("auc")}), flush=True)
    stop()


if __name__ == "__main__":
    main()
