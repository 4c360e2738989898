"""Layout of a map: t-SNE of the principal components of item vectors, the same for the same vectors.

In: vectors of one modality. Out: a point of the plane for every item, near to those of similar items.
t-SNE (openTSNE: Barnes-Hut, above MAX_EXACT points interpolation by FFT) begins at the first two
components. Above MAX_ANCHORS items a sample of so many is laid out, and the others are placed by their
nearest anchors. Called by map.py of this folder.
Shapes: N items, E modality width, D components, A anchors, K neighbours, B items of a block.
"""

from collections.abc import Callable

import faiss
import numpy as np
from numpy.typing import NDArray
from openTSNE import TSNEEmbedding
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import PrecomputedNeighbors

LAYOUT_VERSION = 1
"""Raised with every change that moves points, so that stored layouts are made anew."""
SEED = 0
NUM_COMPONENTS = 40
PERPLEXITY = 30
MAX_ANCHORS = 30_000
MAX_EXACT = 8_000
STEPS = {True: (100, 200), False: (250, 400)}
"""Steps with early exaggeration and without, of at most MAX_EXACT points and of more."""
_EXAGGERATION = 12
_MIN_POINTS = 10
"""Fewer points are shown by their first two components."""
_NUM_NEAREST = 5
_BLOCK_ROWS = 16_384
_STEPS_A_CALL = 10

Progress = Callable[[int], object]
"""Function of the steps done since the last call."""


def num_steps(num_items: int) -> int:
    """Return how many steps `lay_out` counts for N items."""
    num_placed = max(num_items - MAX_ANCHORS, 0)
    return sum(STEPS[num_items <= MAX_EXACT]) + -(-num_placed // _BLOCK_ROWS)


def lay_out(
    vectors_NE: NDArray[np.float16], progress: Progress, *, threads: int
) -> NDArray[np.float32]:
    """Return a point of the plane [N, 2] for every vector, of mean 0 and in the unit of t-SNE.

    Args:
        progress: called with the number of steps done since the last call.
    """
    num_items = len(vectors_NE)
    components_ND = principal_components(vectors_NE, NUM_COMPONENTS)
    if num_items < _MIN_POINTS:
        points_N2 = np.zeros((num_items, 2), np.float32)
        points_N2[:, : components_ND.shape[1]] = components_ND[:, :2]
        progress(num_steps(num_items))
        return points_N2
    rng = np.random.default_rng(SEED)
    if num_items <= MAX_ANCHORS:
        points_N2 = _tsne(components_ND, progress, threads)
    else:
        anchors_A = np.sort(rng.choice(num_items, MAX_ANCHORS, replace=False))
        points_A2 = _tsne(components_ND[anchors_A], progress, threads)
        points_N2 = _placed(components_ND, components_ND[anchors_A], points_A2, rng, progress)
        points_N2[anchors_A] = points_A2
    return points_N2 - points_N2.mean(axis=0)


def principal_components(vectors_NE: NDArray, num_components: int) -> NDArray[np.float32]:
    """Return the first principal components of vectors [N, D], D at most E; read in blocks."""
    num_items, width = vectors_NE.shape
    sum_E, product_EE = np.zeros(width), np.zeros((width, width))
    blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, num_items, _BLOCK_ROWS)]
    for block in blocks:
        block_BE = vectors_NE[block].astype(np.float64)
        sum_E += block_BE.sum(axis=0)
        product_EE += block_BE.T @ block_BE
    mean_E = sum_E / max(num_items, 1)
    _, axes_EE = np.linalg.eigh(product_EE - num_items * np.outer(mean_E, mean_E))
    axes_ED = axes_EE[:, ::-1][:, :num_components]
    # The sign of an axis is arbitrary: its largest entry is made positive.
    largest_D = np.abs(axes_ED).argmax(axis=0)
    axes_ED = axes_ED * np.sign(axes_ED[largest_D, np.arange(axes_ED.shape[1])])
    found_ND = np.empty((num_items, axes_ED.shape[1]), np.float32)
    for block in blocks:
        found_ND[block] = (vectors_NE[block] - mean_E) @ axes_ED
    return found_ND


