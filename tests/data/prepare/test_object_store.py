"""Object stores: raw files are read where they are, folders copied whole; what cannot be says so."""

import csv
import dataclasses
import gzip
import io
import json
import os
import pickle

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from recsys.data.prepare.object_store import open_store, source_root, sync
from recsys.data.prepare.raw_paths import StorePath, opened_text, parquet_file, register
from recsys.locks import new_owner
from recsys.schema import local_path
from tests.data import small_days
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source

ITEMS_ONLY = {"items": {"file": "items.csv", "features": {"genres": {"kind": "id_list"}}}}


@pytest.fixture
def memory():
    """fsspec's store in memory, empty before and after."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_raw_files_of_a_store_give_the_same_data_as_local_ones(tmp_path, memory):
    source = write_source(tmp_path / "raw")
    local, _ = prepared(tmp_path / "a", recipe(source, **ITEMS_ONLY))
    memory.pipe({
        "/bucket/raw/log.csv": INTERACTIONS.encode(),
        "/bucket/raw/items.csv": ITEMS.encode(),
    })
    made = recipe("memory://bucket/raw", **ITEMS_ONLY)
    manifest, workspace = prepared(tmp_path / "b", made)
    assert manifest.checksums == local.checksums
    assert manifest.recipe["source"] == "memory://bucket/raw"
    assert [path.name for path in workspace.iterdir()] == ["prepared"]
    assert "source" not in {path.name for path in (workspace / "prepared").iterdir()}


@pytest.fixture
def no_copies(monkeypatch):
    """No file of the store is copied."""

    def refuse(self, *arguments, **more):
        raise AssertionError("copied")

    monkeypatch.setattr(MemoryFileSystem, "get_file", refuse)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("log", ".parquet"),
        ("log/*/part-*", ".parquet"),
        ("log", ".csv"),
        ("log", ".csv.gz"),
        ("log/*/part-*", ".csv.zst"),
        ("log", ".jsonl"),
    ],
)
def test_part_files_and_partitions_of_a_store_are_read_in_place(
    tmp_path, memory, no_copies, name, ending
):
    source = write_source(tmp_path / "raw")
    for date, part in (("2024-01-01", "part-0"), ("2024-01-02", "part-[1]")):
        write_part(source / "log" / f"date={date}" / f"{part}{ending}", ending)
    (source / "log" / "_SUCCESS").touch()
    features = {"interactions__features": {"date": {}}, "interactions__file": name, **ITEMS_ONLY}
    local, _ = prepared(tmp_path / "a", recipe(source, **features))
    for path in source.rglob("*"):
        if path.is_file():
            memory.pipe(f"/bucket/raw/{path.relative_to(source)}", path.read_bytes())
    manifest, _ = prepared(tmp_path / "b", recipe("memory://bucket/raw", **features))
    assert manifest.checksums == local.checksums and manifest.rows_in == 24
    assert [f.path for f in manifest.files] == [f.path for f in local.files]
    assert manifest.files == local.files, "this store keeps no checksums of its own"


def write_part(path, ending):
    """Write the small log as a file of some kind."""
    path.parent.mkdir(parents=True)
    rows = list(csv.DictReader(io.StringIO(INTERACTIONS)))
    text = "".join(json.dumps(row) + "\n" for row in rows) if ending == ".jsonl" else INTERACTIONS
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == ".csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif ending == ".csv.zst":
        path.write_bytes(pa.compress(text.encode(), codec="zstd", asbytes=True))
    else:
        path.write_text(text)


def test_columns_that_nobody_names_are_read_from_a_store_for_the_checksum_alone(
    tmp_path, memory, no_copies, monkeypatch
):
    rows = list(csv.DictReader(io.StringIO(INTERACTIONS))) * 200
    notes = [os.urandom(500).hex() for _ in rows]
    table = pa.Table.from_pylist(rows).append_column("notes", pa.array(notes))
    target = io.BytesIO()
    pq.write_table(table, target)
    memory.pipe("/bucket/raw/log.parquet", target.getvalue())
    num_read, plain = [], MemoryFile.read

    def read(self, size=-1):
        content = plain(self, size)
        num_read.append(len(content))
        return content

    monkeypatch.setattr(MemoryFile, "read", read)
    made = recipe("memory://bucket/raw", interactions__file="log.parquet", items=None)
    manifest, _ = prepared(tmp_path, made)
    assert manifest.rows_in == len(rows)
    # The checksum is made of this store's buffer, without a read.
    assert sum(num_read) < len(target.getvalue()) / 4


def test_days_of_a_store_are_appended_and_the_files_before_are_not_opened(
    tmp_path, memory, no_copies
):
    source = tmp_path / "raw"
    days = [
        [(f"u{1 + n % 2}", f"i{1 + n % 3}", n, n % 2) for n in range(20)],
        [("u3", "i1", 30, 1)],
    ]
    made = small_days.recipe(source, strategy="time")
    for number, rows in enumerate(days):
        small_days.write_day(source, number, rows)
    names = [f"log/day=0{number}/part.csv" for number in (0, 1)]
    memory.pipe(f"/b/{names[0]}", (source / names[0]).read_bytes())
    made = dataclasses.replace(made, source="memory://b")
    small_days.prepared_base(made, tmp_path / "w")
    memory.pipe(f"/b/{names[1]}", (source / names[1]).read_bytes())
    memory.pipe(f"/b/{names[0]}", b"\0" * memory.size(f"/b/{names[0]}"))
    manifest = small_days.appended(made, tmp_path / "w")
    assert [file.path for file in manifest.files] == names[1:]
    assert [row[:4] for row in small_days.rows_of(tmp_path / "w", "window_0001")] == [
        ("u3", "i1", 1, 30)
    ]


def test_a_day_under_another_name_is_known_by_its_content_whatever_the_store_says(
    tmp_path, memory, monkeypatch
):
    source, info = tmp_path / "raw", MemoryFileSystem.info
    monkeypatch.setattr(  # of parts, or encrypted: equal content has another ETag
        MemoryFileSystem, "info", lambda fs, path, **k: {**info(fs, path, **k), "ETag": f"{path}-2"}
    )
    made = small_days.recipe(source, strategy="time")
    small_days.write_day(
        source, 0, [(f"u{1 + n % 2}", f"i{1 + n % 3}", n, n % 2) for n in range(20)]
    )
    day = (source / "log" / "day=00" / "part.csv").read_bytes()
    memory.pipe("/b/log/day=00/part.csv", day)
    made = dataclasses.replace(made, source="memory://b")
    small_days.prepared_base(made, tmp_path / "w")
    memory.pipe("/b/log/day=01/again.csv", day)
    with pytest.raises(
        ValueError, match=r"again.csv: has the content of log/day=00/part.csv, which"
    ):
        small_days.appended(made, tmp_path / "w")


class OneFile:
    """A store of one file."""

    def __init__(self, content):
        self.stream = io.BytesIO(content)

    def open(self, path, mode):
        return self.stream


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_stream_of_a_store_is_closed_when_its_text_is_read(compression):
    text = b"one\ntwo\n"
    packed = {
        "none": text,
        "gzip": gzip.compress(text),
        "zstd": pa.compress(text, codec="zstd", asbytes=True),
    }
    store = OneFile(packed[compression])
    with opened_text(StorePath(store, "/b/1", "/b", "memory://b"), compression) as stream:
        assert stream.read() == text
    assert store.stream.closed


def test_a_stream_of_a_store_is_closed_when_the_footer_is_read():
    target = io.BytesIO()
    pq.write_table(pa.table({"x": [1, 2]}), target)
    store = OneFile(target.getvalue())
    with parquet_file(StorePath(store, "/b/1", "/b", "memory://b")) as file:
        assert file.metadata.num_rows == 2
    assert store.stream.closed


def test_own_vectors_of_a_store_are_those_of_local_files(tmp_path, memory, rng):
    source = write_source(tmp_path / "raw")
    vectors = rng.normal(size=(5, 3)).astype(np.float32)
    np.save(source / "clip.npy", vectors)
    own = pa.table({"item_id": [10, 20, 30, 40, 50], "mine": vectors.tolist()})
    pq.write_table(own, source / "mine.parquet")
    section = {"clip": {"file": "clip.npy"}, "mine": {"file": "mine.parquet"}}
    items = {"items": {"file": "items.csv", "vectors": section}}
    local, _ = prepared(tmp_path / "a", recipe(source, **items))
    for path in source.iterdir():
        memory.pipe(f"/b/{path.name}", path.read_bytes())
    manifest, _ = prepared(tmp_path / "b", recipe("memory://b", **items))
    assert manifest.vectors == local.vectors and len(set(manifest.vectors.values())) == 1


def test_a_bad_row_of_a_store_is_named_by_its_file_and_a_damaged_file_by_its_url(tmp_path, memory):
    memory.pipe("/b/items.csv", ITEMS.encode())
    memory.pipe("/b/log/0.csv", INTERACTIONS.encode())
    memory.pipe("/b/log/1.csv", INTERACTIONS.replace("ann,20,200,1", "ann,20,soon,1").encode())
    made = recipe("memory://b", interactions__file="log", **ITEMS_ONLY)
    with pytest.raises(
        ValueError, match=r"memory://b/log/1.csv: column 'time': not .* row 1 \('soon"
    ):
        prepared(tmp_path, made)
    memory.pipe("/b/log/1.csv", INTERACTIONS.encode() + b'"ann,10\n')
    with pytest.raises(ValueError, match=r"memory://b/log/1.csv: cannot be read"):
        prepared(tmp_path, made)


def test_files_of_a_file_url_are_read_in_place_pictures_too(tmp_path, monkeypatch):
    source = write_source(tmp_path / "raw")
    (source / "a.png").write_bytes(b"any")
    local, _ = prepared(tmp_path / "a", recipe(source))

    def refuse(self, *arguments, **more):
        raise AssertionError("copied")

    monkeypatch.setattr(LocalFileSystem, "get_file", refuse)
    manifest, _ = prepared(tmp_path / "b", recipe(f"file://{source}"))
    assert manifest.checksums == local.checksums
    assert (manifest.image_root, manifest.missing_images) == (str(source), local.missing_images)


def test_problems_name_the_file_in_the_store_and_leave_nothing(tmp_path, memory):
    memory.pipe("/bucket/raw/log.csv", INTERACTIONS.replace("ann,10,100", "ann,10,soon").encode())
    made = recipe("memory://bucket/raw", **ITEMS_ONLY)
    with pytest.raises(ValueError, match="memory://bucket/raw/items.csv: no such file"):
        prepared(tmp_path, made)
    memory.pipe("/bucket/raw/items.csv", ITEMS.encode())
    with pytest.raises(ValueError, match="memory://bucket/raw/log.csv: column 'time': not a time"):
        prepared(tmp_path, made)
    assert not (tmp_path / "w").exists()


def test_a_worker_of_ray_reads_short_blocks_too(memory, monkeypatch):
    """The client that it gets is made anew, and knows the options alone."""
    monkeypatch.setattr(MemoryFileSystem, "default_block_size", 50 << 20, raising=False)
    sent = pickle.dumps(source_root(recipe("memory://b", **ITEMS_ONLY)) / "items.csv")
    MemoryFileSystem.clear_instance_cache()
    path = pickle.loads(sent)
    with duckdb.connect() as connection:
        register(connection, path)
    assert path.store.default_block_size == 4 << 20
    MemoryFileSystem.clear_instance_cache()


def test_a_store_that_refuses_is_one_sentence(tmp_path, memory, monkeypatch):
    def refuse(self, path, **more):
        raise PermissionError("Access Denied")

    for name in ("info", "find"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
    refused = r"=memory://b: the store refuses it .*PermissionError: Access Denied.*credentials"
    with pytest.raises(ValueError, match=f"data.source{refused}"):
        prepared(tmp_path, recipe("memory://b", **ITEMS_ONLY))
    with pytest.raises(ValueError, match=f"^source{refused}"):
        sync("memory://b", str(tmp_path / "x"))


def test_pictures_in_a_store_say_how_to_copy_them(tmp_path):
    with pytest.raises(ValueError, match=r"pictures .* launch/sync.py source=memory://b target="):
        prepared(tmp_path, recipe("memory://b"))


def test_folder_goes_to_a_store_and_comes_back_with_what_changed_alone(tmp_path, memory):
    source = write_source(tmp_path / "raw")
    (source / "sub").mkdir()
    (source / "sub" / "picture.png").write_bytes(b"any")
    assert sync(str(source), "memory://bucket/raw") == (3, 0)
    assert sync("memory://bucket/raw", str(tmp_path / "back")) == (3, 0)
    for name in ("log.csv", "items.csv", "sub/picture.png"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert sync("memory://bucket/raw", f"file://{tmp_path / 'back'}") == (0, 3)
    later = os.stat(source / "log.csv").st_mtime + 60
    (source / "log.csv").write_text(INTERACTIONS.replace("5", "4"))
    os.utime(source / "log.csv", (later, later))
    assert sync(str(source), "memory://bucket/raw") == (1, 2)
    assert memory.cat("/bucket/raw/log.csv") == INTERACTIONS.replace("5", "4").encode()
    with pytest.raises(ValueError, match="source=memory://nothing: no files there"):
        sync("memory://nothing", str(tmp_path / "x"))


def test_what_is_in_the_making_is_not_copied(tmp_path):
    made = ["features/text/manifest.json", "features/text/.stamp.json"]
    making = ["features/.text.next/manifest.json", "features/.text.next/shard-00000.npy"]
    making += ["features/.text.replace", f".prepared.{new_owner()}.part/log.parquet"]
    for name in [*made, *making]:
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text("{}")
    assert sync(str(tmp_path / "one"), str(tmp_path / "two")) == (2, 0)
    copied = [p for p in (tmp_path / "two").rglob("*") if p.is_file()]
    assert sorted(str(p.relative_to(tmp_path / "two")) for p in copied) == sorted(made)


def test_copy_that_breaks_off_leaves_no_half_file_and_no_manifest(tmp_path, memory, monkeypatch):
    for name in ("manifest.json", "a.bin", "z.bin"):
        memory.pipe(f"/b/{name}", b"x" * 10)
    whole = type(memory).open

    def broken(self, path, mode="rb", **more):
        if path.endswith("z.bin") and mode == "rb":
            raise OSError("the line is cut")
        return whole(self, path, mode, **more)

    monkeypatch.setattr(type(memory), "open", broken)
    with pytest.raises(OSError, match="the line is cut"):
        sync("memory://b", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]
    monkeypatch.undo()
    assert sync("memory://b", str(tmp_path)) == (2, 1)


def test_name_that_leads_out_of_the_folder_is_refused(tmp_path, memory):
    memory.pipe("/b/../../escaped", b"x")
    memory.store["/b/x/../../../escaped"] = memory.store.pop(next(iter(memory.store)))
    with pytest.raises(ValueError, match=r"source=memory://b: '.*\.\..*' leaves the folder"):
        sync("memory://b", str(tmp_path / "in"))
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/raw", "https://host/raw?X-Amz-Signature=secret"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="credentials belong into the store's own files") as caught:
        open_store(url, "data.source")
    assert "secret" not in str(caught.value) and "key:" not in str(caught.value)


def test_store_without_its_package_or_of_no_kind_is_one_sentence():
    with pytest.raises(ValueError, match="source=magic://b: no file system for it"):
        open_store("magic://b", "source")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="source=s3://b: no file system for it .*s3fs"):
            open_store("s3://b", "source")


def test_workspace_in_a_store_is_refused_before_anything_is_written():
    with pytest.raises(ValueError, match="workspace=s3://b/w: expected a path of this machine"):
        local_path("s3://b/w", "workspace")


def test_sync_runs_as_documented(tmp_path, job):
    source = write_source(tmp_path / "raw")
    done = job("sync", f"source={source}", f"target=file://{tmp_path / 'copy'}")
    assert done.returncode == 0, done.stderr
    assert "2 files copied, 0 were there" in done.stdout
    assert (tmp_path / "copy" / "log.csv").read_text() == INTERACTIONS
