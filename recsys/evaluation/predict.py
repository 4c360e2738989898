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
    """Return the user rows, 0 for users whom the vocabulary does not know; None without users."""
    return predictions.user_row if manifest.num_user_rows else None


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
    model = sharded.model
    model.eval()
    ids_3B: list[torch.Tensor] = []
    floats_BC: list[torch.Tensor] = []
    # disable=None: no bar where the output is not a terminal.
    hidden = None if env.is_first and progress is not None else True
    bar = tqdm(batches, desc=progress, unit="batch", leave=False, disable=hidden)
    for batch in bar:
        on_device = batch.to(env.device, non_blocking=True)
        _, scores = model(on_device)
        ids_3B.append(torch.stack([batch.row_id_B, batch.user_row_B, batch.item_row_B]))
        columns = [on_device.labels_B, on_device.weights_B, torch.sigmoid(scores.logits_B.double())]
        stacked_BC = torch.stack([c.double() for c in columns], dim=1)
        floats_BC.append(torch.cat([stacked_BC, scores.weights_BM.double()], dim=1).cpu())
    model.train()
    ids_N3 = gather_rows(lambda: torch.cat(ids_3B, dim=1).T.contiguous(), env.device)
    floats_NC = gather_rows(lambda: torch.cat(floats_BC), env.device)
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
