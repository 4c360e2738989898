"""Taste: one score for every item of a bundle, for the map of the catalogue.

Up to FULL_ITEMS items the full model scores them; above, the inner product that finds candidates does,
which takes a thousandth of the time. Called by recommender.py.
Shapes: N item rows, B of a block, R retrieval width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer, Users
from recsys.serving.routes import Router

FULL_ITEMS = 20_000
FULL, DIRECT = "full", "direct"
_BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Taste:
    """Scores of all items for one visitor."""

    by: str
    """`full`: probabilities by the full model; `direct`: its direct term alone, in log-odds."""
    scores_N: NDArray[np.float32]
    """Scores [N - 1] of the items of the bundle's files, from row 1."""


def taste_of(bundle: Bundle, scorer: BundleScorer, router: Router, users: Users) -> Taste:
    """Return the scores of all items for one encoded user."""
    num_rows = bundle.items.num_stored
    is_full = num_rows - 1 <= FULL_ITEMS
    scores_N = np.empty(max(num_rows - 1, 0), np.float32)
    user_R = None if is_full else router.user_vectors(users, None)[0]
    for start in range(1, num_rows, _BLOCK_ROWS):
        rows_B = torch.arange(start, min(num_rows, start + _BLOCK_ROWS))
        block = slice(start - 1, start - 1 + len(rows_B))
        if user_R is None:
            logits_B, _ = scorer.score(users, torch.zeros_like(rows_B), rows_B)
            scores_N[block] = logits_B.sigmoid().numpy()
        else:
            scores_N[block] = router.direct_scores(user_R, rows_B.numpy())
    return Taste(FULL if is_full else DIRECT, scores_N)
