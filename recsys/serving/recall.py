"""Recall of candidates: how many of the full model's best items are among the candidates of a request.

In: an opened recommender and users. Out: the mean over users. Called by launch/export.py, which stores it
in bundle.json, and by launch/evaluate.py.
Shapes: N item rows, K best items, C candidates.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.scorer import Profile
from recsys.schema import UNKNOWN_ROW
from recsys.serving.recommender import Recommender
from recsys.serving.routes import Wanted
from recsys.serving.visitors import Visitor

_BLOCK_ROWS = 16_384


def recall_of(best_K: NDArray[np.int64], candidates_C: NDArray[np.int64]) -> float:
    """Return the share of the best items that are candidates; nan where there are no best items."""
    return float(np.isin(best_K, candidates_C).mean()) if len(best_K) else float("nan")


def candidate_recall(
    recommender: Recommender,
    user_rows: Sequence[int],
    *,
    k: int = 50,
    num_candidates: int = 500,
    progress: Callable[[int], None] = lambda users: None,
) -> float:
    """Return the mean recall of the exact best k of all items that a user has not seen.

    Args:
        user_rows: rows of known users.
        progress: called with 1 after every user.
    """
    recalls = []
    for user_row in user_rows:
        visitor = known_visitor(recommender, user_row)
        wanted = Wanted(visitor=visitor, size=num_candidates, excluded=visitor.seen, allowed=None)
        found = recommender.candidates([wanted])[0]
        best_K = exact_best(recommender, visitor, k)
        recalls.append(recall_of(best_K, found.rows_C))
        progress(1)
    return float(np.mean(recalls)) if recalls else float("nan")


def known_visitor(recommender: Recommender, user_row: int) -> Visitor:
    """Return a known user as a visitor, with the history that the bundle stores."""
    history = recommender.bundle.users.history(user_row)
    return Visitor(
        profile=Profile(user_row=user_row),
        likes=history[history != UNKNOWN_ROW],
        seen=recommender.bundle.users.seen(user_row),
        unknown_likes=[],
        known_user=user_row != UNKNOWN_ROW,
        dials=None,
    )


def exact_best(recommender: Recommender, visitor: Visitor, k: int) -> NDArray[np.int64]:
    """Return the k items with the largest logits of the full model [K], seen ones left out."""
    scorer, num_rows = recommender.scorer, len(recommender.bundle.items)
    users = scorer.encode([visitor.profile])
    logits_N = torch.empty(num_rows)
    for start in range(0, num_rows, _BLOCK_ROWS):
        rows = torch.arange(start, min(start + _BLOCK_ROWS, num_rows))
        logits_N[rows], _ = scorer.score(users, torch.zeros_like(rows), rows, None)
    logits_N[UNKNOWN_ROW] = -torch.inf
    logits_N[torch.from_numpy(visitor.seen)] = -torch.inf
    num_left = int((logits_N > -torch.inf).sum())
    return logits_N.topk(min(k, num_left)).indices.numpy()
