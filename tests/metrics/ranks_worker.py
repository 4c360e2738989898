"""Evaluates drawn rows that are spread over the ranks, and sorts columns: `torchrun ranks_worker.py`.

Started by test_ranks.py, which compares what rank 0 prints with one process that has all rows.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.curves import curves_of
from recsys.metrics.bootstrap import unit_keys
from recsys.metrics.predictions import NanScoresError, labelled_scores
from recsys.metrics.row_sums import RowSums
from recsys.metrics.summary import evaluate_rows_of, intervals
from recsys.metrics.weights import mean_by_user, summarise_weights
from recsys.runtime import distributed_sort
from recsys.runtime import ranks as ranks_module
from recsys.runtime.collectives import RankError
from recsys.runtime.distributed_sort import order_statistics, sorted_rows
from recsys.runtime.env import start, stop
from recsys.runtime.ranks import ALONE, Ranks, all_ranks

CASES = (
    "plain",
    "ties",
    "equal scores",
    "one user",
    "a rank without rows",
    "one class",
    "no rows",
    "few rows",
    "no users",
)
NUM_REPLICATES = 11


@dataclasses.dataclass
class Rows:
    """Rows of a case, in any order."""

    labels: NDArray
    scores: NDArray
    users: NDArray | None
    hashes: NDArray
    weights: NDArray


def drawn(case: str) -> Rows:
    """Return the rows of all ranks."""
    rng = np.random.default_rng(CASES.index(case))
    count = {"no rows": 0, "few rows": 3}.get(case, 5000)
    scores = rng.random(count)
    if case == "ties":
        scores = np.round(scores, 2)
    if case == "equal scores":
        scores[:] = 0.3
    users = rng.integers(0, 200, count)
    if case == "one user":
        users[rng.random(count) < 0.9] = 7
    labels = (rng.random(count) < 0.2 + 0.5 * scores).astype(np.uint8)
    if case == "one class":
        labels[:] = 0
    return Rows(
        labels=labels,
        scores=scores,
        users=None if case == "no users" else users,
        hashes=np.where((users == 0) & (rng.random(count) < 0.8), rng.integers(1, 9, count), 0),
        weights=rng.dirichlet(np.ones(3), count).astype(np.float32),
    )


def part_of(case: str, rank: int, size: int) -> NDArray[np.bool_]:
    """Return which rows of a case a rank has [N]."""
    count = len(drawn(case).scores)
    owner = np.random.default_rng(size).integers(0, size, count)
    if case == "a rank without rows":
        owner[owner == size - 1] = 0
    return owner == rank


def evaluated(case: str, ranks: Ranks) -> dict[str, Any]:
    """Return everything that an evaluation computes of the rows of all ranks."""
    whole, own = drawn(case), part_of(case, ranks.rank, ranks.size)
    users = None if whole.users is None else whole.users[own]
    units = unit_keys(np.flatnonzero(own), users, whole.hashes[own].astype(np.uint64))
    rows = labelled_scores(whole.labels[own], whole.scores[own], users, units_N=units, ranks=ranks)
    sums = RowSums(rows)
    segment = rows.where((rows.probability_N * 1000).astype(int) % 3 == 0)
    curves = curves_of(rows, whole.weights[own])
    found = {
        "all": evaluate_rows_of(rows, sums).flat(),
        "segment": evaluate_rows_of(segment).flat(),
        "intervals": intervals(sums, num_replicates=NUM_REPLICATES, level=0.9, seed=3),
        "bins": [dataclasses.asdict(b) for b in curves.bins],
        "roc": [axis.tolist() for axis in curves.roc["model"]],
        "scores": curves.score_counts_2H.tolist(),
        "weights": curves.weight_counts_MH.tolist(),
        "units": ranks.num_distinct(rows.unit_N),
    }
    summary = summarise_weights(whole.weights[own], ["a", "b", "c"], ranks)
    found["summary"] = {name: dataclasses.asdict(s) for name, s in summary.items()}
    if users is not None:
        found_U, means = mean_by_user(whole.weights[own], users, ranks)
        found["users"] = [found_U.tolist(), means.tolist()]
    return found


COLUMNS = {
    "float": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(-300, 300, n),
    "signs": lambda rng, n: rng.choice([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf], n),
    "float32": lambda rng, n: rng.normal(size=n).astype(np.float32),
    "int64": lambda rng, n: rng.integers(-(2**62), 2**62, n),
    "int32": lambda rng, n: rng.integers(-5, 5, n).astype(np.int32),
    "uint64": lambda rng, n: rng.integers(0, 2**64, n, dtype=np.uint64),
    "bool": lambda rng, n: rng.random(n) < 0.5,
}


def sorted_columns(kind: str, ranks: Ranks) -> dict[str, Any]:
    """Return the rows of all ranks by rank after a sort, and order statistics beside numpy's."""
    rng = np.random.default_rng(1)
    keys = COLUMNS[kind](rng, 700)
    own = rng.integers(0, ranks.size, 700) == ranks.rank
    columns = {"key": keys[own], "place": np.flatnonzero(own), "pair": np.stack([keys[own]] * 2, 1)}
    range_of_rank = sorted_rows(columns, "key", ranks)
    places = np.array([0, 1, 350, 698, 699])
    statistics = order_statistics(np.sort(keys[own]), places, ranks)
    parts = ranks.gather(range_of_rank)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in range_of_rank}
    ends = [part["key"][[0, -1]] for part in parts if len(part["key"])]
    return {
        "is sorted": bool((joined["key"] == np.sort(keys)).all()),
        "rows stay whole": bool(
            (keys[joined["place"]] == joined["key"]).all()
            and (joined["pair"] == joined["key"][:, None]).all()
        ),
        "every row once": sorted(joined["place"].tolist()) == list(range(700)),
        "ties on one rank": all(a[1] < b[0] for a, b in zip(ends, ends[1:], strict=False)),
        "types stay": joined["key"].dtype == keys.dtype,
        "statistics": bool((statistics == np.sort(keys)[places]).all()),
        "longest": max(len(part["key"]) for part in parts),
    }


