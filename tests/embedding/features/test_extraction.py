"""Extraction in one process with a network of a few lines: bounded, restartable, never twice."""

import dataclasses
import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from PIL import Image

from embedding.config import EmbedConfig
from embedding.features import extraction, reuse, store
from embedding.features.catalogue import Catalogue, sample_rows
from embedding.features.codes import RowForm
from embedding.features.extraction import MadeBy, extract_features
from embedding.features.extractor import batched
from embedding.features.pipeline import Threads, lookahead
from embedding.features.reuse import EarlierTables, row_hashes
from embedding.features.store import ROW, FeatureTable, read_feature_manifest, write_shard
from embedding.image.config import ImageConfig
from embedding.image.extractor import ImageExtractor
from embedding.image.picture_folder import check_pictures
from recsys.config import from_config
from recsys.files import new_file, sha256_of
from recsys.runtime.env import Env
from recsys.schema import Manifest
from tests.processes import worker_result

WORKER = Path(__file__).with_name("extraction_worker.py")
ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
NAMES = ("one", "two")
FORM = RowForm(dim=3)


def vector_of(value, dim):
    """What the network below makes of a value: any function of it alone."""
    return np.random.default_rng(xxhash.xxh64_intdigest(value.encode())).normal(size=dim)


class Network:
    """An extractor that notes what passes through it and fails when it is told to."""

    column = "text"
    row_hash = "XXH3-128 of the text"
    num_threads = 2

    def __init__(self, fails_at=None):
        self.dims = {"one": 4, "two": 3}
        self.encoded = []
        self.fails_at = fails_at

    def hashes(self, values):
        return row_hashes(v.encode() if v else None for v in values)

    def batches(self, values):
        return list(batched(np.arange(len(values)), 4))

    def load(self, values):
        reasons = ["broken" if value.startswith("broken") else None for value in values]
        return [v for v, r in zip(values, reasons, strict=True) if r is None], reasons

    def encode(self, inputs):
        self.encoded += inputs
        if self.fails_at is not None and len(self.encoded) >= self.fails_at:
            raise RuntimeError("killed")
        return {n: np.stack([vector_of(v, d) for v in inputs]) for n, d in self.dims.items()}


def prepare(workspace, values):
    """Write items.parquet with row 0 and `values`; return its manifest."""
    folder = workspace / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    item_ids = [None, *(f"item {i}" for i in range(len(values)))]
    table = pa.table(
        {"item_id": item_ids, "text": [None, *values], "image": [None, *values]},
        schema=pa.schema([(name, pa.string()) for name in ("item_id", "text", "image")]),
    )
    pq.write_table(table, folder / "items.parquet", row_group_size=7)
    return Manifest(
        name="t",
        tables=(),
        features=(),
        splits={},
        num_user_rows=0,
        num_item_rows=len(values) + 1,
        items_checksum="ids",
        checksums={"items.parquet": sha256_of(folder / "items.parquet")},
    )


def extract(workspace, manifest, network, **changed):
    made_by = MadeBy(encoder="e", revision=changed.pop("revision", "r1"), scaling="")
    arguments = {"made_by": made_by, "shard_rows": 5, "env": ALONE} | changed
    return extract_features(network, workspace=workspace, manifest=manifest, **arguments)


def files_of(workspace):
    """The bytes of every vector file."""
    files = sorted((workspace / "features").glob("*/shard-?????.npy"))
    return {path.relative_to(workspace): path.read_bytes() for path in files}


def check_vectors(workspace, values):
    """Every row against the network's function; masked rows are zero."""
    for name, dim in Network().dims.items():
        table = FeatureTable(workspace / "features" / name)
        table.verify()
        expected = np.zeros((len(values) + 1, dim), dtype=np.float16)
        for row, value in enumerate(values, start=1):
            if value and not value.startswith("broken"):
                expected[row] = vector_of(value, dim)
        np.testing.assert_array_equal(table.read(0, table.num_rows), expected)


def no_leftovers(workspace):
    shards = {".npy", ".json"}
    names = [path for path in (workspace / "features").rglob("*") if path.is_file()]
    return all(path.suffix in shards and not path.name.startswith("..") for path in names)


VALUES = [f"v{i}" for i in range(23)]
VALUES[3], VALUES[8], VALUES[9] = None, "broken8", "broken9"


