"""Taste: one score for every item of a bundle, for the map of the catalogue.

Up to FULL_ITEMS items the full model scores them; above, the inner product that finds candidates does,
which is one product of matrices. Called by recommender.py.
Shapes: N item rows, B of a block, R retrieval width.
"""

import numpy as np
import torch

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer, Users
from recsys.serving.requests import Taste
from recsys.serving.routes import Router

FULL_ITEMS = 20_000
_BLOCK_ROWS = 4096


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
    return Taste("full" if is_full else "direct", scores_N)
