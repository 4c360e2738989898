"""All metrics of one set of predictions, or of a segment of it.

In: labels, probabilities, user rows of every row once (gathered from all ranks). Out: one flat
dict, ready for metrics.json. Called by launch/evaluate.py and the training loop's evaluation.
Shapes: N rows.
"""

import numpy as np
from numpy.typing import ArrayLike

from recsys.metrics.auc import auc, gauc
from recsys.metrics.calibration import (
    brier_score,
    calibration_ratio,
    expected_calibration_error,
)
from recsys.metrics.entropy import log_loss, normalised_entropy
from recsys.metrics.precision import pr_auc
from recsys.metrics.predictions import checked_probabilities


def evaluate_predictions(
    *,
    labels_N: ArrayLike,
    probabilities_N: ArrayLike,
    user_rows_N: ArrayLike | None = None,
    segment_N: ArrayLike | None = None,
) -> dict[str, float]:
    """Return the metrics over all rows, or over the rows where `segment_N` is true.

    Keys: num_rows, num_positives, auc, pr_auc, log_loss, gauc, normalised_entropy, calibration (mean
    prediction / positive rate), brier, ece. Rows that come sorted by probability are not sorted again.

    Edge cases: a metric that has no value (one class only, no rows, no users for gauc) is nan; the
    counts say why.

    Raises:
        ValueError: NaN scores, probabilities outside [0, 1], labels other than 0 and 1 (in any row,
            also outside the segment), or arrays of different shapes.
    """
    labels, probabilities = checked_probabilities(labels_N, probabilities_N)
    users = None if user_rows_N is None else np.asarray(user_rows_N)
    for name, array in (("user rows", users), ("segment", segment_N)):
        if array is not None and np.shape(array) != labels.shape:
            raise ValueError(
                f"{name} {np.shape(array)}: expected the shape of the labels, {labels.shape}"
            )
    if segment_N is not None:
        keep = np.asarray(segment_N)
        if keep.dtype != np.bool_:
            raise ValueError(f"segment of {keep.dtype}: expected one boolean per row")
        labels, probabilities = labels[keep], probabilities[keep]
        users = None if users is None else users[keep]
    return {
        "num_rows": labels.size,
        "num_positives": int(np.count_nonzero(labels)),
        "auc": auc(labels, probabilities),
        "pr_auc": pr_auc(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "gauc": float("nan") if users is None else gauc(labels, probabilities, users),
        "normalised_entropy": normalised_entropy(labels, probabilities),
        "calibration": calibration_ratio(labels, probabilities),
        "brier": brier_score(labels, probabilities),
        "ece": expected_calibration_error(labels, probabilities),
    }