def test_every_row_gets_its_vector_and_masked_ones_are_counted(tmp_path):
    network = Network()
    done = extract(tmp_path, prepare(tmp_path, VALUES), network)
    check_vectors(tmp_path, VALUES)
    assert (done.num_encoded, done.num_kept, done.num_reused) == (20, 0, 0)
    assert sorted(network.encoded) == sorted(v for v in VALUES if v and "broken" not in v)
    manifest = read_feature_manifest(tmp_path / "features" / "one")
    assert manifest.masked == {"broken": 2, "none": 2} and manifest.num_masked == 4
    assert manifest == done.tables["one"] and manifest.row_hash == "XXH3-128 of the text"
    assert no_leftovers(tmp_path)


def test_two_ranks_share_the_shards_and_leave_the_same_files(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    extract(one, prepare(one, VALUES), Network())
    prepare(two, VALUES)
    done = worker_result(WORKER, two, ranks=2)
    assert files_of(one) == files_of(two)
    assert all(count > 0 for count in done["encoded_by_rank"])
    assert sum(done["encoded_by_rank"]) == done["num_encoded"] == 20
    assert done["num_rows"] == [24, 24], "every rank gets the tables' manifests"


@pytest.mark.parametrize("fails_at", [1, 9, 17])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, fails_at):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    extract(whole, prepare(whole, VALUES), Network())
    manifest = prepare(cut, VALUES)
    with pytest.raises(RuntimeError, match="killed"):
        extract(cut, manifest, Network(fails_at=fails_at))
    finished = len(list((cut / "features" / ".one.next").glob(".shard-*.json")))
    with suppress(RuntimeError), new_file(cut / "features/.one.next/shard-00004.npy") as half:
        half.write_bytes(b"half")
        shutil.copy(half, tmp_path)
        raise RuntimeError("killed")
    shutil.copy(tmp_path / half.name, half)
    network = Network()
    done = extract(cut, manifest, network)
    assert files_of(whole) == files_of(cut)
    assert done.num_kept == min(5 * finished, 24) and no_leftovers(cut)
    assert len(network.encoded) < 20 or finished == 0


