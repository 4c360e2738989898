"""Exact nearest neighbours: equal to the slow and obvious way, whatever the pieces are."""

import numpy as np
import pytest

from embedding.features.nearest import nearest
from tests.feature_tables import write_table
from tests.reference.nearest import nearest_slowly


@pytest.fixture
def vectors(rng):
    """Sixty rows; the unknown row and every ninth are masked, some are equal to each other."""
    values = rng.normal(size=(60, 5)).astype(np.float16)
    values[::9] = 0
    values[[11, 31, 51]] = values[20]
    return values


@pytest.mark.parametrize("piece_rows", [1, 7, 16, 60, 1000])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_neighbours_are_those_of_brute_force_for_every_size_of_a_piece(
    tmp_path, vectors, piece_rows, k
):
    table = write_table(tmp_path / "style", vectors, shard_rows=16)
    queries = [20, 3, 59, 1]
    found = nearest(table, queries, k=k, piece_rows=piece_rows)
    for query, row in enumerate(queries):
        expected = nearest_slowly(vectors, row, k)
        assert found.rows_QK[query].tolist() == [r for r, _ in expected]
        np.testing.assert_allclose(
            found.similarities_QK[query], [cosine for _, cosine in expected], atol=2e-6
        )


def test_equal_vectors_are_found_first_in_order_of_rows(tmp_path, vectors):
    found = nearest(
        write_table(tmp_path / "style", vectors, shard_rows=16), [20], k=3, piece_rows=8
    )
    assert found.rows_QK.tolist() == [[11, 31, 51]]
    assert found.similarities_QK.tolist() == [[1.0, 1.0, 1.0]]


def test_length_of_a_vector_does_not_count(tmp_path):
    vectors = np.array([[0, 0], [1, 0], [100, 10], [0.01, 0], [0, 5]], dtype=np.float16)
    found = nearest(write_table(tmp_path / "text", vectors), [1], k=3)
    assert found.rows_QK.tolist() == [[3, 2, 4]]
    np.testing.assert_allclose(found.similarities_QK, [[1, 0.995037, 0]], atol=1e-5)


def test_masked_rows_and_the_query_never_appear_and_gaps_are_minus_one(tmp_path):
    vectors = np.zeros((8, 3), dtype=np.float16)
    vectors[[2, 4, 5]] = [[1, 0, 0], [1, 1, 0], [-1, 0, 0]]
    found = nearest(write_table(tmp_path / "text", vectors), [2, 3], k=4)
    assert found.rows_QK.tolist() == [[4, 5, -1, -1], [-1] * 4]


def test_the_unknown_row_never_appears_even_with_a_vector(tmp_path):
    vectors = np.ones((4, 2), dtype=np.float16)
    found = nearest(write_table(tmp_path / "text", vectors), [2], k=3)
    assert found.rows_QK.tolist() == [[1, 3, -1]]


def test_excluded_rows_never_appear(tmp_path, vectors):
    table = write_table(tmp_path / "style", vectors, shard_rows=16)
    out = {20: {11, 51, 5}, 3: set(range(30))}

    def excluded(start, stop):
        rows = range(start, stop)
        return np.array([[row in out[query] for row in rows] for query in (20, 3)])

    found = nearest(table, [20, 3], k=6, excluded=excluded, piece_rows=13)
    for query, row in enumerate((20, 3)):
        expected = [r for r, _ in nearest_slowly(vectors, row, 6, out[row])]
        assert found.rows_QK[query].tolist() == expected


def test_a_vector_that_is_not_finite_is_no_neighbour(tmp_path):
    vectors = np.array([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1]], dtype=np.float16)
    table = write_table(tmp_path / "text", vectors)
    vectors[2, 0], vectors[3, 0] = np.inf, np.nan
    # Tables of our own hold none (they are refused where they are written); files from elsewhere may.
    np.save(tmp_path / "text" / "shard-00000.npy", vectors)
    found = nearest(table, [1], k=3)
    assert found.rows_QK.tolist() == [[4, -1, -1]]


def test_the_table_is_never_read_whole(tmp_path, vectors, monkeypatch):
    table = write_table(tmp_path / "style", vectors, shard_rows=16)
    lengths = []
    read = table.read
    monkeypatch.setattr(
        table, "read", lambda start, stop: lengths.append(stop - start) or read(start, stop)
    )
    nearest(table, [20, 3], k=3, piece_rows=8)
    assert max(lengths) == 8 and sum(lengths) == 60 + 2
