"""The layout of a map: the same for the same vectors, and neighbours stay neighbours."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from recsys.export import layout
from recsys.export.layout import aligned, lay_out, normalised, num_steps, principal_components


@pytest.fixture
def clusters(rng):
    """300 vectors of 12 clusters [300, 24]."""
    centres = rng.normal(size=(12, 24))
    vectors = centres[np.arange(300) % 12] + 0.2 * rng.normal(size=(300, 24))
    return vectors.astype(np.float16)


def test_principal_components_are_those_of_scikit_learn(clusters):
    found = principal_components(clusters, 5)
    expected = PCA(5, svd_solver="full").fit_transform(clusters.astype(np.float64))
    assert np.abs(found) == pytest.approx(np.abs(expected), abs=1e-4)


def test_a_layout_is_the_same_again_and_for_any_number_of_threads(clusters):
    done = []
    first = lay_out(clusters, done.append, threads=1)
    assert np.array_equal(first, lay_out(clusters, done.append, threads=1))
    assert np.array_equal(first, lay_out(clusters, done.append, threads=2))
    assert sum(done) == 3 * num_steps(300)
    assert first.mean(axis=0) == pytest.approx(0, abs=1e-4)


def test_neighbours_stay_neighbours_of_all_items_and_of_those_placed_by_anchors(
    clusters, monkeypatch
):
    points = lay_out(clusters, lambda _: None, threads=1)
    assert trustworthiness(clusters.astype(np.float32), points, n_neighbors=8) > 0.97
    monkeypatch.setattr(layout, "MAX_ANCHORS", 150)
    placed = lay_out(clusters, lambda _: None, threads=1)
    assert np.array_equal(placed, lay_out(clusters, lambda _: None, threads=2))
    assert trustworthiness(clusters.astype(np.float32), placed, n_neighbors=8) > 0.95


def test_many_points_are_laid_out_by_interpolation(clusters, monkeypatch):
    monkeypatch.setattr(layout, "MAX_EXACT", 100)
    monkeypatch.setattr(layout, "STEPS", {False: (50, 100)})
    points = lay_out(clusters, lambda _: None, threads=1)
    assert trustworthiness(clusters.astype(np.float32), points, n_neighbors=8) > 0.95


@pytest.mark.parametrize("num_items", [1, 2, 9, 10, 11])
def test_a_few_items_have_points_too(clusters, num_items):
    points = lay_out(clusters[:num_items], lambda _: None, threads=1)
    assert points.shape == (num_items, 2)
    assert np.isfinite(points).all()
    assert np.isfinite(normalised(points)).all()


def test_equal_vectors_have_points_too():
    points = lay_out(np.ones((50, 4), np.float16), lambda _: None, threads=1)
    assert np.isfinite(normalised(points)).all()


def test_a_turned_and_mirrored_layout_is_turned_back(rng):
    points = rng.normal(size=(40, 2)).astype(np.float32)
    points[3] = np.nan
    turned = points @ np.array([[0.6, 0.8], [0.8, -0.6]], np.float32)
    assert aligned(turned, points) == pytest.approx(points, abs=1e-5, nan_ok=True)


def test_a_normalised_layout_fills_the_square_in_its_longer_direction():
    points = np.array([[1, 1], [5, 2], [np.nan, np.nan], [3, 3]], np.float32)
    found = normalised(points)
    assert found[[0, 1, 3]] == pytest.approx(np.array([[-1, -0.5], [1, 0], [0, 0.5]]))
    assert np.isnan(found[2]).all()
