"""The feature store: what is written is read back, across shards; what was changed is refused."""

from pathlib import Path

import numpy as np
import pytest

from embedding.features.opening import open_features
from embedding.features.store import FeatureTable
from recsys.schema import Manifest
from tests.feature_tables import write_table
from tests.processes import worker_result

WORKER = Path(__file__).with_name("store_worker.py")


def write(workspace, name="text", shard_rows=4, num_rows=10, dim=3):
    vectors = np.random.default_rng(0).normal(size=(num_rows, dim)).astype(np.float16)
    folder = workspace / "features" / name
    write_table(folder, vectors, shard_rows=shard_rows)
    return folder, vectors


def manifest_of(items_checksum="c", num_rows=10, **known):
    return Manifest(
        name="t",
        tables=(),
        features=(),
        splits={},
        num_user_rows=0,
        num_item_rows=num_rows,
        items_checksum=items_checksum,
        **known,
    )


def test_rows_are_read_across_shards(tmp_path):
    folder, vectors = write(tmp_path)
    table = FeatureTable(folder)
    for start, stop in ((0, 10), (3, 5), (2, 9), (8, 10), (4, 8)):
        np.testing.assert_array_equal(table.read(start, stop), vectors[start:stop])


def test_which_rows_have_a_vector_is_read_from_the_masks_alone(tmp_path, monkeypatch):
    vectors = np.ones((10, 3), dtype=np.float16)
    vectors[[0, 3, 9]] = 0
    table = write_table(tmp_path / "text", vectors, shard_rows=4)

    def fail(*_):
        raise AssertionError("a vector is read")

    monkeypatch.setattr(table, "read", fail)
    monkeypatch.setattr(table, "_open", fail)
    assert np.flatnonzero(~table.has_vector()).tolist() == [0, 3, 9]
    assert table.has_vector(np.array([9, 1, 3, 8])).tolist() == [False, True, False, True]
    many = np.random.default_rng(0).integers(0, 10, 50)  # of every shard, again and again
    assert table.has_vector(many).tolist() == [row not in (0, 3, 9) for row in many]
    assert table.has_vector(np.array([], dtype=np.int64)).tolist() == []
    (tmp_path / "text" / "shard-00001.rows.npy").unlink()
    with pytest.raises(ValueError, match=r"shard-00001.rows.npy: missing; run launch/embed.py"):
        table.has_vector()


def test_missing_features_say_to_run_embed(tmp_path):
    with pytest.raises(ValueError, match="no features here; run launch/embed.py"):
        open_features(tmp_path, ["text"], manifest_of())


def test_features_of_other_items_are_refused(tmp_path):
    write(tmp_path)
    assert open_features(tmp_path, ["text"], manifest_of())["text"].dim == 3
    with pytest.raises(ValueError, match="made for other items .10 rows, checksum c"):
        open_features(tmp_path, ["text"], manifest_of("other"))


def test_features_of_other_texts_or_pictures_of_the_same_items_are_refused(tmp_path):
    texts, pictures = ({"text": "t1", "image": "p1"}, {"text": "t1", "image": "p2"})
    for name, made_of in (("text", "t1"), ("style", "p1")):
        table = write_table(
            tmp_path / "features" / name, np.ones((10, 3), dtype=np.float16), made_of=made_of
        )
        assert table.manifest.made_of == made_of
    names = ["text", "style"]
    assert list(open_features(tmp_path, names, manifest_of(column_checksums=texts))) == names
    # Prepared before this was known: taken as it is.
    assert open_features(tmp_path, names, manifest_of())
    with pytest.raises(ValueError, match=r"style: made of other pictures .*launch/embed.py again"):
        open_features(tmp_path, names, manifest_of(column_checksums=pictures))
    with pytest.raises(ValueError, match=r"text: made of other texts .*launch/embed.py again"):
        open_features(tmp_path, ["text"], manifest_of(column_checksums={"text": "t2"}))


def test_a_table_that_does_not_know_its_texts_is_taken_with_a_note(tmp_path):
    write(tmp_path)
    notes = []
    now = manifest_of(column_checksums={"text": "t1"})
    assert list(open_features(tmp_path, ["text"], now, notes.append)) == ["text"]
    (note,) = notes
    assert "\n" not in note and note.startswith(f"note: {tmp_path / 'features' / 'text'} does not")
    assert "of which texts it was made" in note and "launch/embed.py" in note


def test_the_identity_of_a_table_is_that_of_its_vectors(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float16)

    def identity(folder, values):
        return write_table(tmp_path / folder, values, shard_rows=4).manifest.identity

    first = identity("a", vectors)
    assert identity("b", vectors) == first
    vectors[9, 2] += 1
    assert identity("a", vectors) != first
    assert identity("c", vectors) != identity("b", vectors[::-1])


def test_changed_and_truncated_shards_are_named(tmp_path):
    folder, _ = write(tmp_path)
    shard = folder / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="shard-00001.npy: changed since it was written"):
        open_features(tmp_path, ["text"], manifest_of())
    shard.write_bytes(bytes(content[:-4]))
    with pytest.raises(ValueError, match="shard-00001.npy: cannot be read"):
        open_features(tmp_path, ["text"], manifest_of())


def test_one_rank_of_a_host_hashes_for_all(tmp_path):
    for name in ("text", "style"):
        write(tmp_path, name, shard_rows=10)
    first, second = worker_result(WORKER, tmp_path, ranks=2)
    assert first["hashed"] == ["text", "style"] and second["hashed"] == []
    assert first["error"] is None and second["error"] is None
    assert first["rows"] == second["rows"] and len(first["rows"]["text"]) == 2


def test_what_the_hashing_rank_finds_is_raised_on_every_rank(tmp_path):
    for name in ("text", "style"):
        folder, _ = write(tmp_path, name, shard_rows=10)
    shard = folder / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    first, second = worker_result(WORKER, tmp_path, ranks=2)
    assert second["hashed"] == []
    assert f"UserError: {shard}: changed since it was written" in first["error"]
    assert first["error"] == second["error"]


def open_shards(folder):
    """Memory maps of the table's shards in this process."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[-1] for line in maps if str(folder) in line})


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="maps of a process on Linux")
def test_shards_are_opened_when_they_are_read_and_no_more_than_64_at_a_time(tmp_path):
    """A catalogue of half a billion items has tens of thousands."""
    folder, vectors = write(tmp_path, shard_rows=2, num_rows=200)
    checked = FeatureTable(folder)
    assert len(checked.manifest.shards) == 100 and not open_shards(folder)
    table = FeatureTable(folder, checked.manifest)
    assert not open_shards(folder), "another process of the host has checked them"
    for start in range(0, 200, 2):
        assert np.array_equal(table.read(start, start + 2), vectors[start : start + 2])
        assert open_shards(folder) <= 65, "and the one that is read"
    assert open_shards(folder) == 64
