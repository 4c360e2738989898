"""Vector index: hits against a full sort, filters, added items, and the faiss file."""

import numpy as np
import pytest
import torch

from recsys.serving import index as index_module
from recsys.serving.index import VectorIndex, write_index


def reference(vectors, queries, k, may, is_cosine):
    """Rows of the k best allowed, by a full sort."""
    vectors, queries = vectors.float().numpy(), queries.float().numpy()
    if is_cosine:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores = np.where(may, queries @ vectors.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(scores, order, 1) > -np.inf, order, -1)


@pytest.fixture
def vectors(rng):
    found = rng.standard_normal((500, 8)).astype(np.float16)
    found[0] = 0
    return torch.from_numpy(found)


@pytest.mark.parametrize("is_cosine", [False, True])
@pytest.mark.parametrize("pieces", [64, 65_536])
@pytest.mark.parametrize("cached", [0, 1 << 23])
def test_a_scan_finds_what_a_full_sort_finds(vectors, rng, monkeypatch, is_cosine, pieces, cached):
    monkeypatch.setattr(index_module, "PIECE_ROWS", pieces)
    monkeypatch.setattr(index_module, "CACHED_NUMBERS", cached)
    may = rng.random(500) < 0.8
    may[0] = False
    index = VectorIndex(vectors, has_vector_N=may, is_cosine=is_cosine)
    queries = torch.from_numpy(rng.standard_normal((3, 8)).astype(np.float32))
    hits = index.search(queries, 20)
    assert (hits.rows_QK == reference(vectors, queries, 20, may, is_cosine)).all()
    allowed = rng.random(500) < 0.1
    hits = index.search(queries, 80, allowed)
    expected = reference(vectors, queries, 80, may & allowed, is_cosine)
    assert (hits.rows_QK == expected).all()
    assert (expected == -1).any(), "fewer are allowed than asked for"


def test_no_allowed_row_gives_no_hits(vectors):
    index = VectorIndex(vectors, has_vector_N=np.ones(500, bool), is_cosine=True)
    hits = index.search(vectors[1:2], 5, np.zeros(500, bool))
    assert hits.rows_QK.tolist() == [[-1] * 5]


def test_an_added_vector_is_found_at_once_and_obeys_filters(vectors):
    index = VectorIndex(vectors, has_vector_N=np.ones(500, bool), is_cosine=True)
    index.add(500, 3 * vectors[7])
    hits = index.search(vectors[7:8], 2)
    assert set(hits.rows_QK[0]) == {7, 500}
    assert hits.scores_QK[0] == pytest.approx(1, abs=1e-3)
    allowed = np.ones(501, bool)
    allowed[500] = False
    assert index.search(vectors[7:8], 2, allowed).rows_QK[0, 0] == 7
    assert 500 not in index.search(vectors[7:8], 2, allowed).rows_QK


def clustered(rng, num_rows, width):
    centres = rng.standard_normal((50, width))
    drawn = centres[rng.integers(0, 50, num_rows)] + 0.5 * rng.standard_normal((num_rows, width))
    return torch.from_numpy(drawn.astype(np.float16))


@pytest.mark.parametrize(("width", "is_cosine"), [(16, False), (160, True)])
def test_the_faiss_file_finds_nearly_all_and_filters_exactly(
    rng, tmp_path, monkeypatch, width, is_cosine
):
    monkeypatch.setattr(index_module, "EXACT_NUMBERS", 1000)
    monkeypatch.setattr(index_module, "FEW_NUMBERS", 100 * width)
    vectors = clustered(rng, 5000, width)
    may = np.ones(5000, bool)
    may[:10] = False
    path = tmp_path / "kind"
    recall = write_index(path, vectors, has_vector_N=may, is_cosine=is_cosine)
    assert recall >= 0.98
    index = VectorIndex.open(path, vectors, has_vector_N=may, is_cosine=is_cosine)
    queries = vectors[100:120]
    expected = reference(vectors, queries, 10, may, is_cosine)
    found = index.search(queries, 10).rows_QK
    assert np.mean([np.isin(e, f).mean() for e, f in zip(expected, found, strict=True)]) > 0.95
    assert not np.isin(found, np.arange(10)).any()
    for share in (0.3, 0.01):  # by the selector; one by one
        allowed = rng.random(5000) < share
        found = index.search(queries, 10, allowed).rows_QK
        assert allowed[found[found >= 0]].all()
        expected = reference(vectors, queries, 10, may & allowed, is_cosine)
        assert np.mean([np.isin(e, f).mean() for e, f in zip(expected, found, strict=True)]) > 0.95


def test_the_faiss_file_finds_nearly_all_where_one_component_outweighs_the_others(
    rng, tmp_path, monkeypatch
):
    monkeypatch.setattr(index_module, "EXACT_NUMBERS", 1000)
    monkeypatch.setattr(index_module, "_RESCORED", 100)
    scale = np.where(np.arange(64) == 5, 20, 1)
    vectors = torch.from_numpy((rng.standard_normal((20_000, 64)) * scale).astype(np.float16))
    queries = torch.from_numpy(rng.standard_normal((64, 64)).astype(np.float32))
    queries[:, 5] = 2
    path, may = tmp_path / "kind", np.ones(20_000, bool)
    recall = write_index(path, vectors, has_vector_N=may, is_cosine=False, queries_QR=queries)
    assert recall >= 0.95


def test_a_missing_or_foreign_faiss_file_is_named(rng, tmp_path, monkeypatch):
    from recsys.files import DamagedFileError

    monkeypatch.setattr(index_module, "EXACT_NUMBERS", 1000)
    vectors, may = clustered(rng, 2000, 16), np.ones(2000, bool)
    with pytest.raises(DamagedFileError, match="direct.json: missing; run launch/export.py"):
        VectorIndex.open(tmp_path / "direct", vectors, has_vector_N=may, is_cosine=False)
    write_index(tmp_path / "direct", vectors, has_vector_N=may, is_cosine=False)
    with pytest.raises(DamagedFileError, match=r"of 2,000 rows, expected 1,000"):
        VectorIndex.open(
            tmp_path / "direct", vectors[:1000], has_vector_N=may[:1000], is_cosine=False
        )
    (tmp_path / "direct.faiss").write_bytes(b"nothing")
    with pytest.raises(DamagedFileError, match="direct.faiss"):
        VectorIndex.open(tmp_path / "direct", vectors, has_vector_N=may, is_cosine=False)
