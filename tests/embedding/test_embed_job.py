"""The real command: any number of ranks, skipped and resumed shards, masked pictures."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embedding.features.catalogue import Catalogue
from embedding.features.replacement import next_name, stamp_of
from embedding.features.store import FeatureTable, read_feature_manifest
from recsys.files import sha256_of
from tests.processes import Running
from tests.test_files import limited as full_disk

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
    listed = pd.read_csv(folder / "features" / "unusable_pictures.csv")
    assert sorted(listed.reason) == ["broken", "empty", "missing"]
    assert "pictures that cannot be used" in output
    assert sorted(listed.item_id) == ["i00003", "i00004", "i00005"]


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


@pytest.mark.slow
def test_two_ranks_train_the_encoders_too(prepared, tmp_path, job):
    folder = copy(prepared, tmp_path)
    done = job("embed", "data=demo", f"workspace={folder}", *SMALL, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(np.isfinite(v).all() for v in vectors(folder).values())


SLOW_NETWORK = [
    "encoder.image.backbone=squeezenet1_0",
    "encoder.image.weights=none",
    "encoder.image.size=160",
    "encoder.image.batch_size=4",
    "encoder.image.fit_pictures=16",
    "encoder.image.pretext_epochs=0",
    "encoder.text.epochs=1",
    "encoder.text.max_pairs=64",
    "shard_rows=4",
]
"""Some seconds for a hundred pictures, in 26 shards."""


def kill_in_the_middle(workspace, ranks, log):
    """Start the command, SIGKILL all of its processes after some shards; return how many it made."""

    def num_shards():
        making = workspace / "features" / next_name("semantic")
        return len(list(making.glob(".shard-*.json")))

    arguments = ["data=demo", f"workspace={workspace}", *SLOW_NETWORK]
    running = Running("embed", *arguments, ranks=ranks, log=log)
    assert running.wait_until(lambda: num_shards() >= 4, seconds=200), running.said()
    running.kill()
    return num_shards()


def files_of(workspace):
    files = sorted(path for path in (workspace / "features").rglob("*.npy"))
    return {path.relative_to(workspace).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_killed_run_goes_on_and_leaves_the_same_bytes(prepared, tmp_path, job, ranks):
    whole, cut = copy(prepared, tmp_path / "whole"), copy(prepared, tmp_path / "cut")
    done = job("embed", "data=demo", f"workspace={whole}", *SLOW_NETWORK, ranks=ranks)
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.copytree(whole / "encoders", cut / "encoders")
    num_finished = kill_in_the_middle(cut, ranks, tmp_path / "log")
    assert num_finished < 26, "killed before the end"
    assert not (cut / "features" / "semantic" / "manifest.json").exists()
    done = job("embed", "data=demo", f"workspace={cut}", *SLOW_NETWORK, ranks=ranks)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = int(re.search(r"encode pictures: .* (\d+) kept", done.stdout)[1])
    assert 4 * (num_finished - 1) - 3 <= kept <= 4 * num_finished
    assert files_of(cut) == files_of(whole)
    left = [path.name for path in cut.rglob("*") if re.search(r"\.(part|\d+)$", path.name)]
    assert left == [] and not list((cut / "features").glob(".*"))


@pytest.mark.slow
def test_after_a_new_prepare_only_new_and_changed_items_are_encoded(
    prepared, embedded, tmp_path, job
):
    """Items added, removed and put in another order, and a picture replaced under its name."""
    folder = tmp_path / "w"
    shutil.copytree(prepared, folder)
    for part in ("encoders", "features"):
        shutil.copytree(embedded[0] / part, folder / part)
    raw = folder / "raw"
    items, log = (pq.read_table(raw / f"{name}.parquet") for name in ("items", "interactions"))
    removed = pa.array(["i00001", "i00050"])
    items, log = (t.filter(pc.invert(pc.is_in(t["item_id"], removed))) for t in (items, log))
    added = items.slice(20, 1).to_pylist()[0] | {
        "item_id": "new",
        "image": "images/new.png" if "/" in items["image"][20].as_py() else "new.png",
        "words": "a castle that nobody drew",
    }
    items = items.take(pa.array(np.random.default_rng(0).permutation(len(items))))
    items = pa.concat_tables([pa.Table.from_pylist([added], schema=items.schema), items])
    pq.write_table(items, raw / "items.parquet")
    pq.write_table(log, raw / "interactions.parquet")
    shutil.copy(raw / "images" / "i00030.png", raw / "images" / "new.png")
    Image.new("RGB", (96, 96), (200, 30, 90)).save(raw / "images" / "i00010.png")
    assert job("prepare", "data=demo", f"workspace={folder}").returncode == 0

    done = job("embed", "data=demo", f"workspace={folder}", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    # 99 items and row 0; one new, one replaced, three unusable.
    for what, encoded, found in (("pictures", 2, 95), ("texts", 1, 98)):
        line = re.search(f"encode {what}: .*", done.stdout)[0]
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (encoded|kept|reused)", line)}
        assert counts["encoded"] == encoded and counts["reused"] > 0, line
        # Row 0 and unusable pictures count where their shard is kept.
        assert found <= counts["reused"] + counts.get("kept", 0) + 1 <= 101 - encoded, line
    assert done.stdout.count("kept as trained on earlier data (retrain=true trains it anew)") == 2
    reused = vectors(folder)
    shutil.rmtree(folder / "features")
    done = job("embed", "data=demo", f"workspace={folder}", *SMALL)
    assert "; 96 encoded" in done.stdout and "; 99 encoded" in done.stdout, done.stdout
    for name, values in vectors(folder).items():
        # Another batch, another rounding of the last place.
        np.testing.assert_allclose(reused[name], values, rtol=2e-3, atol=2e-3)

    done = job("embed", "data=demo", f"workspace={folder}", "retrain=true", *SMALL)
    assert done.returncode == 0 and "kept" not in done.stdout, done.stdout


def checksums(folder):
    return {p.relative_to(folder): sha256_of(p) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_picture_folder_that_is_away_costs_no_vector(prepared, embedded, tmp_path, job):
    """A share that is not mounted: gone, or an empty mount point; with the same items or others."""
    folder = tmp_path / "w"
    shutil.copytree(prepared, folder)
    for part in ("encoders", "features"):
        shutil.copytree(embedded[0] / part, folder / part)
    images, away = folder / "raw" / "images", folder / "raw" / "away"

    def prepares():
        done = job("prepare", "data=demo", f"workspace={folder}")
        assert done.returncode == 0, done.stderr[-2000:]

    def refuses():
        done = job("embed", "data=demo", f"workspace={folder}", *SMALL)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
        sentence = done.stderr.strip().splitlines()[-1]
        # The recipe's image_root is the folder above, which is there.
        assert sentence.startswith(f"error: {folder / 'raw'}: of "), sentence
        assert "0 are there" in sentence and "is a share not mounted?" in sentence
        assert "forget_missing=true" in sentence
        assert checksums(folder / "features") == before

    prepares()
    before, values = checksums(folder / "features"), vectors(folder)
    images.rename(away)
    refuses()
    images.mkdir()
    refuses()
    images.rmdir()

    away.rename(images)
    removed = pa.array(["i00001", "i00050"])
    raw = folder / "raw"
    for name in ("items", "interactions"):
        table = pq.read_table(raw / f"{name}.parquet")
        kept = table.filter(pc.invert(pc.is_in(table["item_id"], removed)))
        pq.write_table(kept, raw / f"{name}.parquet")
    ids = Catalogue(folder / "prepared").column("item_id", range(101))
    prepares()
    images.rename(away)
    refuses()

    away.rename(images)
    done = job("embed", "data=demo", f"workspace={folder}", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    now = vectors(folder)
    rows = {item_id: row for row, item_id in enumerate(ids)}
    old = [rows[i] for i in Catalogue(folder / "prepared").column("item_id", range(99))]
    for name, vectors_ND in now.items():
        np.testing.assert_array_equal(vectors_ND, values[name][old])


def contents(folder):
    """Checksums of files; of a stamp all but the number that every making of a table has of its own."""
    stamps = folder.rglob(".stamp.json")
    return checksums(folder) | {file.relative_to(folder): stamp_of(file.parent) for file in stamps}


FULL = {
    # What is made, what differs from the encoders that are there, which path the sentence begins with.
    "pretext": (["seed=1"], "encoders/.image.training/pretext.pt"),
    "image encoder": (["seed=1", "encoder.image.pretext_epochs=0"], "encoders/image"),
    "text encoder": (
        ["encoder.text.epochs=0", "encoder.text.path={model}"],
        "encoders/.text.training",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_one_sentence_and_costs_nothing(prepared, embedded, tmp_path, command, case):
    settings, place = FULL[case]
    folder = copy(prepared, tmp_path / "w")
    for part in ("encoders", "features"):
        shutil.copytree(embedded[0] / part, folder / part)
    before = contents(folder)
    model = tmp_path / "model"
    shutil.copytree(folder / "encoders" / "text" / "model", model)
    more = [setting.format(model=model) for setting in settings]
    with full_disk(400_000):
        done = command("embed", "data=demo", f"workspace={folder}", *SMALL, *more)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith(f"error: {folder / place}"), sentence
    assert "cannot be written, file too large (" in sentence or "the disk is full (" in sentence
    assert " bytes free)" in sentence
    now = contents(folder)
    assert {path: now.get(path) for path in before} == before
