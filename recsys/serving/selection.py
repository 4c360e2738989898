"""Selection: which of the scored candidates are listed, and in which order.

In: logits and vectors of candidates. Out: their places. Called by recommender.py.
Shapes: C candidates, K places of the list, P candidates that are compared.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.items import Items
from recsys.serving.diversity import marginal_relevance, similarities

DIVERSITY_OF_STRANGERS = 0.3
"""Diversity of the list of a visitor without likes, where the request does not say."""
_FRESH_SHARE = 0.25
"""Least share of fresh items in such a list."""
_COMPARED = ("semantic", "style")
"""Modalities by which a list is varied; a bundle without them is varied by those it has."""


def best(
    logits_C: NDArray, rows_C: NDArray[np.int64], items: Items, *, k: int, diversity: float
) -> NDArray[np.int64]:
    """Return the places of the k listed candidates [K], in order.

    Args:
        diversity: 0: by logit alone; else maximal marginal relevance over the best 4 k candidates.
    """
    num_compared = k if not diversity else max(4 * k, 100)
    order_C = _largest(logits_C, num_compared)
    names = [name for name in _COMPARED if name in items.modalities] or items.modalities
    if not diversity or not names:
        return order_C[:k]
    rows_P = torch.from_numpy(rows_C[order_C])
    vectors = [items.modality(name, rows_P)[0].numpy() for name in names]
    chosen = marginal_relevance(logits_C[order_C], similarities(vectors), k=k, diversity=diversity)
    return order_C[chosen]


def with_fresh(
    places_K: NDArray[np.int64], logits_C: NDArray, is_fresh_C: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return a list [K] in which a quarter at least are fresh items, as far as there are so many.

    The best fresh candidates that are not listed replace the last listed ones that are not fresh.
    """
    wanted = int(_FRESH_SHARE * len(places_K))
    missing = wanted - int(is_fresh_C[places_K].sum())
    if missing <= 0:
        return places_K
    free_C = is_fresh_C.copy()
    free_C[places_K] = False
    more = np.flatnonzero(free_C)
    more = more[_largest(logits_C[more], missing)]
    replaced = np.flatnonzero(~is_fresh_C[places_K])[::-1][: len(more)]
    listed_K = places_K.copy()
    listed_K[replaced] = more[: len(replaced)][::-1]
    return listed_K


def _largest(values_C: NDArray, k: int) -> NDArray[np.int64]:
    """Return the places of the k largest values [K], largest first; the earlier of equal ones first."""
    if k < len(values_C):
        places = np.sort(np.argpartition(-values_C, k - 1)[:k])
        return places[np.argsort(-values_C[places], kind="stable")]
    return np.argsort(-values_C, kind="stable")
