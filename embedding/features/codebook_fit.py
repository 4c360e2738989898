"""Fit of codebooks: principal axes and k-means on a sample of a table, or the codebooks that it has.

Called by embedding/features/extraction.py before vectors are coded, and by prepare for own vectors.
Shapes: N vectors, E their width, Z width of a turned vector, S parts, D numbers of a part.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedding.features.codes import CODEWORDS, Codebooks
from embedding.features.replacement import replace_tables
from embedding.features.store import FeatureTable, read_feature_manifest
from recsys.files import EMBED_AGAIN

SAMPLE_ROWS = 16_384
"""Vectors that codebooks are fitted on; of a larger table a sample."""
_BLOCK_ROWS = 256
_ITERATIONS = 10
"""Of k-means, which has converged but for its last digits."""


def known_codebooks(
    features: Path, names: list[str], bits: int, revision: str
) -> dict[str, Codebooks]:
    """Return the codebooks of finished tables, by name; none unless all are of these bits and encoder."""
    replace_tables(features, names)
    for name in names:
        if not (features / name / "manifest.json").is_file():
            return {}
        made = read_feature_manifest(features / name)
        if (made.bits, made.revision) != (bits, revision):
            return {}
    return {name: Codebooks.read(features / name, EMBED_AGAIN) for name in names}


def fitted_codebooks(folder: Path, bits: int) -> Codebooks:
    """Return codebooks for the vectors of a finished fp16 table."""
    table = FeatureTable(folder)
    if table.num_rows <= SAMPLE_ROWS:
        return fit_codebooks(table.read(0, table.num_rows), bits)
    last = table.num_rows - _BLOCK_ROWS
    starts = np.linspace(0, last, SAMPLE_ROWS // _BLOCK_ROWS).astype(int).tolist()
    blocks = [table.read(start, start + _BLOCK_ROWS) for start in starts]
    return fit_codebooks(np.concatenate(blocks), bits)


def fit_codebooks(vectors_NE: NDArray, bits: int, seed: int = 0) -> Codebooks:
    """Return codebooks for vectors like these [N, E]; those of up to 255 vectors lose nothing.

    Args:
        vectors_NE: rows of zeros are left out; without any other, every vector becomes zero.
        bits: of a number, 2 or 4.
        seed: of k-means.
    """
    part_dim = 8 // bits
    vectors_NE = vectors_NE[vectors_NE.any(axis=1)].astype(np.float32)
    num_parts = -(-vectors_NE.shape[1] // part_dim)
    basis_EZ = _balanced_basis(vectors_NE, num_parts, part_dim)
    turned_NZ = np.ascontiguousarray(vectors_NE @ basis_EZ)
    if len(turned_NZ) >= CODEWORDS:
        import faiss

        quantiser = faiss.ProductQuantizer(num_parts * part_dim, num_parts, 8)
        quantiser.cp.niter, quantiser.cp.seed = _ITERATIONS, seed
        quantiser.cp.min_points_per_centroid = 1
        quantiser.train(turned_NZ)
        words = faiss.vector_to_array(quantiser.centroids).reshape(num_parts, CODEWORDS, part_dim)
    else:
        words = np.zeros((num_parts, CODEWORDS, part_dim), dtype=np.float32)
        parts_SND = turned_NZ.reshape(-1, num_parts, part_dim).swapaxes(0, 1)
        words[:, 1 : 1 + len(turned_NZ)] = parts_SND
    words[:, 0] = 0
    return Codebooks(basis_EZ, words)


def _balanced_basis(
    vectors_NE: NDArray[np.float32], num_parts: int, part_dim: int
) -> NDArray[np.float32]:
    """Return the principal axes [E, Z], grouped into parts of equal products of their variances.

    Axes go, from the greatest variance to the least, to the part with the least product so far.
    """
    dim = vectors_NE.shape[1]
    moment_EE = vectors_NE.T.astype(np.float64) @ vectors_NE / max(1, len(vectors_NE))
    variance_E, axes_EE = np.linalg.eigh(moment_EE)
    floor = max(float(variance_E[-1]), 1.0) * 1e-9
    logs_E = np.log(np.maximum(variance_E, floor) / floor)
    members: list[list[int]] = [[] for _ in range(num_parts)]
    products_S = np.zeros(num_parts)
    for axis in range(dim - 1, -1, -1):
        part = int(products_S.argmin())
        members[part].append(axis)
        full = len(members[part]) == part_dim
        products_S[part] = np.inf if full else products_S[part] + logs_E[axis]
    basis_EZ = np.zeros((dim, num_parts * part_dim), dtype=np.float32)
    for part, axes in enumerate(members):
        basis_EZ[:, part * part_dim : part * part_dim + len(axes)] = axes_EE[:, axes]
    return basis_EZ
