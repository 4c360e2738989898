"""What ranks read at the start of a training: once a host, or once in all. `make bench`."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.schema import SplitSpec, write_manifest
from tests.benchmarks.synthetic import write_prepared
from tests.feature_tables import write_table
from tests.processes import worker_result

pytestmark = pytest.mark.bench
WORKER = Path(__file__).with_name("start_reads.py")
NUM_PARTS = 60
NUM_ITEMS, SHARD_ROWS = 20_000, 256
NUM_SHARDS = -(-NUM_ITEMS // SHARD_ROWS)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """60 Parquet parts of training rows, and 79 shards of each of three feature tables."""
    folder = tmp_path_factory.mktemp("reads")
    counts = {"num_rows": 120_000, "num_users": 5_000, "num_items": NUM_ITEMS}
    manifest = write_prepared(folder, valid_rows=1_000, **counts)
    (file,) = manifest.splits["train"].files
    rows = pq.read_table(folder / "prepared" / file)
    files = [f"interactions/train/part-{number:05d}.parquet" for number in range(NUM_PARTS)]
    each = rows.num_rows // NUM_PARTS
    for number, name in enumerate(files):
        pq.write_table(rows.slice(number * each, each), folder / "prepared" / name)
    train = manifest.splits["train"]
    spec = SplitSpec(
        num_rows=train.num_rows,
        num_positives=train.num_positives,
        files=tuple(files),
        file_rows=(each,) * NUM_PARTS,
    )
    splits = {**manifest.splits, "train": spec}
    rng = np.random.default_rng(0)
    for name in ("semantic", "style", "text"):
        vectors = rng.standard_normal((NUM_ITEMS, 32), dtype=np.float32).astype(np.float16)
        write_table(folder / "features" / name, vectors, shard_rows=SHARD_ROWS)
    write_manifest(
        folder / "prepared",
        dataclasses.replace(manifest, splits=splits, has_images=True, has_texts=True),
    )
    return folder


@pytest.mark.parametrize(("ranks", "ranks_a_host"), [(1, 1), (4, 4), (4, 2), (8, 4), (64, 8)])
def test_a_host_reads_once_what_all_its_ranks_need(workspace, ranks, ranks_a_host):
    counts = worker_result(WORKER, workspace, ranks_a_host, ranks=ranks)
    print(f"\n{ranks} rank(s), {ranks_a_host} a host")
    for rank, count in enumerate(counts[:8]):
        print(f"  rank {rank}: {count}")
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    print(f"  together: {total}")
    for rank, count in enumerate(counts):
        if rank % ranks_a_host:
            assert count["feature_files"] == count["vocabularies"] == count["manifests"] == 0
            assert count["bytes"] < counts[0]["bytes"] / 4
        else:
            assert count["feature_files"] >= 3 * NUM_SHARDS
        assert count["kept_open"] == 0
