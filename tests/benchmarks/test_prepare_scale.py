"""prepare turns 20 million interactions into parquet in bounded memory. `make bench`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from recsys.schema import read_manifest

pytestmark = pytest.mark.bench
NUM_ROWS = 20_000_000
MOST_BYTES = 4_000_000_000

RECIPE = """
name: scale
source: ???
interactions:
  file: log.csv
  user_id: user_id
  item_id: item_id
  timestamp: time
  label: "rating >= 4"
  features:
    device: {}
    place: {hash_rows: 100000}
    price: {kind: numeric}
items:
  file: items.csv
  title: title
  features:
    genres: {kind: id_list}
    artist: {min_count: 2}
split: {strategy: per_user_time}
history: {max_length: 50, recent_length: 10}
"""


def prepare_and_measure(what: str, repository: Path, workspace: Path, *arguments: str) -> None:
    """Run launch/prepare.py; nothing may be lost, and its memory stays below the mark."""
    begun = time.perf_counter()
    process = subprocess.Popen([
        sys.executable,
        str(repository / "launch" / "prepare.py"),
        *arguments,
        f"workspace={workspace}",
    ])
    # wait4: the peak of this process, not the highest of all children so far.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    peak_bytes = usage.ru_maxrss * 1024
    print(
        f"\nprepare, {what}, {NUM_ROWS:,} rows: {seconds:.0f} s, {NUM_ROWS / seconds:,.0f} rows/s, "
        f"peak {peak_bytes / 1e9:.2f} GB resident"
    )
    assert os.waitstatus_to_exitcode(status) == 0
    manifest = read_manifest(workspace)
    assert manifest.rows_in == NUM_ROWS == sum(s.num_rows for s in manifest.splits.values())
    assert len(manifest.splits["train"].files) > 1, "parts are bounded"
    assert peak_bytes < MOST_BYTES


def test_twenty_million_interactions_stay_under_four_gigabytes(tmp_path, repository):
    source = tmp_path / "raw"
    source.mkdir()
    duckdb.sql(
        f"COPY (SELECT 'u' || (hash(i) % 1000000) AS user_id, 'i' || (hash(i * 7) % 200000) AS "
        f"item_id, 1600000000 + i AS timestamp, (hash(i * 13) % 4 = 0)::INT AS label "
        f"FROM range({NUM_ROWS}) t(i)) TO '{source / 'log.parquet'}' (FORMAT parquet)"
    )
    prepare_and_measure(
        "Parquet, split by time",
        repository,
        tmp_path / "w",
        "data=demo",
        f"data.source={source}",
        "data.interactions.file=log.parquet",
        "data.items=null",
        "data.users=null",
        "data.pairs=[]",
    )


def test_features_and_a_split_per_user_stay_under_four_gigabytes_too(tmp_path, repository):
    """Skewed users and items, an items file, a log feature of each kind, all from CSV."""
    source = tmp_path / "raw"
    (source / "data").mkdir(parents=True)
    (source / "data" / "scale.yaml").write_text(RECIPE)
    duckdb.sql(
        f"COPY (SELECT 'u' || CAST(500000 * random() ** 2 AS INTEGER) AS user_id, "
        f"'i' || CAST(99999 * random() ** 3 AS INTEGER) AS item_id, "
        f"1600000000 + CAST(random() * 40000000 AS INTEGER) AS time, "
        f"1 + CAST(random() * 4 AS INTEGER) AS rating, "
        f"'d' || CAST(random() * 30 AS INTEGER) AS device, "
        f"'p' || CAST(random() * 1000000 AS INTEGER) AS place, "
        f"round(random() * 100, 2) AS price FROM range({NUM_ROWS})) "
        f"TO '{source / 'log.csv'}' (HEADER)"
    )
    duckdb.sql(
        f"COPY (SELECT 'i' || range AS item_id, 'Item ' || range AS title, "
        f"'g' || range % 7 || '|g' || range % 11 AS genres, 'a' || range // 20 AS artist "
        f"FROM range(100000)) TO '{source / 'items.csv'}' (HEADER)"
    )
    prepare_and_measure(
        "CSV, split per user, features",
        repository,
        tmp_path / "w",
        f"--config-dir={source}",
        "data=scale",
        f"data.source={source}",
    )
