"""A bundle of a large catalogue, for measurements of serving: random data, one step of training, export.

    python -m tests.benchmarks.large_bundle FOLDER [NUM_ITEMS]

Prepared data and vectors are written as prepare and embed write them, with the widths of the paper's
encoders (semantic 1024, style 256, text 512); the run and the bundle are made by the jobs.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.schema import read_manifest, write_manifest
from tests.benchmarks.synthetic import write_prepared
from tests.feature_tables import write_table

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTHS = {"semantic": 1024, "style": 256, "text": 512}
MODEL = ["model=base", "model.embedding_dim=64", "model.second_order=true", "model.tower_dims=[64]"]
TRAINING = ["train.global_batch_size=1024", "train.epochs=1"]
SHARD_ROWS = 16_384


def make_large_bundle(
    workspace: Path, *, num_items: int, num_users: int = 100_000, widths: dict[str, int] = WIDTHS
) -> Path:
    """Write a workspace with run and bundle, and return the bundle's folder."""
    write_prepared(
        workspace, num_rows=4096, num_users=num_users + 1, num_items=num_items + 1, valid_rows=1024
    )
    write_ids_and_cards(workspace, num_users, num_items)
    for number, (name, width) in enumerate(widths.items()):
        write_vectors(workspace / "features" / name, num_items + 1, width, seed=number)
    place = ["data=demo", f"workspace={workspace}", "run.name=large"]
    run_job("train", *place, *MODEL, *TRAINING)
    run_job("export", *place, "check_rows=0")
    bundles = workspace / "bundles"
    return bundles / (bundles / "current").read_text().strip()


def write_ids_and_cards(workspace: Path, num_users: int, num_items: int) -> None:
    """Add what serving reads beside the rows: vocabularies, titles, artists, tags, times, modalities."""
    prepared = workspace / "prepared"
    (prepared / "vocab").mkdir()
    rng = np.random.default_rng(1)
    for table, letter, count in (("user_id", "u", num_users), ("item_id", "i", num_items)):
        rows = np.arange(1, count + 1)
        ids = [f"{letter}{row:07d}" for row in rows]
        pq.write_table(
            pa.table({"row": rows, "id": ids, "count": np.ones(count, np.int64)}),
            prepared / "vocab" / f"{table}.parquet",
        )
    artists, tags = rng.integers(0, 5000, num_items), rng.integers(0, 1000, (num_items, 3))
    cards = {
        "item_id": [None, *ids],
        "title": [None, *(f"Picture {row}" for row in rows)],
        "artist": [None, *(f"artist{a}" for a in artists)],
        "tags": [None, *("|".join(f"t{t}" for t in three) for three in tags)],
    }
    pq.write_table(
        pa.table({"row": np.arange(num_items + 1), **cards}),
        prepared / "items.parquet",
        row_group_size=65_536,
    )
    manifest = read_manifest(workspace)
    tables = tuple(
        replace(t, vocabulary=f"vocab/{t.name}.parquet") if t.name in ("user_id", "item_id") else t
        for t in manifest.tables
    )
    write_manifest(prepared, replace(manifest, tables=tables, has_images=True, has_texts=True))


def write_vectors(folder: Path, num_rows: int, width: int, *, seed: int) -> None:
    """Write random unit vectors [N, E] as a feature table, a shard at a time."""
    path = folder.with_suffix(".npy")
    folder.parent.mkdir(parents=True, exist_ok=True)
    vectors = np.lib.format.open_memmap(path, "w+", np.float16, (num_rows, width))
    rng = np.random.default_rng(seed)
    for start in range(0, num_rows, SHARD_ROWS):
        block = rng.standard_normal((min(SHARD_ROWS, num_rows - start), width), dtype=np.float32)
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors[0] = 0
    write_table(folder, vectors, shard_rows=SHARD_ROWS, num_masked=1)
    path.unlink()


def run_job(name: str, *arguments: str) -> None:
    """Run a job as people do; its output is this process's."""
    program = str(REPOSITORY / "launch" / f"{name}.py")
    subprocess.run([sys.executable, program, *arguments], check=True)


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    print(make_large_bundle(Path(sys.argv[1]), num_items=count))
