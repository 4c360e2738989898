"""Linear probes of what frozen vectors know of users' taste: one ridge regression a user, on validation.

    python -m tests.benchmarks.modality_probe WORKSPACE
    python -m tests.benchmarks.modality_probe WORKSPACE --shuffled OTHER

The first prints the AUC of means of users and items, and of a ridge regression of what they leave, for
each user alone, on vectors, on their principal components, on item features, and on both. The second
makes workspace OTHER of the same data, whose vectors are exchanged between items at random: a ranker that
loses as much there as with the real ones loses by the vectors' width, not by their content.
Shapes: N items, R rows of a split, E width, D joined width.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from embedding.features.store import FeatureTable, spec_of, write_feature_manifest, write_shard
from recsys.metrics.auc import auc
from recsys.model.components import principal_map
from recsys.schema import Manifest, read_manifest

LAMBDAS = (1.0, 3.0, 10.0, 30.0)
SHRINKAGE = 5.0
"""Rows of a mean that is taken to be zero, added to those of a user or item."""


def read_split(workspace: Path, manifest: Manifest, split: str) -> tuple[np.ndarray, ...]:
    """Return users, items and labels of a split, [R] each."""
    files = [workspace / "prepared" / name for name in manifest.splits[split].files]
    table = pq.read_table(files, columns=["user_row", "item_row", "label"])
    users, items, labels = (column.to_numpy() for column in table.columns)
    return users, items, labels.astype(np.float64)


def unit(vectors_NE: np.ndarray) -> np.ndarray:
    """Return rows of length 1, of mean zero before; a row of zeros stays zero."""
    known_N = (vectors_NE != 0).any(axis=1)
    centred_NE = (vectors_NE - vectors_NE[known_N].mean(axis=0)) * known_N[:, None]
    return centred_NE / np.maximum(np.linalg.norm(centred_NE, axis=1, keepdims=True), 1e-6)


def item_features(workspace: Path, manifest: Manifest) -> np.ndarray:
    """Return indicators [N, D] of the items' features; those of a list share one square."""
    rows = {table.name: table.num_rows for table in manifest.tables}
    columns = []
    for feature in manifest.features:
        if feature.source != "item" or feature.name == "item_id":
            continue
        file = workspace / "prepared/items" / feature.name
        values = np.load(f"{file}.values.npy")
        counts_N = np.ones(manifest.num_item_rows, dtype=int)
        if feature.is_list:
            counts_N = np.diff(np.load(f"{file}.offsets.npy"))
        column_ND = np.zeros((manifest.num_item_rows, rows[feature.table]))
        items = np.repeat(np.arange(len(counts_N)), counts_N)
        column_ND[items, values] = np.repeat(np.maximum(counts_N, 1), counts_N) ** -0.5
        columns.append(column_ND[:, 1:])
    return np.concatenate(columns, axis=1)


class Probe:
    """Means of users and items, and ridge regressions of the rest."""

    def __init__(self, workspace: Path, manifest: Manifest):
        """Fit the means on training."""
        self.users, self.items, labels = read_split(workspace, manifest, "train")
        self.valid_users, self.valid_items, self.labels = read_split(workspace, manifest, "valid")
        self.train_labels = labels
        mean, of_user = labels.mean(), np.zeros(manifest.num_user_rows)
        for _ in range(10):
            of_item = self._mean(
                self.items, labels - mean - of_user[self.users], manifest.num_item_rows
            )
            of_user = self._mean(
                self.users, labels - mean - of_item[self.items], manifest.num_user_rows
            )
        self.rest = labels - mean - of_user[self.users] - of_item[self.items]
        self.base = mean + of_user[self.valid_users] + of_item[self.valid_items]

    @staticmethod
    def _mean(rows: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
        return np.bincount(rows, values, count) / (np.bincount(rows, minlength=count) + SHRINKAGE)

    def show(self, name: str, vectors_NE: np.ndarray) -> None:
        """Print the AUC of the best penalty of one ridge regression a user."""
        scores = {penalty: self.base.copy() for penalty in LAMBDAS}
        for user in np.unique(self.valid_users):
            seen, asked = self.users == user, self.valid_users == user
            if not seen.any():
                continue
            left, spread, right = np.linalg.svd(vectors_NE[self.items[seen]], full_matrices=False)
            projected = vectors_NE[self.valid_items[asked]] @ right.T
            for penalty in LAMBDAS:
                weights = spread / (spread**2 + penalty) * (left.T @ self.rest[seen])
                scores[penalty][asked] += projected @ weights
        values = {penalty: auc(self.labels, score) for penalty, score in scores.items()}
        best = max(values, key=values.__getitem__)
        print(f"{name:32} AUC {values[best]:.4f} (penalty {best:g})", flush=True)


def probe(workspace: Path) -> None:
    """Print one line a kind of vectors."""
    manifest = read_manifest(workspace)
    fitted, features = Probe(workspace, manifest), unit(item_features(workspace, manifest))
    print(f"{'means of users and items':32} AUC {auc(fitted.labels, fitted.base):.4f}")
    fitted.show("item features", features)
    for folder in sorted(path for path in (workspace / "features").iterdir() if path.is_dir()):
        table = FeatureTable(folder)
        raw_NE = table.read(0, table.num_rows).astype(np.float64)
        fitted.show(table.name, unit(raw_NE))
        for dim in (16, 32, 64, 128):
            if dim < table.dim:
                components = raw_NE @ principal_map(torch.from_numpy(raw_NE), dim).double().numpy()
                fitted.show(f"{table.name}, {dim} components", unit(components))
        fitted.show(f"item features and {table.name}", np.hstack([features, 0.7 * unit(raw_NE)]))


def write_shuffled(workspace: Path, other: Path) -> None:
    """Make a workspace of the same data with the vectors of every table in another order."""
    (other / "features").mkdir(parents=True)
    (other / "prepared").symlink_to((workspace / "prepared").resolve())
    for folder in sorted(path for path in (workspace / "features").iterdir() if path.is_dir()):
        table = FeatureTable(folder)
        order_N = 1 + np.random.default_rng(0).permutation(table.num_rows - 1)
        order_N = np.concatenate([[0], order_N])
        rows = np.concatenate([
            np.load(folder / shard.rows_file) for shard in table.manifest.shards
        ])
        made = other / "features" / table.name
        made.mkdir()
        stored = table.stored(0, table.num_rows)[order_N]
        entry = write_shard(made, 0, 0, stored, rows[order_N], table.form)
        manifest = dataclasses.replace(table.manifest, shards=(spec_of(entry),))
        write_feature_manifest(made, manifest)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--shuffled", type=Path, help="workspace to make")
    given = parser.parse_args()
    if given.shuffled is None:
        probe(given.workspace)
    else:
        write_shuffled(given.workspace, given.shuffled)
