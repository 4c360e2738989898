"""The real command: any number of ranks, skipped and resumed shards, masked pictures."""

import json
import shutil

import numpy as np
import pytest

from embedding.store import FeatureTable, read_feature_manifest

SMALL = [
    "encoder.image.size=32",
    "encoder.image.pretext_epochs=1",
    "shard_rows=32",
    "encoder.text.epochs=1",
]
SMALL += [
    "encoder.image.pretext_min_count=2",
    "encoder.text.max_pairs=200",
    "encoder.image.style_dim=8",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, job):
    folder = tmp_path_factory.mktemp("world")
    sizes = ["world.num_items=100", "world.num_users=30", "world.num_exposures=600"]
    assert job("demo", f"workspace={folder}", "processes=1", *sizes).returncode == 0
    images = folder / "raw" / "images"
    (images / "i00003.png").unlink()
    (images / "i00004.png").write_bytes(b"")
    (images / "i00005.png").write_text("not a picture")
    assert job("prepare", "data=demo", f"workspace={folder}").returncode == 0
    return folder


def copy(prepared, target):
    shutil.copytree(prepared / "prepared", target / "prepared")
    return target


def vectors(workspace):
    tables = {n: FeatureTable(workspace / "features" / n) for n in ("semantic", "style", "text")}
    return {name: np.array(table.read(0, table.num_rows)) for name, table in tables.items()}


@pytest.fixture(scope="module")
def embedded(prepared, tmp_path_factory, job):
    folder = copy(prepared, tmp_path_factory.mktemp("one"))
    done = job("embed", "data=demo", f"workspace={folder}", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout


def test_broken_and_missing_pictures_are_masked_and_counted(embedded):
    folder, output = embedded
    manifest = read_feature_manifest(folder / "features" / "semantic")
    assert manifest.masked == {"broken": 1, "empty": 1, "missing": 1, "none": 1}
    assert manifest.num_masked == 4 and "1 broken" in output
    values = vectors(folder)
    assert (~values["semantic"].any(axis=1)).sum() == 4
    assert not values["text"][0].any() and values["text"][1:].any(axis=1).all()


def test_second_run_keeps_finished_shards_and_a_lost_one_is_made_again(embedded, job):
    folder, _ = embedded
    before = vectors(folder)
    shards = sorted((folder / "features").rglob("shard-?????.npy"))
    kept = {path: path.stat().st_mtime_ns for path in shards}
    lost = folder / "features" / "style" / "shard-00001.npy"
    lost.unlink()
    done = job("embed", "data=demo", f"workspace={folder}", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [p for p in shards if p.stat().st_mtime_ns != kept[p]]
    assert {p.name for p in made} == {"shard-00001.npy"}
    for name, values in vectors(folder).items():
        np.testing.assert_array_equal(values, before[name])


def test_two_ranks_give_the_same_vectors_with_the_same_encoder(embedded, prepared, tmp_path, job):
    one, _ = embedded
    two = copy(prepared, tmp_path)
    shutil.copytree(one / "encoders", two / "encoders")
    done = job("embed", "data=demo", f"workspace={two}", *SMALL, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, values in vectors(two).items():
        np.testing.assert_allclose(values, vectors(one)[name], atol=2e-2)
    manifests = [read_feature_manifest(w / "features" / "text") for w in (one, two)]
    assert manifests[0].revision == manifests[1].revision
    assert json.loads((two / "features" / "text" / "manifest.json").read_text())["count"] == 101


def test_two_ranks_train_the_encoders_too(prepared, tmp_path, job):
    folder = copy(prepared, tmp_path)
    done = job("embed", "data=demo", f"workspace={folder}", *SMALL, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(np.isfinite(v).all() for v in vectors(folder).values())
