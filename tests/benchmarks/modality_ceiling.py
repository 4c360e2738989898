"""Ceiling of readers of a history: how much the items that a user rated add to the logits of a run.

    python launch/evaluate.py data=<name> workspace=W run.name=RUN split=valid
    python -m tests.benchmarks.modality_ceiling W RUN text semantic

A logistic regression of the run's logit and of a few features, fitted on half of the validation users and
scored on the other half: what a reader of the same features could at most be hoped to bring. Features are
made of the cosines between the row's item and the training items of its user. Attention over the likes is
SA-TA with the residuals of items in place of embeddings; semantic ids are residual k-means, a code being
told with those before it.
Shapes: R rows of validation, T training rows (T' of one user, A rows asked), N items, E width, L levels.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from embedding.features.store import FeatureTable
from recsys.evaluation.rows import scored_rows
from recsys.metrics.auc import auc
from recsys.schema import Manifest, read_manifest
from tests.benchmarks.modality_probe import Probe, unit
from tests.benchmarks.modality_users import read_split

SCALES = (3.0, 10.0, 30.0)
"""Of a cosine, ahead of the exponential."""
LEVELS, CLUSTERS = 3, 24
"""Of the residual k-means."""
SHRINKAGE = 5.0
"""Rows of a mean that is taken to be zero, added to those of a code, or of a user and code."""
LEAST_WEIGHT = 1e-3
"""Of a kernel, added to its sum: without a similar item, its mean goes to zero."""


class Ceiling:
    """Training rows by user, and the rows of validation whose logits are to be improved."""

    def __init__(self, workspace: Path, manifest: Manifest, run: str):
        """Read both splits and the predictions of the run."""
        self.manifest, self.workspace = manifest, workspace
        self.train = Probe(workspace, manifest)
        self.likes_T = self.train.train_labels > 0
        file = workspace / "runs" / run / "eval/valid/predictions.parquet"
        scored, columns = scored_rows(pq.read_table(file)), read_split(workspace, manifest, "valid")
        assert np.array_equal(scored.row_id_N, columns["row_id"]), f"{file}: of other rows"
        self.users_R, self.items_R = columns["user_row"], columns["item_row"]
        self.labels_R = columns["label"].astype(np.float64)
        self.logit_R = np.log(scored.score_N) - np.log1p(-scored.score_N)
        self.num_rows_N = np.bincount(self.train.items, minlength=manifest.num_item_rows)
        self.half_R = np.random.default_rng(0).integers(0, 2, manifest.num_user_rows)[self.users_R]

    def histories(self, unit_NE: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Return the features [R] of every reader of a user's training items; zeros without any."""
        shape = (len(SCALES), len(self.labels_R))
        likes, dislikes, attention, kernel = (np.zeros(shape) for _ in range(4))
        order_T = np.argsort(self.train.users, kind="stable")
        bounds_U = np.searchsorted(
            self.train.users[order_T], np.arange(self.manifest.num_user_rows + 1)
        )
        for user in np.unique(self.users_R):
            seen_T = order_T[bounds_U[user] : bounds_U[user + 1]]
            asked_A = np.flatnonzero(self.users_R == user)
            cosine_AT = unit_NE[self.items_R[asked_A]] @ unit_NE[self.train.items[seen_T]].T
            liked_T, rest_T = self.likes_T[seen_T], self.train.rest[seen_T]
            for place, scale in enumerate(SCALES):
                weight_AT = np.exp(scale * (cosine_AT - 1))
                likes[place, asked_A] = np.log(LEAST_WEIGHT + weight_AT[:, liked_T].sum(axis=1))
                dislikes[place, asked_A] = np.log(LEAST_WEIGHT + weight_AT[:, ~liked_T].sum(axis=1))
                kernel[place, asked_A] = weight_AT @ rest_T / (weight_AT.sum(axis=1) + LEAST_WEIGHT)
                if liked_T.any():
                    of_likes_A = weight_AT[:, liked_T] @ rest_T[liked_T]
                    attention[place, asked_A] = of_likes_A / weight_AT[:, liked_T].sum(axis=1)
        return {
            "attention over likes (SA-TA)": list(attention),
            "densities of likes": list(likes),
            "densities of dislikes": list(dislikes),
            "densities of likes and of dislikes": [*likes, *dislikes],
            "kernel regression on likes and dislikes": list(kernel),
        }

    def semantic_ids(self, unit_NE: np.ndarray) -> list[np.ndarray]:
        """Return mean residuals [R] of the row's code, and of its user and code, of every level."""
        features, users_T, rest_T = [], self.train.users, self.train.rest
        for code_N in residual_codes(unit_NE, self.num_rows_N > 0).T:
            code_T, code_R, count = code_N[self.train.items], code_N[self.items_R], code_N.max() + 1
            features.append(shrunken_means(code_T, rest_T, code_R, count))
            of_user_T, of_user_R = users_T * count + code_T, self.users_R * count + code_R
            known, place_T = np.unique(of_user_T, return_inverse=True)
            place_R = np.searchsorted(known, of_user_R).clip(max=len(known) - 1)
            mean_R = shrunken_means(place_T, rest_T, place_R, len(known))
            features.append(np.where(known[place_R] == of_user_R, mean_R, 0.0))
        return features

    def show(self, name: str, features: list[np.ndarray]) -> None:
        """Print the AUC of the logit and features [R] on all rows, and on items without training rows."""
        columns_RK = np.stack([self.logit_R, *features], axis=1)
        columns_RK = (columns_RK - columns_RK.mean(axis=0)) / columns_RK.std(axis=0).clip(1e-9)
        score_R = np.zeros(len(self.labels_R))
        for half in (0, 1):
            asked_R = self.half_R == half
            model = LogisticRegression().fit(columns_RK[~asked_R], self.labels_R[~asked_R])
            score_R[asked_R] = model.decision_function(columns_RK[asked_R])
        new_R = self.num_rows_N[self.items_R] == 0
        print(
            f"{name:52} AUC {auc(self.labels_R, score_R):.4f}, items without training rows "
            f"{auc(self.labels_R[new_R], score_R[new_R]):.4f}",
            flush=True,
        )


