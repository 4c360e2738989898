"""All metrics of one set of predictions, of a segment of it, and how they compare with another set.

In: labels, probabilities, user rows of every row once (gathered from all ranks). Out: one flat
dict, ready for metrics.json. Called by launch/evaluate.py and the training loop's evaluation.
Shapes: N rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.metrics.auc import auc, gauc
from recsys.metrics.bootstrap import (
    BETTER,
    Difference,
    bootstrap_ece,
    bootstrap_metrics,
    draw_units,
    ece_interval,
    interval,
    paired_difference,
)
from recsys.metrics.calibration import (
    brier_score,
    calibration_ratio,
    expected_calibration_error,
)
from recsys.metrics.entropy import log_loss, normalised_entropy
from recsys.metrics.precision import pr_auc
from recsys.metrics.predictions import checked_probabilities
from recsys.schema import is_known


def evaluate_predictions(
    *,
    labels_N: ArrayLike,
    probabilities_N: ArrayLike,
    user_rows_N: ArrayLike | None = None,
    segment_N: ArrayLike | None = None,
) -> dict[str, float]:
    """Return the metrics over all rows, or over the rows where `segment_N` is true.

    Keys: num_rows, num_positives, num_unknown_user_rows (rows of users that are not in the vocabulary:
    gauc leaves them out), auc, pr_auc, log_loss, gauc, normalised_entropy, calibration (mean
    prediction / positive rate), brier, ece. Rows that come sorted by probability are not sorted again.

    Edge cases: a metric that has no value (one class only, no rows, no users for gauc) is nan; the
    counts say why.

    Raises:
        UserError: NaN scores, probabilities outside [0, 1], labels other than 0 and 1 (in any row,
            also outside the segment), or arrays of different shapes.
    """
    labels, probabilities = checked_probabilities(labels_N, probabilities_N)
    users = None if user_rows_N is None else np.asarray(user_rows_N)
    for name, array in (("user rows", users), ("segment", segment_N)):
        if array is not None and np.shape(array) != labels.shape:
            raise UserError(
                f"{name} {np.shape(array)}: expected the shape of the labels, {labels.shape}"
            )
    if segment_N is not None:
        keep = np.asarray(segment_N)
        if keep.dtype != np.bool_:
            raise UserError(f"segment of {keep.dtype}: expected one boolean per row")
        labels, probabilities = labels[keep], probabilities[keep]
        users = None if users is None else users[keep]
    return {
        "num_rows": labels.size,
        "num_positives": int(np.count_nonzero(labels)),
        "num_unknown_user_rows": 0 if users is None else int(np.count_nonzero(~is_known(users))),
        "auc": auc(labels, probabilities),
        "pr_auc": pr_auc(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "gauc": float("nan") if users is None else gauc(labels, probabilities, users),
        "normalised_entropy": normalised_entropy(labels, probabilities),
        "calibration": calibration_ratio(labels, probabilities),
        "brier": brier_score(labels, probabilities),
        "ece": expected_calibration_error(labels, probabilities),
    }


def too_small(metrics: Mapping[str, float], *, min_rows: int, min_of_each_class: int) -> str:
    """Return why a segment is too small for its metrics to mean anything; empty where it is not."""
    num_rows, num_positives = int(metrics["num_rows"]), int(metrics["num_positives"])
    fewest = min(num_positives, num_rows - num_positives)
    if num_rows >= min_rows and fewest >= min_of_each_class:
        return ""
    return (
        f"too small: {num_rows:,} rows, {num_positives:,} positives; expected {min_rows:,} rows and "
        f"{min_of_each_class:,} of each class"
    )


def intervals(
    *,
    labels_N: ArrayLike,
    probabilities_N: ArrayLike,
    user_rows_N: ArrayLike | None,
    units_N: NDArray[np.int64],
    num_replicates: int,
    level: float,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """Return the interval of every headline metric over resampled units, by name."""
    draws_UR = _draws(units_N, num_replicates, rng)
    shared: dict[str, Any] = {"units_N": units_N, "draws_UR": draws_UR}
    names = tuple(name for name in BETTER if name != "ece")
    replicates = bootstrap_metrics(labels_N, probabilities_N, user_rows_N, **shared, names=names)
    found = {name: interval(values, level=level) for name, values in replicates.items()}
    ece = ece_interval(bootstrap_ece(labels_N, probabilities_N, **shared), level=level)
    return found | {"ece": ece}


def compare_predictions(
    *,
    labels_N: ArrayLike,
    first_N: ArrayLike,
    second_N: ArrayLike,
    user_rows_N: ArrayLike | None,
    units_N: NDArray[np.int64],
    num_replicates: int,
    level: float,
    rng: np.random.Generator,
    names: tuple[str, ...] = tuple(BETTER),
) -> dict[str, Difference]:
    """Return how the metrics `names` differ between two runs' probabilities of the same rows.

    Both are judged on the same drawn units, so the luck they share cancels.
    """
    draws_UR = _draws(units_N, num_replicates, rng)
    values, replicates = [], []
    for probabilities_N in (first_N, second_N):
        values.append(
            evaluate_predictions(
                labels_N=labels_N, probabilities_N=probabilities_N, user_rows_N=user_rows_N
            )
        )
        replicates.append(
            bootstrap_metrics(
                labels_N,
                probabilities_N,
                user_rows_N,
                units_N=units_N,
                draws_UR=draws_UR,
                names=names,
            )
        )
    return {
        name: paired_difference(
            name,
            (values[0][name], values[1][name]),
            (replicates[0][name], replicates[1][name]),
            level=level,
        )
        for name in names
    }


def _draws(
    units_N: NDArray[np.int64], num_replicates: int, rng: np.random.Generator
) -> NDArray[np.uint16]:
    return draw_units(int(units_N.max()) + 1 if units_N.size else 0, num_replicates, rng)