def aligned(points_N2: NDArray, to_N2: NDArray) -> NDArray[np.float32]:
    """Return points [N, 2] turned or mirrored to be nearest to others [N, 2] (Procrustes).

    Rows that are nan in either are not compared; nan stays nan.
    """
    is_both_N = ~np.isnan(points_N2 + to_N2).any(axis=1)
    left, _, right = np.linalg.svd(points_N2[is_both_N].T @ to_N2[is_both_N])
    return (points_N2 @ (left @ right)).astype(np.float32)


def normalised(points_N2: NDArray) -> NDArray[np.float32]:
    """Return points [N, 2] moved and scaled, equally in both directions, to fill [-1, 1]; nan stays."""
    low_2, high_2 = np.nanmin(points_N2, axis=0), np.nanmax(points_N2, axis=0)
    scale = max(float((high_2 - low_2).max()) / 2, 1e-12)
    return ((points_N2 - (low_2 + high_2) / 2) / scale).astype(np.float32)


def _tsne(components_ND: NDArray, progress: Progress, threads: int) -> NDArray[np.float32]:
    num_items = len(components_ND)
    perplexity = min(PERPLEXITY, (num_items - 1) / 3)
    neighbour_NK, distance_NK = _nearest(components_ND, components_ND, int(3 * perplexity) + 1)
    neighbours = PrecomputedNeighbors(neighbour_NK[:, 1:], distance_NK[:, 1:])
    affinities = PerplexityBasedNN(
        knn_index=neighbours, perplexity=perplexity, n_jobs=threads, random_state=SEED
    )
    start_N2 = components_ND[:, :2] * (1e-4 / max(float(components_ND[:, 0].std()), 1e-12))
    is_exact = num_items <= MAX_EXACT
    embedding = TSNEEmbedding(
        start_N2.astype(np.float64),
        affinities,
        negative_gradient_method="bh" if is_exact else "fft",
        theta=0.8,
        n_jobs=threads,
        random_state=SEED,
        callbacks=lambda *_: progress(_STEPS_A_CALL) and False,
        callbacks_every_iters=_STEPS_A_CALL,
    )
    early, late = STEPS[is_exact]
    embedding = embedding.optimize(early, exaggeration=_EXAGGERATION, momentum=0.5)
    return np.asarray(embedding.optimize(late, momentum=0.8), np.float32)


def _nearest(of_BD: NDArray, among_AD: NDArray, k: int) -> tuple[NDArray, NDArray]:
    """Return the k nearest of A points for each of B: (places [B, K], distances [B, K])."""
    index = faiss.IndexFlatL2(among_AD.shape[1])
    index.add(np.ascontiguousarray(among_AD))
    square_BK, place_BK = index.search(np.ascontiguousarray(of_BD), k)
    return place_BK, np.sqrt(np.maximum(square_BK, 0))


def _placed(
    components_ND: NDArray,
    anchor_AD: NDArray,
    points_A2: NDArray,
    rng: np.random.Generator,
    progress: Progress,
) -> NDArray[np.float32]:
    """Return points [N, 2]: each the median of its nearest anchors' points.

    A median is one of several clusters, where a mean would be between them. Items with the same anchors
    are scattered by half the distance between neighbouring anchors.
    """
    points_N2 = np.empty((len(components_ND), 2), np.float32)
    distance_A = _nearest(points_A2, points_A2, 2)[1][:, 1]
    for start in range(0, len(components_ND), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        place_BK, _ = _nearest(components_ND[block], anchor_AD, _NUM_NEAREST)
        spread_B = distance_A[place_BK[:, 0]] / 2
        scattered_B2 = rng.normal(size=(len(place_BK), 2)) * spread_B[:, None]
        points_N2[block] = np.median(points_A2[place_BK], axis=1) + scattered_B2
        progress(1)
    return points_N2
