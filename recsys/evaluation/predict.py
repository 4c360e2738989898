"""Scores of a whole split: every row exactly once, on the rank that scored it.

Called by the training loop (validation) and by launch/evaluate.py. Shapes: N rows of a rank,
B rows of a batch, M modalities.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from recsys.batch import Batch
from recsys.metrics.predictions import NanScoresError
from recsys.progress import progress_bar
from recsys.runtime.distributed_sort import sorted_rows
from recsys.runtime.env import Env
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import Manifest
from recsys.sharding.apply import ShardedRanker


@dataclass
class Predictions:
    """Per-row outcome of a pass over a split: the rows of one rank."""

    row_id: np.ndarray
    """int64 [N]."""
    user_row: np.ndarray
    """int64 [N], 0 for unknown users and where there are no users."""
    item_row: np.ndarray
    """int64 [N], 0 for unknown items and where there are no items."""
    label: np.ndarray
    """uint8 [N], 0 or 1."""
    score: np.ndarray
    """float64 [N], predicted probability."""
    weights: np.ndarray
    """float32 [N, M] modality weights."""

    def take(self, order: np.ndarray) -> "Predictions":
        """Return the rows in another order [N]."""
        return Predictions(**{name: values[order] for name, values in self.columns().items()})

    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays [N, ...] by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def emptied(self) -> dict[str, np.ndarray]:
        """Return the arrays [N, ...] by name; the record is left with none of the rows.

        Whoever sorts or sends them then holds each of them once.
        """
        columns = self.columns()
        for name, values in columns.items():
            setattr(self, name, values[:0].copy())
        return columns


def by_score(predictions: Predictions, ranks: Ranks = ALONE) -> Predictions:
    """Return this rank's range of the rows of all ranks, ascending by score; equal scores on one rank.

    Args:
        predictions: rows of this rank in any order, of which the record is emptied.

    Raises:
        UserError: NaN scores, with their count.
    """
    counts = np.array([np.count_nonzero(np.isnan(predictions.score)), len(predictions.score)])
    num_nan, num_rows = ranks.total(counts).tolist()
    if num_nan:
        raise NanScoresError(
            f"{num_nan:,} of {num_rows:,} scores are NaN: the model diverged, or its inputs hold NaN"
        )
    return Predictions(**sorted_rows(predictions.emptied(), "score", ranks))


def users_of(predictions: Predictions, manifest: Manifest) -> np.ndarray | None:
    """Return the user rows [N], 0 for users whom the vocabulary does not know; None without users."""
    return predictions.user_row if manifest.num_user_rows else None


class ScoredBatches:
    """Scores of this rank's batches so far, kept in host memory."""

    def __init__(self) -> None:
        self.parts: list[Predictions] = []

    def score(self, sharded: ShardedRanker, batch: Batch) -> None:
        """Score a batch that is on the model's device; every rank scores one at the same time."""
        self.parts.append(scored(sharded, batch))

    def whole(self) -> Predictions:
        """Return the rows of all batches of this rank."""
        ids, label, score = np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0)
        empty = Predictions(ids, ids, ids, label, score, weights=np.zeros((0, 0), np.float32))
        columns = [part.columns() for part in self.parts or [empty]]
        self.parts = []
        return Predictions(**{
            name: np.concatenate([part.pop(name) for part in columns]) for name in list(columns[0])
        })


def scored(sharded: ShardedRanker, batch: Batch) -> Predictions:
    """Return the predictions of a batch that is on the model's device, without padding.

    Every rank scores one at the same time.
    """
    _, scores = sharded.model(batch)
    ids_3B = torch.stack([batch.row_id_B, batch.user_row_B, batch.item_row_B]).cpu().numpy()
    columns = [batch.labels_B.double(), torch.sigmoid(scores.logits_B.double())]
    stacked_B2 = torch.stack(columns, dim=1)
    floats_BC = torch.cat([stacked_B2, scores.weights_BM.double()], dim=1).cpu().numpy()
    real = slice(0, batch.num_real)
    return Predictions(
        row_id=ids_3B[0, real],
        user_row=ids_3B[1, real],
        item_row=ids_3B[2, real],
        label=floats_BC[real, 0].astype(np.uint8),
        score=floats_BC[real, 1].copy(),
        weights=floats_BC[real, 2:].astype(np.float32),
    )


@torch.no_grad()
def predict(
    sharded: ShardedRanker, batches: Iterable[Batch], env: Env, *, progress: str | None = None
) -> Predictions:
    """Score all batches; return the rows of this rank, without padding.

    All ranks must see the same number of equally sized batches (the loader's contract).

    Args:
        progress: text of a progress bar on rank 0; None for no bar.
    """
    sharded.model.eval()
    scored = ScoredBatches()
    is_shown = env.is_first and progress is not None
    for batch in progress_bar(batches, desc=progress or "", unit="batch", is_shown=is_shown):
        mapped = sharded.id_maps.mapped(batch)
        scored.score(sharded, mapped.to(env.device, non_blocking=True))
    sharded.model.train()
    return scored.whole()
