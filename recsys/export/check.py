"""Check of an export: the bundle's scores of a sample beside those of `evaluate`, and what tables cost.

In: a bundle in the making and the run's reference. Out: what bundle.json says was measured. An export
that scores otherwise than the run is refused, and one whose smaller tables lose too much AUC.
Shapes: N rows of the sample.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.batch import Batch
from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer
from recsys.errors import UserError
from recsys.export.reference import Reference, columns_of
from recsys.metrics.auc import auc
from recsys.progress import progress_bar
from recsys.schema import Manifest

MOST_DIFFERENCE = 1e-5
"""Greatest difference of a probability, with fp32 tables."""
_FEW_PAIRS = 3
"""Pairs of a positive and a negative that may change places beside: in a sample of a hundred rows, two
pairs are more than the default of max_auc_loss."""


def compare_scores(
    bundle: Bundle, reference: Reference, batches: Iterable[Batch], manifest: Manifest
) -> dict[str, float]:
    """Return rows, positives, greatest and mean difference of probabilities, and both AUCs, of a sample.

    `difference_of_bf16` is the greatest difference to the scores in the precision of the training, where
    that is bf16: a bundle scores in fp32.
    """
    scorer = BundleScorer(bundle)
    ours, theirs, trained, labels = [], [], [], []
    for batch in progress_bar(batches, desc="check", unit="batch"):
        num_rows = batch.num_real
        users = scorer.encode_columns(columns_of(batch, manifest, reference.dense_names), num_rows)
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
        "positives": float(labels_N.sum()),
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


def refuse_differences(
    measured: dict[str, float], precision: str, max_auc_loss: float | None
) -> None:
    """Refuse fp32 tables whose scores differ from the run's, and smaller ones that rank worse.

    Args:
        max_auc_loss: AUC that smaller tables may lose on the sample; None: any. A sample of one class has
            no AUC, and loses none.

    Raises:
        UserError: with the greatest difference, where a NaN differs too; or with the AUC lost.
    """
    num_rows = f"{measured['rows']:,.0f} rows"
    if precision == "fp32":
        greatest = measured["greatest_difference"]
        if not greatest <= MOST_DIFFERENCE:
            raise UserError(
                f"the bundle's probabilities differ from the run's by up to {greatest:.2e} on "
                f"{num_rows}, expected at most {MOST_DIFFERENCE:.0e} with fp32 tables: nothing was "
                f"exported. Evaluate the run again (launch/evaluate.py), and report this with its "
                f"config.yaml"
            )
        return
    lost = measured["auc_full"] - measured["auc_exported"]
    num_pairs = measured["positives"] * (measured["rows"] - measured["positives"])
    if max_auc_loss is not None and lost > max_auc_loss + _FEW_PAIRS / max(num_pairs, 1):
        raise UserError(
            f"precision={precision}: the bundle's AUC is {measured['auc_exported']:.5f} on {num_rows} "
            f"of the test split, {lost:.5f} below the run's, expected at most "
            f"max_auc_loss={max_auc_loss:g}: nothing was exported. Export with precision=fp32, or allow "
            f"a greater loss (null: any)"
        )
