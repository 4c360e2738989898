"""Click logs of four shapes, written once in the prepared format; every contender reads these files.

A label depends on a weight of every id, hashed from it, and on products of hidden types of two
fields, so that a model has something to learn whatever the number of ids.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.schema import FeatureSpec, Manifest, SplitSpec, TableSpec, write_manifest
from tests.feature_tables import write_table

BLOCK_ROWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a log; ids are those of all fields together."""

    name: str
    num_fields: int
    num_ids: int
    train_rows: int
    valid_rows: int
    num_items: int = 0
    """Items with vectors; their id is one more field. 0: none."""
    modality_dims: dict[str, int] = field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        return [f"field_{number:02d}" for number in range(self.num_fields - bool(self.num_items))]

    @property
    def field_rows(self) -> list[int]:
        """Rows of every field's table: a geometric row of sizes, unknown row 0 included."""
        count = len(self.fields)
        sizes = np.geomspace(1, max(1.0, self.num_ids / count / 100), count)
        rows = np.maximum(4, sizes / sizes.sum() * (self.num_ids - 4 * count)).astype(int) + 4
        return rows.tolist()


SHAPES = {
    "a": Shape(name="a", num_fields=10, num_ids=5_000, train_rows=204_800, valid_rows=100_000),
    "b": Shape(name="b", num_fields=26, num_ids=1_000_000, train_rows=102_400, valid_rows=100_000),
    "c": Shape(name="c", num_fields=26, num_ids=30_000_000, train_rows=102_400, valid_rows=100_000),
    "d": Shape(
        name="d",
        num_fields=10,
        num_ids=5_000,
        train_rows=102_400,
        valid_rows=100_000,
        num_items=100_000,
        modality_dims={"semantic": 1024, "style": 256, "text": 512},
    ),
}
"""The shapes of tests/benchmarks/test_side_by_side.py."""


def write_click_log(workspace, shape: Shape, *, seed: int = 0) -> Manifest:
    """Write prepared/ (splits train and valid) and features/; return the manifest."""
    prepared = workspace / "prepared"
    item_vectors = _write_items(workspace, shape)
    splits, row = {}, 0
    for number, (split, num_rows) in enumerate((
        ("train", shape.train_rows),
        ("valid", shape.valid_rows),
    )):
        folder = prepared / "interactions" / split
        folder.mkdir(parents=True)
        files, file_rows, num_positives = [], [], 0
        for start in range(0, num_rows, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, num_rows - start)
            rng = np.random.default_rng([seed, number, start])
            table = _rows(shape, rows, row, rng, item_vectors)
            name = f"part-{start // BLOCK_ROWS:05d}.parquet"
            pq.write_table(
                table, folder / name, row_group_size=65_536, compression="lz4", use_dictionary=False
            )
            files.append(f"interactions/{split}/{name}")
            file_rows.append(rows)
            num_positives += int(table["label"].to_numpy().sum())
            row += rows
        splits[split] = SplitSpec(
            num_rows=num_rows,
            num_positives=num_positives,
            files=tuple(files),
            file_rows=tuple(file_rows),
        )
    named = dict(zip(shape.fields, shape.field_rows, strict=True))
    tables = [TableSpec(name=n, num_rows=r, kind="vocab") for n, r in named.items()]
    features = [
        FeatureSpec(name=n, table=n, source="interaction", side="user", is_list=False)
        for n in named
    ]
    if shape.num_items:
        tables.append(TableSpec(name="item_id", num_rows=shape.num_items, kind="vocab"))
        features.append(
            FeatureSpec(name="item_id", table="item_id", source="item", side="item", is_list=False)
        )
    manifest = Manifest(
        name="clicks",
        tables=tuple(tables),
        features=tuple(features),
        splits=splits,
        num_user_rows=0,
        num_item_rows=shape.num_items,
        has_images=bool(shape.num_items),
        has_texts=bool(shape.num_items),
        items_checksum="c",
    )
    write_manifest(prepared, manifest)
    return manifest


def _write_items(workspace, shape: Shape) -> np.ndarray | None:
    """Write the items' vectors; return a taste value of every item that they hold."""
    if not shape.num_items:
        return None
    (workspace / "prepared" / "items").mkdir(parents=True)
    counts = np.ones(shape.num_items, dtype=np.int64)
    np.save(workspace / "prepared" / "items" / "train_count.npy", counts)
    hidden = np.zeros(shape.num_items, dtype=np.float32)
    for number, (name, dim) in enumerate(shape.modality_dims.items()):
        rng = np.random.default_rng(number)
        vectors = rng.standard_normal((shape.num_items, dim), dtype=np.float32).astype(np.float16)
        vectors[0] = 0
        hidden += vectors[:, :4].astype(np.float32).sum(axis=1) / 4
        write_table(workspace / "features" / name, vectors, shard_rows=16_384, num_masked=1)
    return hidden


def _rows(
    shape: Shape,
    num_rows: int,
    first_row: int,
    rng: np.random.Generator,
    item_values: np.ndarray | None,
) -> pa.Table:
    columns: dict[str, np.ndarray] = {}
    logits = np.full(num_rows, -0.5, dtype=np.float32)
    types = []
    for number, (name, rows) in enumerate(zip(shape.fields, shape.field_rows, strict=True)):
        # A cubed uniform number: the head of the table is asked for far more often than its tail.
        ids = 1 + ((rows - 1) * rng.random(num_rows, dtype=np.float32) ** 3).astype(np.int32)
        columns[name] = np.minimum(ids, rows - 1)
        mixed = _mixed(columns[name], number)
        logits += ((mixed & 0xFFFF) / 65_536 - 0.5).astype(np.float32)
        types.append((mixed >> 16) % 3)
    for left, right in zip(types[::2], types[1::2], strict=False):
        logits += 0.8 * (left == right) - 0.8 / 3
    if item_values is not None:
        ids = 1 + ((shape.num_items - 1) * rng.random(num_rows) ** 2).astype(np.int32)
        columns["item_row"] = ids
        logits += item_values[ids]
    label = rng.random(num_rows, dtype=np.float32) < 1 / (1 + np.exp(-logits))
    return pa.table({
        "row_id": np.arange(first_row, first_row + num_rows),
        "label": label.astype(np.uint8),
        **columns,
    })


def _mixed(ids: np.ndarray, field_number: int) -> np.ndarray:
    """Thirty-two well-mixed bits of every id, others for every field."""
    salt = np.uint64(zlib.crc32(b"field %d" % field_number))
    mixed = (ids.astype(np.uint64) + salt) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)
