"""Vectors that somebody else made: joined to item rows, checked, and read like an encoder's."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.features.opening import open_features
from recsys.data.prepare import vector_tables
from tests.data.small_log import prepared, recipe, write_source

IDS = ["10", "20", "30", "40", "50"]
"""Items of the small log, in the order of their file."""


def made(source, **sections):
    items = {"file": "items.csv", "item_id": "item_id", "vectors": sections}
    return recipe(source, items=items)


def table_of(manifest, workspace, name):
    """Vectors [5, E] by item id, and the table."""
    table = open_features(workspace, [name], manifest, lambda text: None)[name]
    vocabulary = pq.read_table(workspace / "prepared" / "vocab" / "item_id.parquet").to_pylist()
    rows = {line["id"]: line["row"] for line in vocabulary}
    values = np.array(table.read(0, table.num_rows), dtype=np.float32)
    assert not values[0].any(), "row 0 is the unknown item"
    return values[[rows[i] for i in IDS]], table


def test_vectors_by_row_and_by_id_are_the_same_modality(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(vector_tables, "SHARD_ROWS", 4)
    source = write_source(tmp_path / "raw")
    vectors = rng.normal(size=(5, 3)).astype(np.float32) * 100
    vectors[2] = 0
    np.save(source / "clip.npy", vectors)
    shuffled = [3, 0, 4, 1]  # item 30 has none
    lists = pa.table({
        "id": [IDS[i] for i in shuffled],
        "v": [vectors[i].tolist() for i in shuffled],
    })
    pq.write_table(lists, source / "own.parquet")
    own = {"file": "own.parquet", "column": "v", "item_id": "id"}
    manifest, workspace = prepared(tmp_path, made(source, clip={"file": "clip.npy"}, mine=own))
    assert set(manifest.vectors) == {"clip", "mine"} and manifest.has_modality("clip")
    found, table = table_of(manifest, workspace, "clip")
    # One factor for all numbers: the root mean square of the four vectors is 1.
    scale = np.sqrt(np.square(vectors[vectors.any(axis=1)]).mean())
    np.testing.assert_allclose(found, vectors / scale, atol=2e-3)
    assert table.manifest.num_masked == 2 and len(table.manifest.shards) == 2
    again, _ = table_of(manifest, workspace, "mine")
    np.testing.assert_array_equal(again, found)
    has = table.has_vector()
    assert has.sum() == 4


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64(), 2), pa.large_list(pa.float16()), pa.list_(pa.int32())]
)
def test_lists_of_every_kind_of_number_are_vectors(tmp_path, kind):
    source = write_source(tmp_path / "raw")
    values = pa.array([[1, 2], [3, 4], None, [5, 6], [7, 8]])
    if kind == pa.large_list(pa.float16()):
        values = pa.array(
            [None if v is None else np.array(v, "f2") for v in values.to_pylist()], kind
        )
    pq.write_table(
        pa.table({"item_id": [10, 20, 30, 40, 50], "clip": values.cast(kind)}), source / "c.parquet"
    )
    manifest, workspace = prepared(tmp_path, made(source, clip={"file": "c.parquet"}))
    found, _ = table_of(manifest, workspace, "clip")
    np.testing.assert_allclose(found[1] / found[0], [3, 2], rtol=1e-3)
    assert not found[2].any()


def test_everything_wrong_with_vectors_is_reported_at_once(tmp_path, rng):
    source = write_source(tmp_path / "raw")
    short = rng.normal(size=(4, 3))
    np.save(source / "short.npy", short)
    broken = rng.normal(size=(5, 3))
    broken[3, 1] = np.nan
    np.save(source / "nan.npy", broken)
    np.save(source / "flat.npy", np.zeros(5))
    (source / "none.npy").write_bytes(b"no array")
    (source / "clip.csv").write_text("0.1,0.2")
    lists = [[1.0, 2.0], [1.0, 2.0, 3.0], [1.0, float("inf")], [0.5, 0.5]]
    pq.write_table(
        pa.table({"item_id": ["10", "20", "77", "10"], "v": lists}), source / "v.parquet"
    )
    sections = {
        "a": {"file": "short.npy"},
        "b": {"file": "nan.npy"},
        "e": {"file": "v.parquet", "column": "v"},
    }
    with pytest.raises(ValueError) as caught:
        prepared(tmp_path, made(source, **sections))
    said = str(caught.value)
    for text in (
        "short.npy (items.vectors.a): 4 vectors, but the items file has 5 rows",
        "nan.npy (items.vectors.b): vectors with a value that is no finite number: 1, first at data "
        "row 3",
        "v.parquet (items.vectors.e): a vector of 3 numbers at data row 1, others have 2",
        "(items.vectors.e): vectors with a value that is no finite number: 1, first at data row 2",
        "1 ids that the items file does not have, for example '77'",
        "duplicate id: 1, for example '10'",
    ):
        assert text in said, said
    sections = {
        "a": {"file": "flat.npy"},
        "b": {"file": "none.npy"},
        "c": {"file": "v.parquet"},
        "d": {"file": "gone.npy"},
        "e": {"file": "clip.csv"},
    }
    with pytest.raises(ValueError) as caught:
        prepared(tmp_path, made(source, **sections))
    said = str(caught.value)
    for text in (
        "flat.npy: holds float64 (5,); expected numbers [items, width]",
        "none.npy: cannot be read",
        "column 'c' (items.vectors.c.column) is missing; the file has item_id, v",
        "gone.npy: no such file; check data.source and the recipe's file names (items.vectors.d)",
        "clip.csv: expected .npy or .parquet files of vectors (items.vectors.e.file)",
    ):
        assert text in said, said
    assert not list((tmp_path / "w" / "features").glob("*"))


def test_a_number_too_large_to_be_stored_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys.data.prepare.vectors.FLOAT16_MAX", 3.0)
    source = write_source(tmp_path / "raw")
    vectors = np.ones((5, 3))
    vectors[2] = 0
    np.save(source / "clip.npy", vectors)
    prepared(tmp_path, made(source, clip={"file": "clip.npy"}))
    vectors[3, 1] = -100
    np.save(source / "clip.npy", vectors)
    expected = (
        r"clip.npy \(items.vectors.clip\): a number of 100 at data row 3, which is 3.46\d+ times"
    )
    with pytest.raises(ValueError, match=expected):
        prepared(tmp_path, made(source, clip={"file": "clip.npy"}))


@pytest.mark.parametrize("name", ["text", "ids", "Clip", "a/b"])
def test_a_modality_of_own_vectors_has_a_name_of_its_own(tmp_path, name):
    with pytest.raises(ValueError, match=f"items.vectors.{name}: expected a name of small letters"):
        prepared(tmp_path, made(write_source(tmp_path / "raw"), **{name: {"file": "clip.npy"}}))


def test_other_vectors_than_prepare_read_are_refused(tmp_path, rng):
    source = write_source(tmp_path / "raw")
    np.save(source / "clip.npy", rng.normal(size=(5, 3)))
    first, _ = prepared(tmp_path, made(source, clip={"file": "clip.npy"}))
    np.save(source / "clip.npy", rng.normal(size=(5, 3)))
    second, workspace = prepared(tmp_path, made(source, clip={"file": "clip.npy"}))
    open_features(workspace, ["clip"], second)
    with pytest.raises(
        ValueError, match=r"features/clip: other vectors than the prepared data has"
    ):
        open_features(workspace, ["clip"], first)
