"""The map of a bundle: layouts of its modalities, kept from export to export, and groups of items."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from sklearn.manifold import trustworthiness

from recsys.bundle.bundle import Bundle
from recsys.bundle.map import NO_PLACE, Group, Map
from recsys.export import map as map_export
from recsys.export.map import groups_of, write_map


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A copy of the tiny bundle without its map."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    shutil.rmtree(folder / "map")
    return Bundle.open(tiny_bundle), folder


def points_of(folder):
    return {path.stem: np.load(path) for path in sorted((folder / "map").glob("*.npy"))}


def test_an_export_lays_out_every_modality_near_items_near(tiny_bundle):
    bundle = Bundle.open(tiny_bundle, verify="sha256")
    found = Map(tiny_bundle / "map", bundle.spec)
    assert found.layouts == ["semantic", "style", "text"]
    for place, name in enumerate(found.layouts):
        points = np.load(tiny_bundle / "map" / f"{name}.npy")
        has_vector = bundle.items.has_vector.fixed[:, place].numpy() > 0
        assert np.array_equal(np.isfinite(points).all(axis=1), has_vector)
        assert points.dtype == np.float32 and np.nanmax(np.abs(points)) == pytest.approx(1)
        vectors = bundle.items.vectors[name].fixed.numpy()[has_vector].astype(np.float32)
        assert trustworthiness(vectors, points[has_vector], n_neighbors=5) > 0.85


def test_a_killed_export_goes_on_with_the_layouts_it_has(bundle, tmp_path, monkeypatch, capsys):
    opened, folder = bundle
    whole, cache = points_of(opened.folder), tmp_path / "maps"
    laid_out, lay_out = [], map_export.lay_out

    def counting(vectors, progress, *, threads):
        laid_out.append(vectors.shape[1])
        if len(laid_out) == 2:
            raise KeyboardInterrupt
        return lay_out(vectors, progress, threads=threads)

    monkeypatch.setattr(map_export, "lay_out", counting)
    with pytest.raises(KeyboardInterrupt):
        write_map(folder, opened.spec, cache, threads=1)
    shutil.rmtree(folder / "map")
    write_map(folder, opened.spec, cache, threads=1)
    assert len(laid_out) == 4  # one, the killed one, and the two that lacked
    said = capsys.readouterr().out
    assert "map by semantic: 120 items, 300 steps" in said
    assert f"map by semantic: 120 items, kept from before: {cache}" in said
    assert {n: np.array_equal(p, whole[n], equal_nan=True) for n, p in points_of(folder).items()}
    # Other vectors are laid out anew.
    vectors = np.load(folder / "items/vectors/style.npy", mmap_mode="r+")
    vectors[1] = vectors[2]
    vectors.flush()
    shutil.rmtree(folder / "map")
    write_map(folder, opened.spec, cache, threads=1)
    assert len(laid_out) == 5


def test_a_modality_without_vectors_is_not_offered(bundle, tmp_path):
    opened, folder = bundle
    has_vector = np.load(folder / "items/has_vector.npy", mmap_mode="r+")
    has_vector[:, 1] = 0
    has_vector.flush()
    write_map(folder, opened.spec, tmp_path / "maps", threads=1)
    assert sorted(points_of(folder)) == ["artist", "semantic", "tags", "text"]


def test_points_are_read_as_whole_numbers_and_missing_ones_are_told(bundle):
    opened, folder = bundle
    shutil.copytree(opened.folder / "map", folder / "map")
    points = [[np.nan] * 2, [-1, 1], [0, 0], [np.nan] * 2]
    np.save(folder / "map/style.npy", np.array(points, np.float32))
    read = Map(folder / "map", opened.spec).places("style")
    assert read.dtype == np.dtype("<u2")
    assert read.tolist() == [[0, 65_534], [32_767, 32_767], [NO_PLACE, NO_PLACE]]


def test_a_bundle_without_a_map_has_no_layouts(tiny_bundle):
    spec = Bundle.open(tiny_bundle).spec
    spec = type(spec)(**{**vars(spec), "sizes": {}})
    found = Map(tiny_bundle / "map", spec)
    assert (found.layouts, found.groups) == ([], {})


def test_groups_are_the_most_frequent_values_largest_first():
    column = pa.chunked_array([["b", None, "a"], ["b", "c", "a", None]])
    groups, members = groups_of(column)
    assert groups == [Group("a", 2), Group("b", 2), Group("c", 1)]
    assert members.tolist() == [2, 0, 1, 2, 4, 1, 0]


def test_an_item_has_the_groups_of_all_its_tags_and_a_tag_of_most_items_is_left_out():
    tags = [["x", "all"], ["y", "x", "x", "all"], [], None, ["all"], ["all", "y", "z"]]
    groups, members = groups_of(pa.chunked_array([pa.array(tags, pa.list_(pa.string()))]))
    assert groups == [Group("x", 2), Group("y", 2), Group("z", 1)]
    assert members.tolist() == [1, 3, 0, 0, 0, 6]


def test_no_values_are_no_groups():
    groups, members = groups_of(pa.chunked_array([pa.array([None, None], pa.string())]))
    assert groups == [] and members.tolist() == [0, 0]
