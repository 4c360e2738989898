"""Synthetic prepared data for measurements: random rows straight into the prepared format."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.schema import FeatureSpec, HistorySpec, Manifest, SplitSpec, TableSpec, write_manifest
from tests.feature_tables import write_table


def write_prepared(
    workspace,
    *,
    num_rows,
    num_users,
    num_items,
    history_length=20,
    recent_length=0,
    valid_rows=0,
    modality_dims=(),
):
    """Write prepared/ with users, items, tags and histories, and vectors; return its manifest."""
    rng = np.random.default_rng(0)
    folder = workspace / "prepared"
    folder.mkdir(parents=True)
    for side in ("users", "items", "history"):
        (folder / side).mkdir()
    stored = np.full(num_users, history_length)
    stored[0] = 0
    offsets = np.concatenate([[0], np.cumsum(stored)])
    np.save(folder / "history" / "offsets.npy", offsets)
    np.save(
        folder / "history" / "values.npy",
        rng.integers(1, num_items, offsets[-1], dtype=np.int32),
    )
    tag_offsets = np.arange(num_items + 1) * 3
    np.save(folder / "items" / "tags.offsets.npy", tag_offsets)
    np.save(
        folder / "items" / "tags.values.npy", rng.integers(1, 1000, num_items * 3, dtype=np.int32)
    )
    np.save(folder / "items" / "artist.values.npy", rng.integers(1, 500, num_items, dtype=np.int32))
    np.save(folder / "items" / "train_count.npy", np.ones(num_items, dtype=np.int64))
    splits = {}
    for split, count in (("train", num_rows), ("valid", valid_rows)):
        table = pa.table({
            "row_id": np.arange(count),
            "label": rng.integers(0, 2, count, dtype=np.uint8),
            "user_row": rng.integers(1, num_users, count, dtype=np.int32),
            "item_row": rng.integers(1, num_items, count, dtype=np.int32),
            "history_end": np.full(count, history_length, dtype=np.int32),
        })
        file = f"interactions/{split}/part-00000.parquet"
        (folder / file).parent.mkdir(parents=True)
        pq.write_table(table, folder / file, row_group_size=65_536, compression="zstd")
        splits[split] = SplitSpec(
            num_rows=count,
            num_positives=int(table["label"].to_numpy().sum()),
            files=(file,),
            file_rows=(count,),
        )
    for name, dim in dict(modality_dims).items():
        vectors = rng.standard_normal((num_items, dim), dtype=np.float32).astype(np.float16)
        vectors[0] = 0
        write_table(workspace / "features" / name, vectors, shard_rows=16_384, num_masked=1)

    def feature(name, table_name, source, side, is_list):
        return FeatureSpec(name=name, table=table_name, source=source, side=side, is_list=is_list)

    manifest = Manifest(
        name="synthetic",
        tables=(
            TableSpec(name="user_id", num_rows=num_users, kind="vocab"),
            TableSpec(name="item_id", num_rows=num_items, kind="vocab"),
            TableSpec(name="tags", num_rows=1000, kind="vocab"),
            TableSpec(name="artist", num_rows=500, kind="vocab"),
        ),
        features=(
            feature("user_id", "user_id", "user", "user", False),
            feature("item_id", "item_id", "item", "item", False),
            feature("artist", "artist", "item", "item", False),
            feature("tags", "tags", "item", "item", True),
            feature("history", "item_id", "history", "user", True),
            *[feature("history_recent", "item_id", "history", "user", True)] * bool(recent_length),
        ),
        splits=splits,
        num_user_rows=num_users,
        num_item_rows=num_items,
        history=HistorySpec(max_length=history_length, recent_length=recent_length, scope="train"),
        has_images=bool(modality_dims),
        has_texts=bool(modality_dims),
        items_checksum="c",
    )
    write_manifest(folder, manifest)
    return manifest
