"""prepare turns 20 million interactions into parquet in bounded memory. `make bench`."""

import resource
import subprocess
import sys
import time

import duckdb
import pytest

pytestmark = pytest.mark.bench
NUM_ROWS = 20_000_000


def test_twenty_million_interactions_stay_under_four_gigabytes(tmp_path, repository):
    source = tmp_path / "raw"
    source.mkdir()
    duckdb.sql(
        f"COPY (SELECT 'u' || (hash(i) % 1000000) AS user_id, 'i' || (hash(i * 7) % 200000) AS "
        f"item_id, 1600000000 + i AS timestamp, (hash(i * 13) % 4 = 0)::INT AS label "
        f"FROM range({NUM_ROWS}) t(i)) TO '{source / 'log.parquet'}' (FORMAT parquet)"
    )
    command = [
        sys.executable,
        str(repository / "launch" / "prepare.py"),
        "data=demo",
        f"data.source={source}",
        f"workspace={tmp_path / 'w'}",
        "data.interactions.file=log.parquet",
        "data.items=null",
        "data.users=null",
        "data.pairs=[]",
    ]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{done.stdout}\n{NUM_ROWS:,} rows: {seconds:.0f} s, peak {peak_gib:.2f} GiB")
    assert done.returncode == 0, done.stderr
    assert peak_gib < 4 * 1e9 / 2**30
