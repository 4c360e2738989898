"""S3: raw files are read and folders copied by its protocol, from a server that the test starts."""

import dataclasses
import gzip

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from recsys.data.prepare.object_store import sync
from tests.data import small_days
from tests.data.small_log import INTERACTIONS, prepared, recipe, write_source

pytestmark = pytest.mark.slow
pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -r requirements-dev.txt")
moto_server = pytest.importorskip("moto.server", reason="moto[s3] is not installed")


@pytest.fixture(scope="module")
def endpoint():
    """URL of an empty S3 server on a free port of this machine."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """(store, name): client of a bucket that is new, as the documented variables set it up."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    store = fsspec.filesystem("s3")
    store.mkdir("raw")
    yield store, "raw"
    store.rm("raw", recursive=True)
    type(store).clear_instance_cache()


def upload(store, source, name):
    """Put every file below a folder into a bucket."""
    for path in source.rglob("*"):
        if path.is_file():
            store.pipe(f"{name}/{path.relative_to(source).as_posix()}", path.read_bytes())


def test_log_items_and_vectors_of_s3_give_the_data_of_local_files(tmp_path, bucket, rng):
    store, name = bucket
    source = write_source(tmp_path / "raw")
    rows = csv.read_csv(source / "log.csv")
    for date in ("2024-01-01", "2024-01-02"):
        (source / "log" / f"date={date}").mkdir(parents=True)
        pq.write_table(rows, source / "log" / f"date={date}" / "part-0.parquet")
    np.save(source / "clip.npy", rng.normal(size=(5, 3)).astype(np.float32))
    made = {
        "interactions__file": "log",
        "interactions__features": {"date": {}},
        "items": {"file": "items.csv", "vectors": {"clip": {"file": "clip.npy"}}},
    }
    local, _ = prepared(tmp_path / "a", recipe(source, **made))
    upload(store, source, name)
    manifest, workspace = prepared(tmp_path / "b", recipe(f"s3://{name}", **made))
    assert manifest.checksums == local.checksums and manifest.rows_in == 2 * rows.num_rows
    assert manifest.vectors == local.vectors and manifest.files == local.files
    assert {path.name for path in workspace.iterdir()} == {"prepared", "features"}
    assert not list(workspace.rglob("clip.npy")), "no copy is left"


def test_days_of_compressed_text_are_appended_from_s3(tmp_path, bucket):
    store, name = bucket
    source = tmp_path / "raw"
    days = [
        [(f"u{1 + n % 2}", f"i{1 + n % 3}", n, n % 2) for n in range(20)],
        [("u3", "i1", 30, 1)],
    ]
    made = small_days.recipe(source, strategy="time")
    made = dataclasses.replace(made, source=f"s3://{name}")
    for number, rows in enumerate(days):
        small_days.write_day(source, number, rows)
        content = (source / "log" / f"day=0{number}" / "part.csv").read_bytes()
        store.pipe(f"{name}/log/day=0{number}/part.csv.gz", gzip.compress(content))
        if number == 0:
            small_days.prepared_base(made, tmp_path / "w")
    manifest = small_days.appended(made, tmp_path / "w")
    assert [file.path for file in manifest.files] == ["log/day=01/part.csv.gz"]
    assert [row[:4] for row in small_days.rows_of(tmp_path / "w", "window_0001")] == [
        ("u3", "i1", 1, 30)
    ]


def test_a_folder_goes_to_s3_and_comes_back_with_what_changed_alone(tmp_path, bucket):
    store, name = bucket
    source = write_source(tmp_path / "raw")
    assert sync(str(source), f"s3://{name}/copy") == (2, 0)
    assert sync(f"s3://{name}/copy", str(tmp_path / "back")) == (2, 0)
    assert sync(f"s3://{name}/copy", str(tmp_path / "back")) == (0, 2)
    store.pipe(f"{name}/copy/log.csv", INTERACTIONS.encode() + b"cid,40,50,4\n")
    assert sync(f"s3://{name}/copy", str(tmp_path / "back")) == (1, 1)
    assert (tmp_path / "back" / "log.csv").read_text() == INTERACTIONS + "cid,40,50,4\n"


@pytest.mark.parametrize("source", ["s3://raw", "s3://raw/folder"])
def test_an_endpoint_that_does_not_answer_is_one_sentence(tmp_path, bucket, monkeypatch, source):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(bucket[0]).clear_instance_cache()
    with pytest.raises(
        ValueError, match=rf"data.source={source}: the store refuses it or does not"
    ):
        prepared(tmp_path, recipe(source, items={"file": "items.csv"}))
    assert not (tmp_path / "w").exists()


def test_what_s3_does_not_have_is_named_by_its_url(tmp_path, bucket):
    for source in ("s3://raw", "s3://nothing/at/all"):
        made = recipe(source, items={"file": "items.csv"})
        with pytest.raises(ValueError, match=f"{source}/items.csv: no such file"):
            prepared(tmp_path, made)
    with pytest.raises(ValueError, match="source=s3://nothing: .*specified bucket does not exist"):
        sync("s3://nothing", str(tmp_path / "x"))
    with pytest.raises(ValueError, match="source=s3://raw/nothing: no files there"):
        sync("s3://raw/nothing", str(tmp_path / "x"))