def raised_without_memory(ranks: Ranks) -> str:
    """Return the name of what this rank raises where the last one has no memory for an exchange."""

    def refused(*_: int) -> Any:
        raise MemoryError

    allocate = ranks_module._buffers
    if ranks.rank == ranks.size - 1:
        ranks_module._buffers = refused
    try:
        sorted_columns("float", ranks)
    except (MemoryError, RankError) as error:
        return type(error).__name__
    finally:
        ranks_module._buffers = allocate
    return ""


def raised_of_nan(ranks: Ranks) -> str:
    """Return what this rank raises where 20 of the last rank's 30 scores are NaN, and no others."""
    scores = np.full(30, 0.5)
    if ranks.rank == ranks.size - 1:
        scores[:20] = np.nan
    try:
        labelled_scores(np.zeros(30), scores, ranks=ranks)
    except NanScoresError as error:
        return str(error)
    return ""


def main() -> None:
    """Write what every rank found; a rank sends pieces of 300 rows."""
    env = start("cpu", timeout_seconds=60)
    ranks = all_ranks()
    ranks_module._PIECE_ROWS = distributed_sort._PIECE_ROWS = 300
    ranks_module._SMALL_BYTES = 4000
    found = {
        "cases": {case: evaluated(case, ranks) for case in CASES},
        "sorted": {kind: sorted_columns(kind, ranks) for kind in COLUMNS},
        "without memory": raised_without_memory(ranks),
        "of NaN": raised_of_nan(ranks),
        "alone": ALONE.total(3),
    }
    every = ranks.gather(found)
    if env.is_first:
        Path(sys.argv[1]).write_text(json.dumps(every), encoding="utf-8")
    stop()


if __name__ == "__main__":
    main()