CHANGES = {
    "added": [*VALUES, "new1", "new2"],
    "added in front": ["new1", *VALUES],
    "removed": VALUES[4:],
    "reordered": VALUES[::-1],
    "one changed": [*VALUES[:12], "new1", *VALUES[13:]],
    "all at once": ["new1", *VALUES[15:], *VALUES[2:11], "new2", None],
    "twice the same": [*VALUES, *VALUES],
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_new_rows_pass_through_the_network(tmp_path, change):
    extract(tmp_path, prepare(tmp_path, VALUES), Network())
    network = Network()
    done = extract(tmp_path, prepare(tmp_path, CHANGES[change]), network)
    check_vectors(tmp_path, CHANGES[change])
    assert sorted(network.encoded) == [v for v in ("new1", "new2") if v in CHANGES[change]]
    assert done.num_encoded == len(network.encoded)
    assert no_leftovers(tmp_path)
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == ["one", "two"]


def test_shards_of_unchanged_rows_are_linked_not_written(tmp_path):
    extract(tmp_path, prepare(tmp_path, VALUES), Network())
    shards = sorted((tmp_path / "features" / "one").glob("shard-?????.npy"))
    inodes = [path.stat().st_ino for path in shards]
    done = extract(tmp_path, prepare(tmp_path, [*VALUES, "new"]), Network())
    same = [path.stat().st_ino == inode for path, inode in zip(shards, inodes, strict=True)]
    assert same == [True, True, True, True, False]
    assert (done.num_kept, done.num_reused, done.num_encoded) == (20, 4, 1)


def test_vectors_survive_interruptions_between_changes(tmp_path):
    """A first extraction that is cut, new items, a second cut, other items again."""
    with pytest.raises(RuntimeError, match="killed"):
        extract(tmp_path, prepare(tmp_path, VALUES), Network(fails_at=17))
    middle = ["new1", *VALUES[::-1]]
    with pytest.raises(RuntimeError, match="killed"):
        extract(tmp_path, prepare(tmp_path, middle), Network(fails_at=2))
    encoded = []
    for folder in (tmp_path / "features").glob("*/*/one"):
        encoded += [1 for _ in folder.glob(".shard-*.json")]
    assert len(encoded) > 2, "both generations are there"
    network = Network()
    last = [*middle, "new2"]
    extract(tmp_path, prepare(tmp_path, last), network)
    check_vectors(tmp_path, last)
    assert len(network.encoded) <= 22 - 10 and no_leftovers(tmp_path)
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == ["one", "two"]


def test_a_cut_between_setting_tables_aside_is_mended(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        extract(tmp_path, prepare(tmp_path, VALUES), Network(fails_at=17))
    features = tmp_path / "features"
    earlier = EarlierTables(features / ".one+two.earlier", list(NAMES))
    earlier.set_aside(features / ".one.next", "one")
    network = Network()
    extract(tmp_path, prepare(tmp_path, VALUES[::-1]), network)
    check_vectors(tmp_path, VALUES[::-1])
    assert len(network.encoded) <= 20 - 10


@pytest.mark.parametrize("changed", [{"revision": "r2"}, {"row_hash": "of something else"}])
def test_another_encoder_or_hash_makes_every_vector_anew(tmp_path, changed):
    extract(tmp_path, prepare(tmp_path, VALUES), Network())
    network = Network()
    network.row_hash = changed.pop("row_hash", network.row_hash)
    done = extract(tmp_path, prepare(tmp_path, VALUES), network, **changed)
    assert done.num_encoded == 20 == len(network.encoded)
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == ["one", "two"]


def test_another_shard_size_moves_vectors_and_null_keeps_the_size(tmp_path):
    manifest = prepare(tmp_path, VALUES)
    extract(tmp_path, manifest, Network())
    network = Network()
    extract(tmp_path, manifest, network, shard_rows=7)
    check_vectors(tmp_path, VALUES)
    assert network.encoded == []
    manifest = prepare(tmp_path, [*VALUES, "new"])
    done = extract(tmp_path, manifest, network, shard_rows=None)
    assert [s.start_row for s in done.tables["one"].shards] == [0, 7, 14, 21]
    with pytest.raises(ValueError, match="shard_rows=0: expected 1 or more"):
        from_config(EmbedConfig, {"shard_rows": 0}, "")


def test_large_catalogues_get_large_shards():
    sizes = [extraction.fitting_shard_rows(n) for n in (1, 2_000, 10**7, 10**8, 10**10)]
    assert sizes == [1024, 1024, 2048, 16_384, 32_768]


def test_finished_shards_are_not_read_again_unless_their_time_changed(tmp_path, monkeypatch):
    manifest = prepare(tmp_path, VALUES)
    extract(tmp_path, manifest, Network())
    hashed = []

    def counting(path):
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(store, "sha256_of", counting)
    network = Network()
    done = extract(tmp_path, manifest, network)
    assert hashed == [] and network.encoded == [] and done.num_kept == 24
    copied = tmp_path / "features" / "one" / "shard-00002.npy"
    content = copied.read_bytes()
    copied.write_bytes(content)
    extract(tmp_path, manifest, network)
    assert set(hashed) == {"shard-00002.npy"} and network.encoded == []
    hashed.clear()
    extract(tmp_path, manifest, network)
    assert hashed == [], "the new time was noted"
    copied.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    extract(tmp_path, manifest, network)
    assert copied.read_bytes() == content and len(network.encoded) == 4
    copied.write_bytes(content[:-3])
    extract(tmp_path, manifest, network)
    assert copied.read_bytes() == content


@pytest.mark.parametrize("bucket_rows", [3, 1000])
def test_the_index_finds_what_a_dictionary_finds(tmp_path, rng, monkeypatch, bucket_rows):
    monkeypatch.setattr(reuse, "BUCKET_ROWS", bucket_rows)
    stored = rng.integers(0, 5, size=(40, 2)).astype(np.uint64)  # collisions in both words
    stored[:, 0] = stored[:, 0] << np.uint64(61)
    known = {}
    for generation, start in enumerate((0, 16)):
        folder = tmp_path / str(generation) / "one"
        folder.mkdir(parents=True)
        for index in range(2 + generation):
            part = np.zeros(8, dtype=ROW)
            pairs = stored[start + 8 * index : start + 8 * index + 8]
            part["high"], part["low"] = pairs.T
            part["masked"][2] = 1
            vectors = rng.normal(size=(8, 3)).astype(np.float16)
            write_shard(folder, index, 8 * index, vectors, part, FORM)
            for place, pair in enumerate(map(tuple, pairs.tolist())):
                if place != 2:
                    known.setdefault(pair, set()).add(vectors[place].tobytes())
    tables = EarlierTables(tmp_path, ["one"])
    tables.build_index()
    assert tables.open_index()
    asked = np.zeros(36, dtype=ROW)
    asked["high"] = np.repeat(np.arange(6, dtype=np.uint64), 6) << np.uint64(61)
    asked["low"] = np.tile(np.arange(6, dtype=np.uint64), 6)
    places = tables.find(asked)
    found = places >= 0
    pairs = [(int(row["high"]), int(row["low"])) for row in asked]
    assert found.tolist() == [pair in known for pair in pairs] and found.any() and not found.all()
    vectors = tables.read("one", places[found], FORM)
    for pair, vector in zip(np.array(pairs)[found].tolist(), vectors, strict=True):
        assert vector.tobytes() in known[tuple(pair)]


def test_lookahead_keeps_the_order_and_no_more_than_its_depth():
    begun, taken = [], 0
    with Threads(2) as pool:
        for result in lookahead(pool, lambda i: begun.append(i) or i, range(50), depth=3):
            assert result == taken
            taken += 1
            assert len(begun) <= taken + 3
    assert taken == 50


def test_a_failure_ahead_is_raised_and_the_rest_is_dropped():
    def work(item):
        if item == 5:
            raise ValueError("picture 5")
        return item

    with pytest.raises(ValueError, match="picture 5"), Threads(1) as pool:
        list(lookahead(pool, work, range(1_000_000), depth=2))


class Brightness:
    """An image encoder of one number, which counts its pictures."""

    def __init__(self):
        self.count = -1  # the extractor asks once for the widths

    def encode(self, pixels):
        self.count += len(pixels)
        mean = torch.from_numpy(pixels).float().mean(dim=(1, 2))
        return {"semantic": mean, "style": mean[:, :1]}


def test_a_picture_replaced_under_its_name_is_encoded_anew(tmp_path):
    names = [f"{i}.png" for i in range(11)]
    root = tmp_path / "images"
    root.mkdir()
    for index, name in enumerate(names):
        Image.new("RGB", (8, 8), (20 * index, 7, 9)).save(root / name)
    (root / "3.png").write_bytes(b"")

    def run(workspace, **more):
        encoder = Brightness()
        config = ImageConfig(size=8, batch_size=4)
        network = ImageExtractor(encoder, config, image_root=root, num_threads=2)
        done = extract(workspace, prepare(workspace, names), network, **more)
        assert done.num_encoded == encoder.count
        return done

    assert run(tmp_path).num_encoded == 10
    assert run(tmp_path).num_encoded == 0
    Image.new("RGB", (8, 8), (1, 2, 250)).save(root / "6.png")
    Image.new("RGB", (8, 8), (5, 5, 5)).save(root / "3.png")
    (root / "9.png").unlink()
    good = (root / "2.png").read_bytes()
    (root / "2.png").write_bytes(b"half a picture")

    def vectors():
        table = FeatureTable(tmp_path / "features" / "style")
        return table.read(0, table.num_rows).copy()

    before = vectors()
    done = run(tmp_path)
    assert (done.num_encoded, done.num_lost) == (2, 2)
    assert done.tables["style"].masked == {"none": 1}
    # Rows 4 and 7 are the two new pictures; rows 3 and 10 keep what they had.
    assert np.flatnonzero((vectors() != before).any(axis=1)).tolist() == [4, 7]
    # They are looked for again every time, until they are there or given up.
    assert run(tmp_path).num_lost == 2
    (root / "2.png").write_bytes(good)
    assert run(tmp_path).num_lost == 1
    done = run(tmp_path, forget_missing=True)
    assert done.num_lost == 1
    assert done.tables["style"].masked == {"missing": 1, "none": 1}
    lines = (tmp_path / "features" / "unusable_pictures.csv").read_text().splitlines()
    assert lines == ["item_id,file,reason", "item 9,9.png,missing"]
    run(tmp_path / "scratch")
    assert files_of(tmp_path) == files_of(tmp_path / "scratch")


def test_a_picture_folder_that_is_away_is_refused_before_anything_is_done(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    names = [f"{i}.png" for i in range(20)]
    manifest = dataclasses.replace(prepare(tmp_path, names), image_root=str(root))
    for name in names:
        (root / name).touch()
    check_pictures(tmp_path, manifest)
    for name in names[1:]:
        (root / name).unlink()
    with pytest.raises(
        ValueError, match=r"of 20 pictures looked for, 1 are there, where .*20 were"
    ):
        check_pictures(tmp_path, manifest)
    # Prepare found no more than that, so that nothing is away.
    check_pictures(tmp_path, dataclasses.replace(manifest, missing_images=19))
    (root / names[0]).unlink()
    with pytest.raises(ValueError, match=r"picture folder is empty; .*forget_missing=true"):
        check_pictures(tmp_path, manifest)
    root.rmdir()
    with pytest.raises(ValueError, match=r"picture folder is missing; .*forget_missing=true"):
        check_pictures(tmp_path, manifest)


def test_the_catalogue_reads_across_row_groups_and_holds_one(tmp_path, monkeypatch):
    values = [f"v{i}" for i in range(40)]
    prepare(tmp_path, values)
    catalogue = Catalogue(tmp_path / "prepared")
    rows = [None, *values]
    for start, stop in ((0, 41), (0, 7), (7, 14), (6, 8), (40, 41), (3, 30)):
        assert catalogue.read(start, stop, ["text"]).column(0).to_pylist() == rows[start:stop]
    asked = [0, 1, 6, 7, 20, 40]
    assert catalogue.column("text", asked) == [rows[i] for i in asked]
    assert catalogue.column("text", []) == []
    read = []
    original = catalogue._file.read_row_group
    catalogue._file = dataclasses.make_dataclass("File", ["read_row_group"])(
        lambda group, columns: read.append(group) or original(group, columns=columns)
    )
    for start in range(14, 28, 2):
        catalogue.read(start, start + 2, ["text"])
    assert read == [2, 3]


def test_sampled_rows_are_seeded_distinct_and_never_the_unknown():
    rows = sample_rows(1_000_000_000, 50, seed=1)  # in memory of the sample, not of the rows
    assert rows == sorted(set(rows)) and len(rows) == 50 and rows[0] > 0
    assert rows == sample_rows(1_000_000_000, 50, seed=1) != sample_rows(1_000_000_000, 50, seed=2)
    assert sample_rows(5, 50, seed=0) == [1, 2, 3, 4]


def test_old_tables_without_row_hashes_are_refused_and_made_anew(tmp_path):
    manifest = prepare(tmp_path, VALUES)
    extract(tmp_path, manifest, Network())
    file = tmp_path / "features" / "one" / "manifest.json"
    content = json.loads(file.read_text())
    del content["row_hash"]
    for shard in content["shards"]:
        del shard["rows_file"]
    file.write_text(json.dumps(content | {"version": 1}))
    with pytest.raises(ValueError, match=r"version 1, expected 2\); run launch/embed.py again"):
        FeatureTable(tmp_path / "features" / "one")


@pytest.mark.parametrize("begins_whole", [True, False])
def test_vectors_that_are_there_are_coded_and_codes_survive_new_items(tmp_path, begins_whole):
    network = Network()
    manifest = prepare(tmp_path, VALUES)
    if begins_whole:
        extract(tmp_path, manifest, network)
    done = extract(tmp_path, manifest, network, bits=2)
    # The two unusable pictures are tried again, and no other value passes through the network twice.
    assert len(network.encoded) == 20 and done.num_encoded == (0 if begins_whole else 20)
    assert "2 bits each" in str(done) and no_leftovers(tmp_path)
    table = FeatureTable(tmp_path / "features" / "two")
    table.verify()
    stored, books = table.stored(0, 24), table.manifest.codebooks
    assert table.manifest.bits == 2 and stored.dtype == np.uint8
    # So few vectors are codewords themselves.
    expected = [vector_of(value, 3) for value in VALUES if value and "broken" not in value]
    rows = np.flatnonzero(table.has_vector())
    np.testing.assert_allclose(table.read(0, 24)[rows], expected, rtol=2e-3, atol=2e-3)

    grown = ["first", *VALUES]
    done = extract(tmp_path, prepare(tmp_path, grown), network, bits=2)
    assert network.encoded[20:] == ["first"] and done.num_encoded == 1
    table = FeatureTable(tmp_path / "features" / "two")
    assert table.manifest.codebooks == books
    np.testing.assert_array_equal(table.stored(2, 25), stored[1:])
    again = extract(tmp_path, prepare(tmp_path, grown), network, bits=2)
    assert again.num_encoded == again.num_reused == 0 and len(network.encoded) == 21


def test_codes_do_not_go_back_and_another_encoder_has_codebooks_of_its_own(tmp_path):
    manifest = prepare(tmp_path, VALUES)
    extract(tmp_path, manifest, Network(), bits=2)
    books = read_feature_manifest(tmp_path / "features" / "one").codebooks
    network = Network()
    extract(tmp_path, manifest, network, bits=2, revision="r2")
    assert len(network.encoded) == 20
    assert read_feature_manifest(tmp_path / "features" / "one").codebooks == books  # same vectors
    extract(tmp_path, manifest, network)
    check_vectors(tmp_path, VALUES)
    assert len(network.encoded) == 40