def shrunken_means(
    group_T: np.ndarray, rest_T: np.ndarray, group_R: np.ndarray, count: int
) -> np.ndarray:
    """Return the mean of `rest_T` over a group, shrunken to zero, of the group of every row [R]."""
    sum_G = np.bincount(group_T, rest_T, count)
    return (sum_G / (np.bincount(group_T, minlength=count) + SHRINKAGE))[group_R]


def residual_codes(unit_NE: np.ndarray, fitted_N: np.ndarray) -> np.ndarray:
    """Return the codes [N, L] of all items; a code is one with all those of the levels before it.

    Args:
        fitted_N: items that the clusters are fitted on.
    """
    rest_NE, path_N, codes = unit_NE.copy(), np.zeros(len(unit_NE), dtype=np.int64), []
    for _ in range(LEVELS):
        clusters = KMeans(CLUSTERS, n_init=1, random_state=0, max_iter=30).fit(rest_NE[fitted_N])
        cluster_N = clusters.predict(rest_NE)
        rest_NE -= clusters.cluster_centers_[cluster_N]
        path_N = np.unique(path_N * CLUSTERS + cluster_N, return_inverse=True)[1]
        codes.append(path_N)
    return np.stack(codes, axis=1)


def main(workspace: Path, run: str, modalities: list[str]) -> None:
    """Print one line for the run alone, and one for every kind of features of every modality."""
    ceiling = Ceiling(workspace, read_manifest(workspace), run)
    ceiling.show("the run alone", [])
    for modality in modalities:
        table = FeatureTable(workspace / "features" / modality)
        unit_NE = unit(table.read(0, table.num_rows).astype(np.float32))
        for name, features in ceiling.histories(unit_NE).items():
            ceiling.show(f"{modality}: {name}", features)
        ceiling.show(f"{modality}: semantic ids", ceiling.semantic_ids(unit_NE))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("run", help="evaluated on validation")
    parser.add_argument("modalities", nargs="+")
    main(**vars(parser.parse_args()))
