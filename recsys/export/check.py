"""Check of an export: the bundle's scores of a sample beside those of `evaluate`, and what tables cost.

In: a bundle in the making and the run's reference. Out: what bundle.json says was measured. An export
that scores otherwise than the run is refused.
Shapes: N rows of the sample.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from recsys.batch import Batch
from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer
from recsys.errors import UserError
from recsys.export.reference import Reference, columns_of
from recsys.metrics.auc import auc
from recsys.schema import Manifest

MOST_DIFFERENCE = 1e-5
"""Greatest difference of a probability, with fp32 tables."""


def compare_scores(
    bundle: Bundle, reference: Reference, batches: Iterable[Batch], manifest: Manifest
) -> dict[str, float]:
    """Return rows, greatest and mean difference of probabilities, and both AUCs, of a sample.

    `difference_of_bf16` is the greatest difference to the scores in the precision of the training, where
    that is bf16: a bundle scores in fp32.
    """
    scorer = BundleScorer(bundle)
    ours, theirs, trained, labels = [], [], [], []
    for batch in tqdm(batches, desc="check", unit="batch", leave=False, disable=None):
        num_rows = batch.num_real
        users = scorer.encode_columns(columns_of(batch, manifest), num_rows)
        rows = torch.arange(num_rows)
        logits_B, _ = scorer.score(users, rows, batch.item_row_B[:num_rows])
        ours.append(_probabilities(logits_B))
        theirs.append(_probabilities(reference.logits(batch)))
        if reference.is_bf16:
            trained.append(_probabilities(reference.logits(batch, own_precision=True)))
        labels.append(batch.labels_B[:num_rows].numpy())
    ours_N, theirs_N, labels_N = (np.concatenate(part) for part in (ours, theirs, labels))
    difference_N = np.abs(ours_N - theirs_N)
    measured = {
        "rows": float(len(labels_N)),
        "greatest_difference": float(difference_N.max()),
        "mean_difference": float(difference_N.mean()),
        "auc_full": auc(labels_N, theirs_N),
        "auc_exported": auc(labels_N, ours_N),
    }
    if trained:
        difference = np.abs(ours_N - np.concatenate(trained)).max()
        measured["difference_of_bf16"] = float(difference)
    return measured


def _probabilities(logits_B: torch.Tensor) -> NDArray[np.float64]:
    return torch.sigmoid(logits_B.double()).numpy()


def refuse_differences(measured: dict[str, float], precision: str) -> None:
    """Refuse a bundle of fp32 tables whose scores differ from the run's.

    Raises:
        UserError: with the greatest difference; a NaN differs too.
    """
    greatest = measured["greatest_difference"]
    if precision == "fp32" and not greatest <= MOST_DIFFERENCE:
        raise UserError(
            f"the bundle's probabilities differ from the run's by up to {greatest:.2e} on "
            f"{measured['rows']:,.0f} rows, expected at most {MOST_DIFFERENCE:.0e} with fp32 tables: "
            f"nothing was exported. Evaluate the run again (launch/evaluate.py), and report this with "
            f"its config.yaml"
        )
