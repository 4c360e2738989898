"""Nearest neighbours the slow and obvious way: every pair, one at a time."""

import numpy as np


def nearest_slowly(vectors, query_row, k, excluded=()):
    """Return [(row, cosine)] of the k rows most like `query_row`, ties by row."""
    asked = vectors[query_row].astype(np.float64)
    found = []
    for row, vector in enumerate(vectors.astype(np.float64)):
        if row == query_row or row in excluded or not vector.any() or not asked.any():
            continue
        cosine = (asked @ vector) / np.sqrt((asked @ asked) * (vector @ vector))
        found.append((-round(cosine, 5), row, cosine))
    return [(row, cosine) for _, row, cosine in sorted(found)[:k]]
