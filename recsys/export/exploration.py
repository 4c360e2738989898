"""Export of exploration: the posterior of the direct term's weights, by Laplace's approximation.

In: a bundle in the making, and the training split. Out: `explore/` below it, as
recsys/serving/exploration.py describes it. Called by export.py of this folder.
Shapes: B rows of a batch, R retrieval width.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from recsys.batch import Batch
from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer
from recsys.export.reference import columns_of, sample_batches
from recsys.files import write_array
from recsys.job import stage
from recsys.model.ranker import Ranker
from recsys.schema import Manifest
from recsys.serving.exploration import FOLDER


def write_posterior(
    folder: Path, prepared: Path, manifest: Manifest, ranker: Ranker, num_rows: int
) -> None:
    """Write the posterior, estimated from the first rows of split train in their random order.

    Windows that were appended count as more rows of its kind.

    Args:
        num_rows: at most; 0: no posterior is written.
    """
    if not num_rows:
        return
    with stage("posterior") as estimating:
        batches = sample_batches(prepared, manifest, ranker, split="train", num_rows=num_rows)
        learned = [spec for name, spec in manifest.splits.items() if name not in ("valid", "test")]
        count = estimate_posterior(folder, batches, sum(spec.num_rows for spec in learned))
        estimating.done(f"of {count:,} training rows")


@torch.inference_mode()
def estimate_posterior(folder: Path, batches: Iterable[Batch], num_train_rows: int) -> int:
    """Write the posterior of some training rows, and return how many they are.

    The sum over all training rows is that over the given ones, divided by their share.
    """
    bundle = Bundle.open(folder)
    scorer, width = BundleScorer(bundle), bundle.spec.widths.retrieval
    hessian_RR = torch.zeros(width, width, dtype=torch.float64)
    curvature, num_rows = 0.0, 0
    for batch in batches:
        count = batch.num_real
        columns = columns_of(batch, bundle.spec.manifest, bundle.spec.dense_names)
        users = scorer.encode_columns(columns, count)
        rows_B = batch.item_row_B[:count]
        logits_B, _ = scorer.score(users, torch.arange(count), rows_B)
        p_B = torch.sigmoid(logits_B.double())
        curvature_B = p_B * (1 - p_B)
        curvature += float(curvature_B.sum())
        num_rows += count
        user_BR = scorer.retrieval(users)
        if user_BR is not None:
            x_BR = (user_BR * bundle.items.take("retrieval", rows_B)).double()
            hessian_RR += (x_BR * curvature_B[:, None]).T @ x_BR
    share = num_rows / max(num_train_rows, 1)
    precision_RR = torch.eye(width, dtype=torch.float64) + hessian_RR / max(share, 1e-12)
    # P = C C^T, so that S = P^-1 = L L^T with L = C^-T.
    factor_RR = torch.linalg.inv(torch.linalg.cholesky(precision_RR)).T
    (folder / FOLDER).mkdir()
    write_array(folder / FOLDER / "factor.npy", factor_RR.numpy().astype(np.float32))
    mean = np.array([curvature / max(num_rows, 1)], np.float32)
    write_array(folder / FOLDER / "curvature.npy", mean)
    return num_rows
