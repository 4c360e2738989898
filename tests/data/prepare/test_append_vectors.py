"""Own vectors of appended items: new ones are added, those of known items stay, others are refused."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.features.opening import open_features
from recsys.data.prepare import vector_tables
from recsys.data.recipe import VectorsRecipe
from recsys.errors import UserError
from recsys.files import replace_folder
from recsys.schema import read_manifest
from tests.data.small_days import appended, ids_of, prepared_base, recipe, write_day

BASE = [(f"u{1 + n % 2}", f"i{1 + n % 4}", n, int(n % 5 < 3)) for n in range(20)]
DAY = [("u1", "i5", 20, 1), ("u3", "i1", 21, 0), ("u3", "i6", 22, 1)]
ITEMS = [f"i{n}" for n in range(1, 5)]
NEW = [*ITEMS, "i5", "i6"]
CODED = VectorsRecipe(file="clip.npy", bits=4)
VECTORS = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32) * 50


@pytest.fixture(autouse=True)
def short_shards(monkeypatch):
    monkeypatch.setattr(vector_tables, "SHARD_ROWS", 3)


def write_items(source, ids, name="items.csv"):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text("item_id,kind\n" + "".join(f"{i},k{i[1:]}\n" for i in ids))


def write_table(source, ids, vectors, name="clip.parquet"):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    values = [None if v is None else v.tolist() for v in vectors]
    pq.write_table(pa.table({"item_id": ids, "clip": values}), source / name)


def base(tmp_path, file, *, items="items.csv"):
    """A recipe with vectors `clip`, and its data before: items i1 to i4."""
    source = tmp_path / "raw"
    write_day(source, 0, BASE)
    first = items.replace("*", "0")
    write_items(source, ITEMS, first)
    vectors = file.replace("*", "0")
    if file.endswith(".npy"):
        (source / vectors).parent.mkdir(exist_ok=True)
        np.save(source / vectors, VECTORS[:4])
    else:
        write_table(source, ITEMS, VECTORS[:4], vectors)
    node = {"file": items, "features": {"kind": {}}, "vectors": {"clip": {"file": file}}}
    made = recipe(source, strategy="time", items=node)
    return made, source, tmp_path / "w", prepared_base(made, tmp_path / "w")


def found(workspace, manifest):
    """Vectors by item id, None where an item has none, and the table."""
    table = open_features(workspace, ["clip"], manifest)["clip"]
    has, values = table.has_vector(), np.array(table.read(0, table.num_rows))
    ids = ids_of(workspace, "item_id")
    return {i: values[row] if has[row] else None for row, i in enumerate(ids)}, table


def check_grown(workspace, before, manifest, vectors=VECTORS):
    """The vectors are those of one preparation but for the scale, which is that of the first days."""
    scale = np.sqrt(np.square(VECTORS[:4]).mean())
    values, table = found(workspace, manifest)
    assert values.pop(None) is None and set(values) == set(NEW)
    for item, vector in zip(NEW, vectors, strict=True):
        if vector is None:
            assert values[item] is None
        else:
            np.testing.assert_allclose(values[item], vector / scale, rtol=2e-3)
    assert table.manifest.revision == before.vectors["clip"][:16]
    assert table.manifest.num_masked == 1 + sum(vector is None for vector in vectors)
    assert [shard.end_row for shard in table.manifest.shards] == [3, 6, 7]


@pytest.mark.parametrize("file", ["clip.npy", "clip.parquet"])
def test_vectors_of_new_items_are_read_from_the_file_that_grew(tmp_path, file, capsys):
    made, source, workspace, before = base(tmp_path, file)
    kept = found(workspace, before)[1].folder / "shard-00000.npy"
    inode = kept.stat().st_ino
    write_day(source, 1, DAY)
    write_items(source, NEW)
    if file.endswith(".npy"):
        np.save(source / file, VECTORS)
    else:
        write_table(source, NEW, VECTORS)
    capsys.readouterr()
    manifest = appended(made, workspace)
    assert "vectors clip: 2 new, 6 of 6 items" in capsys.readouterr().out
    check_grown(workspace, before, manifest)
    assert manifest.vectors != before.vectors
    assert kept.stat().st_ino == inode, "a shard of known items alone is a link"
    assert {f.section for f in manifest.files} == {"interactions", "items", "items.vectors.clip"}
    write_day(source, 2, [("u1", "i6", 30, 1)])
    later = appended(made, workspace)
    assert later.vectors == manifest.vectors and len(later.files) == 1
    check_grown(workspace, before, later)


@pytest.mark.parametrize("file", ["clip/*.npy", "clip/*.parquet"])
def test_new_files_of_vectors_belong_to_new_files_of_items(tmp_path, file):
    made, source, workspace, before = base(tmp_path, file, items="items/*.csv")
    write_day(source, 1, DAY)
    write_items(source, NEW[4:], "items/1.csv")
    if file.endswith(".npy"):
        np.save(source / "clip" / "1.npy", VECTORS[4:])
    else:
        write_table(source, NEW[4:], VECTORS[4:], "clip/1.parquet")
    check_grown(workspace, before, appended(made, workspace))
    whole = prepared_base(made, tmp_path / "whole")
    _, table = found(tmp_path / "whole", whole)
    assert table.manifest.num_masked == 1 and table.num_rows == 7


def test_items_without_new_vectors_lack_them_until_they_come(tmp_path):
    made, source, workspace, before = base(tmp_path, "clip.parquet")
    write_day(source, 1, DAY)
    write_items(source, NEW)
    manifest = appended(made, workspace)
    check_grown(workspace, before, manifest, [*VECTORS[:4], None, None])
    assert manifest.vectors == before.vectors
    write_day(source, 2, [("u1", "i6", 30, 1)])
    write_table(source, ["i6", "i5", "i2"], [VECTORS[5], None, None])
    check_grown(workspace, before, appended(made, workspace), [*VECTORS[:4], None, VECTORS[5]])


def test_a_changed_items_file_takes_its_vectors_by_row_from_the_unchanged_file(tmp_path):
    made, source, workspace, before = base(tmp_path, "clip.npy")
    write_day(source, 1, [("u1", "i1", 20, 1)])
    (source / "items.csv").write_text("item_id,kind\ni1,other\ni2,k2\ni3,k3\ni4,k4\n")
    assert appended(made, workspace).vectors == before.vectors
    write_day(source, 2, [("u1", "i1", 30, 1)])
    (source / "items.csv").write_text("item_id,kind\ni4,another\ni2,k2\ni3,k3\ni1,k1\n")
    assert "other vectors than before of 2 known items, for example 'i" in refused(made, workspace)


def refused(made, workspace):
    """The message of a refused append; nothing has changed."""
    before = {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as error:
        appended(made, workspace)
    assert {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()} == before
    return str(error.value)


def test_vectors_that_do_not_fit_are_refused_and_nothing_changes(tmp_path):
    made, source, workspace, _ = base(tmp_path, "clip.npy")
    write_day(source, 1, DAY)
    write_items(source, NEW)
    assert "(items.vectors.clip): 4 vectors, but the items file has 6 rows" in refused(
        made, workspace
    )
    wider = np.ones((6, 5), np.float32)
    wider[4, 2] = np.nan
    np.save(source / "clip.npy", wider)
    message = refused(made, workspace)
    assert "a vector of 5 numbers at data row 0, those of the prepared data have 3" in message
    assert "no finite number: 1, first at data row 4" in message
    large = VECTORS.copy()
    large[4, 1] = -1e9
    np.save(source / "clip.npy", large)
    message = refused(made, workspace)
    assert "(items.vectors.clip): a number of 1e+09 at data row 4, which is" in message
    assert "expected at most 65,504 times" in message
    changed = VECTORS.copy()
    changed[1] += 1
    np.save(source / "clip.npy", changed)
    message = refused(made, workspace)
    assert "other vectors than before of 1 known items, for example 'i2'" in message
    assert "prepare anew without append" in message
    write_items(source, ITEMS)
    write_day(source, 1, DAY[1:2])
    assert "6 vectors by row of the items file, which has not changed" in refused(made, workspace)


def test_ids_of_nobody_and_changed_vectors_of_a_table_are_refused(tmp_path):
    made, source, workspace, _ = base(tmp_path, "clip.parquet")
    write_day(source, 1, DAY[1:2])
    write_table(source, ["i9", "i2"], VECTORS[:2])
    message = refused(made, workspace)
    assert "1 ids that the items file does not have, for example 'i9'" in message
    assert "other vectors" not in message
    write_table(source, ["i2"], VECTORS[:1])
    message = refused(made, workspace)
    assert "other vectors than before of 1 known items, for example 'i2'" in message
    shutil.rmtree(workspace / "features")
    assert "for own vectors: prepare all days anew" in refused(made, workspace)


def killed_append(made, workspace):
    """An append that ends when the vectors are in their place, and the data is not."""

    def killed(beside, target):
        if target.name == "prepared":
            raise KeyboardInterrupt
        replace_folder(beside, target)

    before = read_manifest(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.files.replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            appended(made, workspace)
    assert read_manifest(workspace) == before


def test_an_append_killed_between_vectors_and_data_is_done_by_the_same_command(tmp_path):
    made, source, workspace, before = base(tmp_path, "clip.parquet")
    write_day(source, 1, DAY)
    write_items(source, NEW)
    write_table(source, NEW, VECTORS)
    killed_append(made, workspace)
    with pytest.raises(
        UserError, match=r"made for other items .* Run the same launch/prepare.py append=true again"
    ):
        found(workspace, before)
    check_grown(workspace, before, appended(made, workspace))


def lacking(tmp_path):
    """A recipe, and its data before: items i1 to i4, of which i2 has no vector."""
    made, source, workspace, _ = base(tmp_path, "clip.parquet")
    write_table(source, ITEMS, [VECTORS[0], None, *VECTORS[2:4]])
    return made, source, workspace, prepared_base(made, workspace)


@pytest.mark.parametrize("given", [VECTORS[4], None], ids=["corrected", "taken back"])
def test_a_vector_that_a_killed_append_gave_a_known_item_may_be_another_in_the_next(
    tmp_path, given
):
    made, source, workspace, before = lacking(tmp_path)
    write_day(source, 1, [("u1", "i1", 20, 1)])
    write_table(source, ["i2", "i3"], [VECTORS[1], VECTORS[2]])
    killed_append(made, workspace)
    with pytest.raises(
        UserError, match=r"other vectors than .* the same launch/prepare.py append=true again"
    ):
        found(workspace, before)
    if given is None:
        write_table(source, ITEMS, [VECTORS[0], None, *VECTORS[2:4]])
    else:
        write_table(source, ["i2"], [given])
    manifest = appended(made, workspace)
    values, table = found(workspace, manifest)
    assert (manifest.vectors == before.vectors) == (given is None)
    if given is None:
        assert values["i2"] is None
        assert not table.read(0, table.num_rows)[~table.has_vector()].any()
    else:
        np.testing.assert_allclose(values["i2"], given * table.manifest.scale, rtol=2e-3)
    for item, vector in zip(["i1", "i3", "i4"], VECTORS[[0, 2, 3]], strict=True):
        np.testing.assert_allclose(values[item], vector * table.manifest.scale, rtol=2e-3)
    if given is not None:  # known from now on
        write_day(source, 2, [("u1", "i2", 30, 1)])
        write_table(source, ["i2", "i1"], [VECTORS[1] * 2, None])
        assert "other vectors than before of 1 known items, for example 'i2'" in refused(
            made, workspace
        )


def test_an_append_codes_new_vectors_with_the_codebooks_of_the_first_days(tmp_path):
    made, source, workspace, _ = base(tmp_path, "clip.npy")
    made = dataclasses.replace(made, items=dataclasses.replace(made.items, vectors={"clip": CODED}))
    before = prepared_base(made, workspace)
    values, table = found(workspace, before)
    scale = np.sqrt(np.square(VECTORS[:4]).mean())
    for item, vector in zip(ITEMS, VECTORS, strict=False):
        np.testing.assert_allclose(values[item], vector / scale, rtol=4e-3)
    stored, books = np.array(table.stored(0, 5)), table.manifest.codebooks
    assert stored.dtype == np.uint8 and stored.shape == (5, 2)
    write_day(source, 1, DAY)
    write_items(source, NEW)
    # i5 is i2 again; the first four have their codes already, and i6 takes the nearest codewords.
    vectors = VECTORS.copy()
    vectors[4] = vectors[1]
    other = np.concatenate([-vectors[:1], vectors[1:]])
    np.save(source / "clip.npy", other)
    with pytest.raises(UserError, match=r"other vectors than before of 1 known items"):
        appended(made, workspace)
    np.save(source / "clip.npy", vectors)
    values, table = found(workspace, appended(made, workspace))
    assert table.manifest.codebooks == books
    table.verify()
    np.testing.assert_array_equal(table.stored(0, 5), stored)
    np.testing.assert_array_equal(values["i5"], values["i2"])
    assert values["i6"] is not None
