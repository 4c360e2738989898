"""Maximal marginal relevance (Carbonell and Goldstein 1998): a list of good items that differ.

In: the scores of candidates and their vectors by modality. Out: which of them are listed, in order.
Called by recommender.py. Shapes: C candidates, E modality width, K places.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def similarities(vectors: Sequence[NDArray]) -> NDArray:
    """Return the mean cosine over modalities of every pair of candidates [C, C].

    A candidate without a vector of a modality has the cosine 0 with all others by that modality.

    Args:
        vectors: of each modality [C, E]; a zero vector where a candidate has none.
    """
    total: NDArray | None = None
    for vectors_CE in vectors:
        norms_C1 = np.linalg.norm(vectors_CE, axis=1, keepdims=True)
        unit_CE = vectors_CE / np.maximum(norms_C1, 1e-12)
        cosines_CC = unit_CE @ unit_CE.T
        total = cosines_CC if total is None else total + cosines_CC
    assert total is not None, "a modality at least"
    return total / np.float32(len(vectors))


def marginal_relevance(
    scores_C: NDArray, similarity_CC: NDArray, *, k: int, diversity: float
) -> NDArray[np.int64]:
    """Return the places of the k chosen candidates [K], in order.

    Each is the one with the largest (1 - d) * relevance - d * (greatest similarity to those chosen
    before); relevance is the score scaled to [0, 1] over the candidates, d the diversity.

    Args:
        scores_C: logits, in any order.
        diversity: 0 orders by score, 1 by difference alone.
    """
    k = min(k, len(scores_C))
    if not k:
        return np.zeros(0, dtype=np.int64)
    low, high = float(scores_C.min()), float(scores_C.max())
    relevance_C = (scores_C - low) / max(high - low, 1e-12) * (1 - diversity)
    nearest_C = np.full(len(scores_C), -np.inf, dtype=np.float32)
    chosen = [int(relevance_C.argmax())]
    value_C = relevance_C.astype(np.float64)
    while True:
        value_C[chosen[-1]] = -np.inf
        if len(chosen) == k:
            return np.array(chosen, dtype=np.int64)
        np.maximum(nearest_C, similarity_CC[chosen[-1]], out=nearest_C)
        values_C = np.where(value_C == -np.inf, -np.inf, relevance_C - diversity * nearest_C)
        chosen.append(int(values_C.argmax()))
