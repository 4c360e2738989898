"""Exact nearest neighbours of a few items among all of a catalogue, in bounded memory.

Input: a feature table and some of its rows. Output: for each, the rows most similar to it by cosine
similarity. Called by launch/neighbours.py.
Shapes: Q queries, P rows of a piece, D width, K neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embedding.features.store import FeatureTable
from recsys.progress import progress_bar
from recsys.schema import UNKNOWN_ROW

PIECE_ROWS = 65_536
"""Rows compared at once, a row group of items.parquet: 200 MB at the paper's 512 numbers a vector."""


@dataclass(frozen=True)
class Nearest:
    """The most similar rows of each query, best first."""

    rows_QK: np.ndarray
    """int64; -1 where a query has fewer neighbours than K."""
    similarities_QK: np.ndarray
    """float32, cosine; meaningless where the row is -1."""


def nearest(
    table: FeatureTable,
    query_rows: list[int],
    *,
    k: int,
    excluded: Callable[[int, int], np.ndarray] | None = None,
    piece_rows: int = PIECE_ROWS,
) -> Nearest:
    """Return the `k` rows with the largest cosine similarity to each query, over the whole table.

    The table is read once, in pieces, and the best so far are kept: memory does not grow with its
    rows. The query itself, the unknown row 0 and masked rows (all zero) never appear; a masked query has
    no neighbours.
    Similarities are rounded to six digits and ties go to the smaller row, so that neither the size
    of a piece nor the order of additions decides.

    Args:
        excluded: given (start, stop), bool [Q, stop - start]: rows that may not appear for a query.
    """
    num_queries = len(query_rows)
    queries_QD = np.concatenate([table.read(row, row + 1) for row in query_rows]).astype(np.float32)
    queries_QD, has_vector_Q = _unit(queries_QD)
    rows_QK = np.full((num_queries, k), -1, dtype=np.int64)
    best_QK = np.full((num_queries, k), -np.inf, dtype=np.float32)
    starts = range(0, table.num_rows, piece_rows)
    for start in progress_bar(starts, desc=table.name, unit="piece"):
        stop = min(start + piece_rows, table.num_rows)
        piece_PD, has_vector_P = _unit(table.read(start, stop).astype(np.float32))
        alike_QP = np.round(queries_QD @ piece_PD.T, 6)
        alike_QP[:, ~has_vector_P] = -np.inf
        if start == UNKNOWN_ROW:
            alike_QP[:, UNKNOWN_ROW] = -np.inf
        alike_QP[~has_vector_Q] = -np.inf
        if excluded is not None:
            alike_QP[excluded(start, stop)] = -np.inf
        for query, row in enumerate(query_rows):
            if start <= row < stop:
                alike_QP[query, row - start] = -np.inf
            # Strictly better: among equals the earlier row stays.
            better = np.flatnonzero(alike_QP[query] > best_QK[query, -1])
            alike = np.concatenate([best_QK[query], alike_QP[query, better]])
            rows = np.concatenate([rows_QK[query], better + start])
            order = np.argsort(-alike, kind="stable")[:k]
            best_QK[query], rows_QK[query] = alike[order], rows[order]
    return Nearest(rows_QK, best_QK)


def _unit(vectors_PD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale float32 vectors to length 1, in place; return them and bool [P], which have a length.

    A vector of zeros, or with a number that is not finite, has none and becomes zeros.
    """
    lengths_P = np.sqrt(np.einsum("pd,pd->p", vectors_PD, vectors_PD))
    has_vector_P = np.isfinite(lengths_P) & (lengths_P > 0)
    vectors_PD[~has_vector_P] = 0
    vectors_PD /= np.where(has_vector_P, lengths_P, 1)[:, None]
    return vectors_PD, has_vector_P
