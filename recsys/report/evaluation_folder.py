"""The folder of an evaluation: everything rank 0 makes of the predictions, put together and written.

In: predictions of a split, of candidates, of shuffled inputs; prepared data and, on the drawn world,
its truth. Out: runs/<name>/eval/<split>/ with metrics.json, predictions.parquet and report.html.
Called by launch/evaluate.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding.features.catalogue import Catalogue
from embedding.features.store import FeatureTable
from recsys.data.dataset import Dataset
from recsys.errors import UserError
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.evaluate import (
    EvaluateConfig,
    evaluate_candidates,
    evaluate_importance,
    evaluate_rows,
    planted_shares,
)
from recsys.evaluation.predict import Predictions, by_score, users_of
from recsys.evaluation.rows import write_predictions
from recsys.evaluation.segments import ItemCounts, read_by_row_id, segments
from recsys.files import PREPARE_AGAIN, new_folder, read_array, reading, write_json
from recsys.metrics.oracle import oracle_metrics, true_probabilities
from recsys.report.evaluation_page import DataCounts, Recommendation, SampleUser, write_report
from recsys.report.items import read_items
from recsys.schema import Manifest, SplitSpec, is_known

SHOWN_ITEMS = 8
"""Liked and recommended items of a sample user."""


class Evaluation:
    """What rank 0 makes of the predictions: metrics, and what the page shows besides."""

    def __init__(
        self,
        workspace: Path,
        manifest: Manifest,
        dataset: Dataset,
        config: EvaluateConfig,
        tables: Mapping[str, FeatureTable],
    ):
        """Args: dataset: the split; tables: item vectors by modality, as the model reads them."""
        self.workspace = workspace
        self.manifest = manifest
        self.dataset = dataset
        self.config = config
        self.tables = tables
        self.has_vector = {name: table.has_vector() for name, table in tables.items()}
        self.train_count = dataset.train_count()
        drawn_count = dataset.drawn_count()
        self.item_counts = (
            None
            if self.train_count is None or drawn_count is None
            else ItemCounts(train_count_I=self.train_count, drawn_count_I=drawn_count)
        )
        self.metrics: dict[str, Any] = {}
        self.names: list[str] = []
        self.users: list[SampleUser] = []
        self.planted: dict[str, tuple[NDArray, NDArray, float]] = {}

    def take(self, predictions: Predictions, names: list[str]) -> None:
        """Evaluate the rows of the split.

        Raises:
            UserError: not every row was scored, once.
        """
        num_rows = self.dataset.num_rows
        if len(predictions.row_id) != num_rows or not num_rows:
            raise UserError(
                f"{len(predictions.row_id):,} rows were scored and the manifest counts {num_rows:,} "
                f"in {self.config.split!r}: "
                + (
                    f"the files under {self.dataset.prepared} do not belong together; run "
                    f"launch/prepare.py again"
                    if num_rows
                    else "there is nothing to evaluate; choose another split="
                )
            )
        self.predictions, self.names = by_score(predictions), names
        self.unknown_users_N = self.unknown_users(self.predictions)
        self.metrics = evaluate_rows(
            self.predictions,
            segments=segments(
                prepared=self.dataset.prepared,
                manifest=self.manifest,
                split=self.config.split,
                row_id_N=self.predictions.row_id,
                user_row_N=self.predictions.user_row,
                item_row_N=self.predictions.item_row,
                item_counts=self.item_counts,
                has_vector=self.has_vector,
                config=self.config.segments,
            ),
            item_counts=self.item_counts,
            user_rows_N=users_of(self.predictions, self.manifest),
            unknown_users_N=self.unknown_users_N,
            modality_names=names,
            config=self.config,
        )
        truth = self.workspace / "truth"
        self.true_N = true_probabilities(truth / "probabilities.parquet", self.predictions.row_id)
        if self.true_N is not None:
            self.metrics["oracle"] = oracle_metrics(
                self.true_N,
                labels_N=self.predictions.label,
                probabilities_N=self.predictions.score,
            )
        if self.manifest.num_user_rows and self.predictions.weights.shape[1]:
            ids = self.user_ids()
            self.planted = planted_shares(self.predictions, names, truth / "users.parquet", ids)
        if self.planted:
            self.metrics["planted"] = {name: r for name, (_, _, r) in self.planted.items()}

    def unknown_users(self, predictions: Predictions) -> NDArray[np.uint64] | None:
        """Return what tells unknown users apart, by row; None where the data does not say."""
        return read_by_row_id(
            self.dataset.prepared,
            self.manifest,
            self.config.split,
            predictions.row_id,
            ["unknown_user"],
        ).get("unknown_user")

    def user_ids(self) -> NDArray:
        """Return the users' ids by row."""
        file = self.dataset.prepared / "users.parquet"
        with reading(file, PREPARE_AGAIN):
            table = pq.read_table(file, columns=["user_id"])
        return table.column(0).to_numpy(zero_copy_only=False)

    def history(self, user: int, end: int) -> NDArray[np.int64]:
        """Return the items a user liked, latest last, as far as `end` reaches."""
        values, offsets = self.dataset.histories()
        start = int(offsets[user])
        return np.asarray(values[start : start + end], np.int64)

    def take_shuffled(
        self, whole: Predictions | None, shuffled: Mapping[tuple[str, str], Predictions]
    ) -> None:
        """Evaluate what each shuffled input costs; nothing where none was asked for."""
        if whole is not None:
            self.metrics["importance"] = evaluate_importance(
                whole,
                shuffled,
                user_rows_N=users_of(whole, self.manifest),
                unknown_users_N=self.unknown_users(whole),
                config=self.config,
            )

    def take_candidates(self, candidates: Candidates | None, scored: Predictions | None) -> None:
        """Evaluate rankings and lists, and choose the users that the page shows."""
        if candidates is None or scored is None:
            return
        assert self.train_count is not None, "candidates are items"
        ends = self.history_ends(candidates)
        histories = {user: self.history(user, end) for user, end in ends.items()}
        found, best = evaluate_candidates(
            candidates,
            scored,
            train_count=self.train_count,
            profile_count_U={
                user: float(self.train_count[items].mean())
                for user, items in histories.items()
                if items.size
            },
            tables=self.tables,
            config=self.config,
        )
        self.metrics |= found
        rng = np.random.default_rng(self.config.seed)
        with_past = [user for user in best if histories.get(user, np.zeros(0)).size] or list(best)
        chosen = rng.permutation(with_past)[: self.config.sample_users].tolist()
        if chosen:
            self.users = self.sample(chosen, candidates, scored, best, histories)

    def history_ends(self, candidates: Candidates) -> dict[int, int]:
        """Return how far each user's past reaches in the circumstances of the candidates."""
        if self.manifest.history is None:
            return {}
        rows = self.dataset.read(0, self.dataset.num_rows)
        if "history_end" not in rows.column_names:
            return {}
        ends = rows.column("history_end").to_numpy()
        users, first = np.unique(candidates.user_row_N, return_index=True)
        of_users = ends[candidates.template_N[first]]
        return dict(zip(users.tolist(), of_users.tolist(), strict=True))

    def sample(
        self,
        chosen: list[int],
        candidates: Candidates,
        scored: Predictions,
        best: dict[int, NDArray[np.int64]],
        histories: dict[int, NDArray[np.int64]],
    ) -> list[SampleUser]:
        """Return users with what they liked and what they are recommended."""
        place = np.empty(len(scored.row_id), dtype=np.int64)
        place[scored.row_id] = np.arange(len(place))
        liked = {u: histories.get(u, np.zeros(0, np.int64))[::-1][:SHOWN_ITEMS] for u in chosen}
        lists = {user: best[user][:SHOWN_ITEMS] for user in chosen}
        shown = np.concatenate([
            *liked.values(),
            *(candidates.item_row_N[pairs] for pairs in lists.values()),
        ])
        catalogue = Catalogue(self.dataset.prepared)
        items = read_items(catalogue, self.manifest, np.unique(shown).tolist())
        ids = self.user_ids()
        shares = self.shares_by_user()
        users = []
        for user in chosen:
            recommended = [
                Recommendation(
                    item=items[int(candidates.item_row_N[pair])],
                    score=float(scored.score[place[pair]]),
                    weights=dict(
                        zip(self.names, scored.weights[place[pair]].tolist(), strict=False)
                    ),
                    is_positive=bool(candidates.relevant_N[pair]),
                )
                for pair in lists[user]
            ]
            users.append(
                SampleUser(
                    user_id=str(ids[user]),
                    num_liked=len(histories.get(user, ())),
                    liked=[items[int(row)] for row in liked[user]],
                    recommended=recommended,
                    planted=shares.get(user, {}),
                )
            )
        return users

    def shares_by_user(self) -> dict[int, dict[str, float]]:
        """Return the planted shares by user row; empty where there is no truth."""
        user_row_N = self.predictions.user_row
        users = np.unique(user_row_N[is_known(user_row_N)])
        return {
            int(user): {name: float(drawn[at]) for name, (drawn, _, _) in self.planted.items()}
            for at, user in enumerate(users)
            if self.planted
        }

    def counts(self) -> DataCounts:
        """Return the data's own statistics."""
        manifest = self.manifest
        facts = {
            f"{name} rows (positive)": f"{split.num_rows:,} ({_share(split)})"
            for name, split in manifest.splits.items()
        }
        if manifest.num_user_rows:
            facts["users"] = f"{manifest.num_user_rows - 1:,}"
        if manifest.num_item_rows:
            facts["items"] = f"{manifest.num_item_rows - 1:,}"
        for name, has_I in self.has_vector.items():
            dim = self.tables[name].dim
            facts[f"items with {name} vector"] = f"{np.count_nonzero(has_I):,}, {dim} numbers each"
        facts["sparse features"] = ", ".join(f.name for f in manifest.features)
        by_user = self.dataset.prepared / "users" / "train_count.npy"
        return DataCounts(
            facts=facts,
            by_item=None if self.train_count is None else np.asarray(self.train_count)[1:],
            by_user=read_array(by_user, PREPARE_AGAIN)[1:] if by_user.is_file() else None,
        )

    def write(self, target: Path, title: str) -> None:
        """Write the folder of the evaluation; it appears whole."""
        with new_folder(target) as beside:
            write_json(beside / "metrics.json", self.metrics)
            predictions = beside / "predictions.parquet"
            write_predictions(
                predictions,
                self.predictions,
                modality_names=self.names,
                prepared=self.dataset.prepared,
                unknown_users_N=self.unknown_users_N,
            )
            write_report(
                beside / "report.html",
                title=title,
                metrics=self.metrics,
                predictions=self.predictions,
                modality_names=self.names,
                level=self.config.bootstrap.level,
                counts=self.counts(),
                users=self.users,
                oracle_scores=self.true_N,
                planted=self.planted,
            )


def _share(split: SplitSpec) -> str:
    return f"{split.num_positives / split.num_rows:.1%}" if split.num_rows else "-"
