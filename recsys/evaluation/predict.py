"""Scores of a whole split: every row exactly once, gathered on rank 0.

Called by the training loop (validation) and by launch/evaluate.py. Shapes: N rows of the split,
B rows of a batch, M modalities.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from recsys.batch import Batch
from recsys.metrics.predictions import NanScoresError
from recsys.runtime.collectives import gather_rows
from recsys.runtime.env import Env
from recsys.schema import Manifest
from recsys.sharding.apply import ShardedRanker


@dataclass
class Predictions:
    """Per-row outcome of a pass over a split, in no particular order."""

    row_id: np.ndarray
    """int64 [N]."""
    user_row: np.ndarray
    """int64 [N], 0 for unknown users and where there are no users."""
    item_row: np.ndarray
    """int64 [N], 0 for unknown items and where there are no items."""
    label: np.ndarray
    """float64 [N], 0 or 1."""
    score: np.ndarray
    """float64 [N], predicted probability."""
    weights: np.ndarray
    """float32 [N, M] modality weights."""

    def take(self, order: np.ndarray) -> "Predictions":
        """Return the rows in another order [N]."""
        return Predictions(**{
            f.name: getattr(self, f.name)[order] for f in dataclasses.fields(self)
        })


def by_score(predictions: Predictions) -> Predictions:
    """Return the rows in the order of their score: metrics then need not sort, segments neither.

    Raises:
        UserError: NaN scores, with their count.
    """
    num_nan = np.count_nonzero(np.isnan(predictions.score))
    if num_nan:
        raise NanScoresError(
            f"{num_nan:,} of {len(predictions.score):,} scores are NaN: the model diverged, or its "
            f"inputs hold NaN"
        )
    return predictions.take(np.argsort(predictions.score, kind="stable"))


def users_of(predictions: Predictions, manifest: Manifest) -> np.ndarray | None:
    """Return the user rows [N], 0 for users whom the vocabulary does not know; None without users."""
    return predictions.user_row if manifest.num_user_rows else None


class ScoredBatches:
    """Scores of this rank's batches so far, kept in host memory: B x (6 + M) numbers a batch."""

    def __init__(self) -> None:
        self.ids_3B: list[torch.Tensor] = []
        self.floats_BC: list[torch.Tensor] = []

    def score(self, sharded: ShardedRanker, batch: Batch) -> None:
        """Score a batch that is on the model's device; every rank scores one at the same time."""
        _, scores = sharded.model(batch)
        self.ids_3B.append(torch.stack([batch.row_id_B, batch.user_row_B, batch.item_row_B]).cpu())
        places_B = torch.arange(len(batch.labels_B), device=batch.labels_B.device)
        is_real_B = places_B < batch.num_real
        columns = [batch.labels_B, is_real_B, torch.sigmoid(scores.logits_B.double())]
        stacked_BC = torch.stack([c.double() for c in columns], dim=1)
        self.floats_BC.append(torch.cat([stacked_BC, scores.weights_BM.double()], dim=1).cpu())

    def gather(self, env: Env) -> Predictions | None:
        """Return the rows of all ranks on rank 0, padding dropped, and None elsewhere."""
        ids_N3 = gather_rows(lambda: torch.cat(self.ids_3B, dim=1).T.contiguous(), env.device)
        floats_NC = gather_rows(lambda: torch.cat(self.floats_BC), env.device)
        if ids_N3 is None or floats_NC is None:
            return None
        real = floats_NC.numpy()[:, 1] > 0
        ids, floats = ids_N3.numpy()[real], floats_NC.numpy()[real]
        return Predictions(
            row_id=ids[:, 0],
            user_row=ids[:, 1],
            item_row=ids[:, 2],
            label=floats[:, 0],
            score=floats[:, 2],
            weights=floats[:, 3:].astype(np.float32),
        )


@torch.no_grad()
def predict(
    sharded: ShardedRanker, batches: Iterable[Batch], env: Env, *, progress: str | None = None
) -> Predictions | None:
    """Score all batches; return the rows of all ranks on rank 0 and None elsewhere.

    All ranks must see the same number of equally sized batches (the loader's contract); padding
    rows are dropped after the gathering.

    Args:
        progress: text of a progress bar on rank 0; None for no bar.
    """
    sharded.model.eval()
    scored = ScoredBatches()
    # disable=None: no bar where the output is not a terminal.
    hidden = None if env.is_first and progress is not None else True
    for batch in tqdm(batches, desc=progress, unit="batch", leave=False, disable=hidden):
        mapped = sharded.id_maps.mapped(batch)
        scored.score(sharded, mapped.to(env.device, non_blocking=True))
    sharded.model.train()
    return scored.gather(env)
