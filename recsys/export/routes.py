"""Export of the routes: popular and fresh items, indexes, anchors, and the recall of the candidates.

In: a bundle in the making, whose other data files are written. Out: `routes/` and `index/` below it, as
recsys/serving/routes.py describes them, and what was measured. Called by export.py of this folder.
"""

import time
from pathlib import Path

import numpy as np

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer
from recsys.job import stage
from recsys.progress import progress_bar
from recsys.serving.recall import candidate_recall
from recsys.serving.recommender import Recommender
from recsys.serving.requests import RecommendRequest
from recsys.serving.routes import write_routes

BEST, CANDIDATES = 50, 500
_MAX_USERS = 50
_MAX_PAIRS = 2_000_000
"""Pairs scored at most to find the exact best items, of two users at least."""


def export_routes(folder: Path) -> dict[str, float]:
    """Write the files of routes, and return what was measured on them.

    `recall_50_of_500`: share of a user's exact best 50 items among 500 candidates, mean over drawn users
    (nan without users); `request_ms_p50` and `request_ms_p99`: of a request for a list, on one thread or
    as many as torch has; `index_recall_<route>` where the catalogue is too large for scans.
    """
    with stage("routes") as routing:
        bundle = Bundle.open(folder)
        with progress_bar(desc="routes", unit="item") as progress:
            measured = write_routes(bundle, BundleScorer(bundle), progress.update)
        recommender = Recommender(bundle)
        rows = _drawn_users(bundle)
        recall = candidate_recall(recommender, rows, k=BEST, num_candidates=CANDIDATES)
        measured[f"recall_{BEST}_of_{CANDIDATES}"] = recall
        measured |= _request_times(recommender)
        routing.done(
            f"recall of the best {BEST} items among {CANDIDATES} candidates {recall:.3f}, "
            f"{len(rows)} users; a request takes {measured['request_ms_p50']:.1f} ms"
        )
    return measured


def _drawn_users(bundle: Bundle) -> list[int]:
    """Return rows of known users, drawn; none where the data has no users."""
    num_known = max(bundle.users.num_rows - 1, 0)
    num_users = int(np.clip(_MAX_PAIRS // len(bundle.items), 2, _MAX_USERS))
    rng = np.random.default_rng(0)
    return sorted((rng.permutation(num_known)[:num_users] + 1).tolist())


def _request_times(recommender: Recommender) -> dict[str, float]:
    """Return percentiles of the milliseconds that a request for a list takes."""
    bundle, rng = recommender.bundle, np.random.default_rng(1)
    rows = rng.integers(1, max(len(bundle.items), 2), (100, 5))
    times = []
    for likes in rows.tolist():
        request = RecommendRequest(likes=[str(bundle.item_id(row) or row) for row in likes])
        start = time.perf_counter()
        recommender.recommend_many([request])
        times.append(1000 * (time.perf_counter() - start))
    return {f"request_ms_p{p}": float(np.percentile(times, p)) for p in (50, 99)}
