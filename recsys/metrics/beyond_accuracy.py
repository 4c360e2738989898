"""Metrics of recommended lists beyond accuracy: coverage, novelty, popularity, diversity.

In: lists of recommended item rows, item popularity, item vectors. Out: floats. Called by
launch/evaluate.py. A list that names what everybody knows, or one thing ten times, can have the best
accuracy and be of no use.

Accumulation over ranks, which each have lists of other users: coverage counts the different items of all
of them; the others are means over lists, whose sums and counts are added up.
Shapes: U users, K places of a list (-1 where it is shorter), I item rows (row 0 unknown), E width.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.runtime.ranks import ALONE, Ranks


def _checked_lists(lists_UK: ArrayLike, num_item_rows: int) -> NDArray[np.int64]:
    lists = np.asarray(lists_UK, dtype=np.int64)
    if lists.ndim != 2:
        raise UserError(f"lists {lists.shape}: expected item rows [users, places]")
    if lists.size and (lists.min() < -1 or lists.max() >= num_item_rows):
        raise UserError(
            f"lists hold rows {lists.min()} to {lists.max()}: expected -1 to {num_item_rows - 1}"
        )
    return lists


def coverage(lists_UK: ArrayLike, *, num_item_rows: int, ranks: Ranks = ALONE) -> float:
    """Return the share of the catalogue (row 0 apart) that is recommended to anybody.

    Edge cases: nan for a catalogue without items; 0 without lists.
    """
    lists = _checked_lists(lists_UK, num_item_rows)
    if num_item_rows < 2:
        return float("nan")
    return ranks.num_distinct(lists[lists > 0]) / (num_item_rows - 1)


def novelty(lists_UK: ArrayLike, *, count_I: ArrayLike, ranks: Ranks = ALONE) -> float:
    """Return the mean surprise of a recommended item in bits: -log2 of its share of training rows.

    novelty = mean of -log2((count_i + 1) / sum_j (count_j + 1)) (Zhou et al., PNAS 107, 2010); the 1
    keeps items without a training row finite. Uniform popularity gives log2 of the catalogue's size.

    Edge cases: nan without recommendations.
    """
    counts = np.asarray(count_I)
    lists = _checked_lists(lists_UK, counts.size)
    all_counts = float(counts[1:].sum()) + counts.size - 1
    return _mean(-np.log2((counts[lists[lists > 0]] + 1) / all_counts), ranks)


def _mean(values: NDArray[np.float64], ranks: Ranks) -> float:
    """Return the mean of the values [N] of all ranks; nan without any."""
    total, count = ranks.total(np.array([values.sum(), values.size]))
    return float(total / count) if count else float("nan")


def popularity_lift(
    lists_UK: ArrayLike, *, count_I: ArrayLike, profile_mean_U: ArrayLike, ranks: Ranks = ALONE
) -> float:
    """Return how much more popular recommendations are than what the users liked themselves.

    lift = mean_u (mean count of u's list) / mean_u (mean count of u's own items) - 1
    (Abdollahpouri et al., RecSys 2019): 0 as popular as the users' taste, 1 twice as popular.

    Args:
        profile_mean_U: mean count of the items in each user's history; nan where it is empty.

    Edge cases: users with an empty list or history are left out; nan where none is left, or where the
    items of the histories have no training row.
    """
    counts = np.asarray(count_I)
    lists = _checked_lists(lists_UK, counts.size)
    profile = np.asarray(profile_mean_U, dtype=np.float64)
    there = lists > 0
    keep = there.any(axis=1) & ~np.isnan(profile)
    lists, there = lists[keep], there[keep]
    of_lists = (counts[np.maximum(lists, 0)] * there).sum(axis=1) / there.sum(axis=1)
    recommended, liked = _mean(of_lists, ranks), _mean(profile[keep], ranks)
    return recommended / liked - 1 if liked else float("nan")


def intra_list_diversity(
    lists_UK: ArrayLike, *, vectors_IE: NDArray, ranks: Ranks = ALONE
) -> float:
    """Return the mean of 1 - cosine over the pairs of a list, averaged over lists.

    (Ziegler et al., WWW 2005.) By semantic vectors: do the pictures show different things; by style
    vectors: are they painted differently. 0: the same thing again and again.

    Edge cases: items without a vector (all zero) are left out of their list; a list with fewer than
    two vectors is left out; nan where no list is left.
    """
    lists = _checked_lists(lists_UK, len(vectors_IE))
    values = []
    for row_K in lists:
        vectors = np.asarray(vectors_IE[row_K[row_K > 0]], dtype=np.float64)
        norms = np.linalg.norm(vectors, axis=1)
        vectors = vectors[norms > 0] / norms[norms > 0, None]
        count = len(vectors)
        if count > 1:
            # The cosines of all ordered pairs, a vector with itself included, are |sum|^2.
            pairs = (np.square(vectors.sum(axis=0)).sum() - count) / (count * (count - 1))
            values.append(1 - pairs)
    return _mean(np.array(values, np.float64), ranks)
