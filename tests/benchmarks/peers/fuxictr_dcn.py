"""DCN-V2 with FuxiCTR, by its documented API: feature map, loader, fit.

Variants: `npz` (its loader for arrays in memory), `parquet` (its loader on Ray), `memory` (whole batches
cut from arrays in memory by us: what FuxiCTR would reach with a loader that costs nothing). With
vectors: a frozen `pretrained_emb` of FuxiCTR, or with `rows` in the variant each row's own vectors
(`npz rows`: in the files, as its loader wants them; `memory rows`: joined to a batch by us).
"""

import json
import logging
import math
import time

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from measure import (
    BATCH,
    CROSS_LAYERS,
    DEEP_DIMS,
    DIM,
    LEARNING_RATE,
    Log,
    auc,
    read_options,
    write_result,
)
from torch import nn


class DCNv2(BaseModel):
    """The parallel form, as in FuxiCTR's model zoo."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, model_id="DCNv2", gpu=-1, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        width = feature_map.sum_emb_out_dim()
        self.crossnet = CrossNetV2(width, CROSS_LAYERS)
        self.parallel_dnn = MLP_Block(
            input_dim=width, output_dim=None, hidden_units=DEEP_DIMS, hidden_activations="relu"
        )
        self.fc = nn.Linear(width + DEEP_DIMS[-1], 1)
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        last = torch.cat([self.crossnet(x), self.parallel_dnn(x)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(last))}

    def eval_step(self):
        """Keep the times of training and evaluation apart."""
        self.train_seconds = time.perf_counter() - self.begun
        self.train_cpu_seconds = time.process_time() - self.cpu_begun
        begun = time.perf_counter()
        labels, scores = self.scored(self.valid_gen)
        self.valid_auc = auc(labels, scores)
        self.valid_seconds = time.perf_counter() - begun
        self.save_weights(self.checkpoint)
        self.train()

    def scored(self, batches):
        """FuxiCTR's own evaluate, less its Python lists: labels and scores of all batches."""
        self.eval()
        labels, scores = [], []
        with torch.no_grad():
            for batch in batches:
                scores.append(self.forward(batch)["y_pred"].numpy().reshape(-1))
                labels.append(self.get_labels(batch).numpy().reshape(-1))
        return np.concatenate(labels), np.concatenate(scores).astype(np.float64)


class MemoryBatches:
    """Whole batches of tensors; `shuffle` permutes the rows anew for every pass."""

    def __init__(self, arrays, shuffle):
        self.tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        self.num_rows = len(arrays["label"])
        self.shuffle = shuffle

    def __len__(self):
        return math.ceil(self.num_rows / BATCH)

    def __iter__(self):
        order = torch.randperm(self.num_rows) if self.shuffle else torch.arange(self.num_rows)
        for rows in order.split(BATCH):
            yield {name: values[rows] for name, values in self.tensors.items()}


class RowVectors:
    """Batches with the item's vectors in every row, joined from memory."""

    def __init__(self, batches, vectors):
        self.batches = batches
        self.vectors = {n: torch.from_numpy(v.astype(np.float32)) for n, v in vectors.items()}

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            items = batch["item_id"].long()
            yield batch | {name: vectors[items] for name, vectors in self.vectors.items()}


def feature_map_of(log, folder, in_rows):
    spec = {"source": "", "type": "categorical", "padding_idx": None}
    features = [
        {name: {**spec, "vocab_size": rows, "oov_idx": rows}} for name, rows in log.fields.items()
    ]
    vectors = log.vectors()
    if vectors:
        items = log.fields["item_id"]
        (folder / "feature_vocab.json").write_text(
            json.dumps(
                {"first": {}, "second": {}}
                | {name: {str(i): i for i in range(items)} for name in vectors}
            )
        )
    for name, values in vectors.items():
        if in_rows:
            kind = {"type": "embedding", "source": "", "pretrain_dim": values.shape[1]}
        else:
            np.savez(folder / f"{name}.npz", key=np.arange(items), value=values)
            kind = {
                **spec,
                "vocab_size": items,
                "oov_idx": items,
                "pretrained_emb": f"{name}.npz",
                "pretrain_dim": values.shape[1],
                "pretrain_usage": "init",
                "freeze_emb": True,
            }
        features.append({name: kind})
    content = {
        "dataset_id": "clicks",
        "num_fields": len(features),
        "total_features": sum(log.fields.values()),
        "input_length": len(features),
        "labels": ["label"],
        "features": features,
    }
    (folder / "feature_map.json").write_text(json.dumps(content))
    feature_map = FeatureMap("clicks", str(folder))
    feature_map.load(str(folder / "feature_map.json"), {"embedding_dim": DIM})
    return feature_map


def write_arrays(file, columns, vectors):
    """Write a split, with the item's vectors in every row; they are gone when the loader reads."""
    items = columns["item_id"].astype(np.int64) if vectors else None
    np.savez(file, **columns, **{name: values[items] for name, values in vectors.items()})


def main():
    options = read_options()
    logging.basicConfig(level=logging.WARNING)
    log = Log(options.workspace, options.max_rows)
    folder = options.result.parent / f"{options.result.stem}_fuxictr"
    (folder / "clicks").mkdir(parents=True, exist_ok=True)
    in_rows = "rows" in options.variant
    feature_map = feature_map_of(log, folder, in_rows)
    model = DCNv2(feature_map, verbose=0, model_root=str(folder), metrics=["AUC"])
    arrays = {split: dict(columns) for split, columns in log.splits.items()}
    vectors = log.vectors()
    if not in_rows:
        for columns in arrays.values():
            columns |= {name: columns["item_id"] for name in vectors}
    if "memory" in options.variant:
        loaders = [MemoryBatches(arrays["train"], True), MemoryBatches(arrays["valid"], False)]
    elif "npz" in options.variant:
        for split, columns in arrays.items():
            write_arrays(folder / f"{split}.npz", columns, vectors if in_rows else {})
        loaders = RankDataLoader(
            feature_map,
            stage="train",
            train_data=str(folder / "train.npz"),
            valid_data=str(folder / "valid.npz"),
            batch_size=BATCH,
            data_format="npz",
            num_workers=1,
        )
    else:
        prepared = options.workspace / "prepared" / "interactions"
        loaders = RankDataLoader(
            feature_map,
            stage="train",
            train_data=str(prepared / "train" / "*.parquet"),
            valid_data=str(prepared / "valid" / "*.parquet"),
            batch_size=BATCH,
            data_format="parquet",
        )
    if options.variant == "memory rows":
        loaders = [RowVectors(batches, vectors) for batches in loaders]
    train_gen, valid_gen = loaders
    model.begun, model.cpu_begun = time.perf_counter(), time.process_time()
    model.fit(train_gen, epochs=1, validation_data=valid_gen)
    write_result(
        options.result,
        train_rows=len(arrays["train"]["label"]),
        train_seconds=model.train_seconds,
        train_cpu_seconds=model.train_cpu_seconds,
        valid_rows=len(arrays["valid"]["label"]),
        valid_seconds=model.valid_seconds,
        valid_auc=model.valid_auc,
    )


if __name__ == "__main__":
    main()
