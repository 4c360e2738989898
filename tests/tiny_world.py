"""A hand-made world for model tests: a manifest, random feature vectors and batches, no files."""

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.batch import Batch, Features
from recsys.schema import DenseSpec, FeatureSpec, HistorySpec, Manifest, TableSpec

NUM_USERS, NUM_ITEMS, NUM_TAGS = 40, 60, 9


DENSE = {"age": "user", "votes": "item"}
"""Side of each dense feature."""


def manifest(user_rows: int = NUM_USERS, *, has_dense: bool = False) -> Manifest:
    """Users, items, tags and a history, and where asked for dense features; no files behind it."""

    def feature(name, table, source, side, is_list):
        return FeatureSpec(name=name, table=table, source=source, side=side, is_list=is_list)

    return Manifest(
        name="tiny",
        tables=(
            TableSpec(name="user_id", num_rows=user_rows, kind="vocab"),
            TableSpec(name="item_id", num_rows=NUM_ITEMS, kind="vocab"),
            TableSpec(name="tags", num_rows=NUM_TAGS, kind="vocab"),
        ),
        features=(
            feature("user_id", "user_id", "user", "user", False),
            feature("item_id", "item_id", "item", "item", False),
            feature("tags", "tags", "item", "item", True),
            feature("history", "item_id", "history", "user", True),
            feature("history_recent", "item_id", "history", "user", True),
        ),
        splits={},
        num_user_rows=user_rows,
        num_item_rows=NUM_ITEMS,
        history=HistorySpec(max_length=5, recent_length=2, scope="train"),
        dense=tuple(
            DenseSpec(name=name, source=side, side=side, column=name, scale="standard")
            for name, side in DENSE.items()
            if has_dense
        ),
        has_images=True,
        has_texts=True,
    )


class Vectors:
    """In-memory stand-in for a feature table; row 0 and every seventh row are masked."""

    def __init__(self, dim: int, seed: int):
        self.dim = dim
        self.num_rows = NUM_ITEMS
        self.values = np.random.default_rng(seed).normal(size=(NUM_ITEMS, dim)).astype(np.float16)
        self.values[::7] = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


def vectors() -> dict[str, Vectors]:
    """Three modalities of different widths."""
    return {"semantic": Vectors(6, 1), "style": Vectors(4, 2), "text": Vectors(5, 3)}


def batch(
    rows: range, features: list[str], step: int = 0, num_ranks: int = 1, global_rows: int = 0
) -> Batch:
    """Rows of a deterministic global batch: the same row has the same content on any rank."""
    dense = [name for name in features if name in DENSE]
    features = [name for name in features if name not in DENSE]
    per_feature: dict[str, list[list[int]]] = {name: [] for name in features}
    labels, users, items, numbers = [], [], [], []
    for row in rows:
        rng = np.random.default_rng(1000 * step + row)
        user, item = int(rng.integers(1, NUM_USERS)), int(rng.integers(1, NUM_ITEMS))
        tags = rng.integers(1, NUM_TAGS, size=rng.integers(0, 4)).tolist()
        history = rng.integers(1, NUM_ITEMS, size=rng.integers(0, 6)).tolist()
        content = {
            "user_id": [user],
            "item_id": [item],
            "tags": tags,
            "history": history,
            "history_recent": history[-2:],
        }
        for name in features:
            per_feature[name].append(content[name])
        labels.append(float((user * 7 + item * 3) % 5 < 2))
        users.append(user)
        items.append(item)
        numbers.append([float("nan") if item % 5 == 0 else (user - item) / 20 for _ in dense])
    values = [v for name in features for row_values in per_feature[name] for v in row_values]
    lengths = [len(row_values) for name in features for row_values in per_feature[name]]
    size = len(labels)
    return Batch(
        features=Features(
            KeyedJaggedTensor(
                keys=features,
                values=torch.tensor(values, dtype=torch.int64),
                lengths=torch.tensor(lengths, dtype=torch.int64),
            ),
            dense_BK=torch.tensor(numbers).reshape(size, len(dense)) if dense else None,
        ),
        labels_B=torch.tensor(labels),
        weights_B=torch.ones(size),
        row_id_B=torch.tensor(list(rows), dtype=torch.int64),
        user_row_B=torch.tensor(users, dtype=torch.int64),
        item_row_B=torch.tensor(items, dtype=torch.int64),
        global_rows=global_rows or size,
        num_ranks=num_ranks,
    )


def padded(batch: Batch, num_padding: int) -> Batch:
    """The batch with rows of weight 0 and empty lists behind it, as the loader pads one."""
    keys = batch.features.sparse.keys()
    lengths_FB = batch.features.sparse.lengths().reshape(len(keys), -1)
    more = torch.zeros(len(keys), num_padding, dtype=lengths_FB.dtype)
    zeros = torch.zeros(num_padding)
    dense_BK = batch.features.dense_BK
    if dense_BK is not None:
        dense_BK = torch.cat([dense_BK, torch.zeros(num_padding, dense_BK.shape[1])])
    return Batch(
        features=Features(
            KeyedJaggedTensor(
                keys=keys,
                values=batch.features.sparse.values(),
                lengths=torch.cat([lengths_FB, more], dim=1).flatten(),
            ),
            dense_BK=dense_BK,
        ),
        labels_B=torch.cat([batch.labels_B, zeros]),
        weights_B=torch.cat([batch.weights_B, zeros]),
        row_id_B=torch.cat([batch.row_id_B, zeros.long() - 1]),
        user_row_B=torch.cat([batch.user_row_B, zeros.long()]),
        item_row_B=torch.cat([batch.item_row_B, zeros.long()]),
        global_rows=batch.global_rows,
        num_ranks=batch.num_ranks,
    )
