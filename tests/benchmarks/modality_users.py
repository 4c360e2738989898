"""Worth of a modality by groups of users: AUC of runs that have it less AUC of runs that lack it.

    python -m tests.benchmarks.modality_users WORKSPACE text --having RUN ... --lacking RUN ...

Runs are evaluated on one split and given in the order of their seeds. Groups are thirds of the split's
users, by their training likes and by how alike these are in the modality (mean cosine of all pairs of
liked items, of users with five likes or more); and rows by the training rows of their item. Intervals:
95 %, paired, over users and seeds. Prints a table in Markdown.
Shapes: R rows of a split, U users, I items, E width.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embedding.features.store import FeatureTable
from recsys.evaluation.rows import ScoredRows, scored_rows
from recsys.schema import Manifest, read_manifest
from recsys.study.differences import paired_difference, seed_scores

REPLICATES = 400
LEAST_LIKES = 5


def read_split(workspace: Path, manifest: Manifest, split: str) -> dict[str, np.ndarray]:
    """Return columns [R] of a split, in the order of its row ids."""
    files = [workspace / "prepared" / name for name in manifest.splits[split].files]
    table = pq.read_table(files, columns=["row_id", "user_row", "item_row", "label"])
    columns = {name: table[name].to_numpy() for name in table.column_names}
    order_R = np.argsort(columns["row_id"], kind="stable")
    return {name: values[order_R] for name, values in columns.items()}


def likeness(
    vectors_IE: np.ndarray, users: np.ndarray, items: np.ndarray, count: int
) -> np.ndarray:
    """Return the mean cosine of all pairs of a user's items [U]; NaN for fewer than five."""
    known_I = (vectors_IE != 0).any(axis=1)
    unit_IE = (vectors_IE - vectors_IE[known_I].mean(axis=0)) * known_I[:, None]
    unit_IE /= np.maximum(np.linalg.norm(unit_IE, axis=1, keepdims=True), 1e-6)
    users, items = users[known_I[items]], items[known_I[items]]
    sums_UE = np.zeros((count, vectors_IE.shape[1]))
    np.add.at(sums_UE, users, unit_IE[items])
    num_U = np.bincount(users, minlength=count)
    pairs_U = np.where(num_U >= LEAST_LIKES, num_U * (num_U - 1.0), np.nan)
    return (np.square(sums_UE).sum(axis=1) - num_U) / pairs_U


def thirds(values_U: np.ndarray, user_R: np.ndarray, unit: str) -> dict[str, np.ndarray]:
    """Return the rows of the lower, middle and upper third of the users of a split, by name."""
    present = np.unique(user_R[(user_R > 0) & ~np.isnan(values_U[user_R])])
    low, high = np.quantile(values_U[present], [1 / 3, 2 / 3])
    with np.errstate(invalid="ignore"):
        value_R = np.where(user_R > 0, values_U[user_R], np.nan)
        return {
            f"{unit}: at most {low:.3g}": value_R <= low,
            f"{unit}: up to {high:.3g}": (value_R > low) & (value_R <= high),
            f"{unit}: above {high:.3g}": value_R > high,
        }


def groups(workspace: Path, modality: str, split: str) -> dict[str, np.ndarray]:
    """Return the rows [R] of every group, in the order of row ids."""
    manifest = read_manifest(workspace)
    train, rows = (read_split(workspace, manifest, name) for name in ("train", split))
    liked = (train["label"] == 1) & (train["user_row"] > 0)
    users, items = train["user_row"][liked], train["item_row"][liked]
    likes_U = np.bincount(users, minlength=manifest.num_user_rows).astype(np.float64)
    table = FeatureTable(workspace / "features" / modality)
    vectors_IE = table.read(0, table.num_rows).astype(np.float64)
    alike_U = likeness(vectors_IE, users, items, manifest.num_user_rows)
    count_I = np.bincount(train["item_row"], minlength=manifest.num_item_rows)
    count_R = count_I[rows["item_row"]]
    return {
        "all rows": np.ones(len(count_R), dtype=bool),
        **thirds(likes_U, rows["user_row"], "likes of the user"),
        **thirds(alike_U, rows["user_row"], f"likeness of the user's likes, {modality}"),
        "item without training rows": count_R == 0,
        "item with 1 to 5": (count_R > 0) & (count_R <= 5),
        "item with more": count_R > 5,
    }


def predictions(workspace: Path, runs: list[str], split: str) -> list[ScoredRows]:
    """Return the predictions of runs, which launch/evaluate.py wrote."""
    files = [workspace / "runs" / run / "eval" / split / "predictions.parquet" for run in runs]
    return [scored_rows(pq.read_table(file)) for file in files]


def part(rows: ScoredRows, chosen_R: np.ndarray) -> ScoredRows:
    """Return the chosen rows, with users numbered anew."""
    return ScoredRows(
        row_id_N=rows.row_id_N[chosen_R],
        label_N=rows.label_N[chosen_R],
        score_N=rows.score_N[chosen_R],
        unit_N=np.unique(rows.unit_N[chosen_R], return_inverse=True)[1],
    )


def main(workspace: Path, modality: str, having: list[str], lacking: list[str], split: str) -> None:
    """Print one line a group."""
    with_it, without = (predictions(workspace, runs, split) for runs in (having, lacking))
    print(
        f"| group | users | rows | AUC without {modality} | with | gained |\n|---|---|---|---|---|---|"
    )
    for name, chosen_R in groups(workspace, modality, split).items():
        sides = [
            seed_scores([part(rows, chosen_R) for rows in side], num_replicates=REPLICATES, seed=0)
            for side in (with_it, without)
        ]
        gained = paired_difference(*sides, seed=0)
        num_users = len(np.unique(with_it[0].unit_N[chosen_R]))
        print(
            f"| {name} | {num_users:,} | {chosen_R.sum():,} | {sides[1].auc_S.mean():.4f} | "
            f"{sides[0].auc_S.mean():.4f} | {gained.mean:+.4f} [{gained.low:+.4f}, {gained.high:+.4f}] |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("modality", help="folder below WORKSPACE/features")
    parser.add_argument("--having", nargs="+", required=True, help="runs that have the modality")
    parser.add_argument("--lacking", nargs="+", required=True, help="runs without it, same seeds")
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    main(given.workspace, given.modality, given.having, given.lacking, given.split)
