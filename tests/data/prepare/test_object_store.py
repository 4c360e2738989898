"""Object stores: raw files are fetched for prepare, folders copied whole; what cannot be says so."""

import os

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from recsys.data.prepare.object_store import open_store, sync
from recsys.locks import new_owner
from recsys.schema import local_path
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
