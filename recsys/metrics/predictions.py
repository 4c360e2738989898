"""Labels and scores as every metric takes them: checked once, float64.

In: any array-likes of one length. Out: numpy arrays the formulas can trust. Called by every metric.
Shapes: N rows.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError


class NanScoresError(UserError):
    """Scores that are NaN."""


def checked_predictions(
    labels_N: ArrayLike, scores_N: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return labels as booleans and scores as float64.

    Raises:
        UserError: shapes differ or are not [N]; labels other than 0 and 1; scores that are NaN,
            with their count (infinite scores are kept: they rank).
    """
    labels = np.asarray(labels_N)
    scores = np.asarray(scores_N, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(
            f"labels {labels.shape} and scores {scores.shape}: expected two arrays of one shape [N]"
        )
    positive = labels == 1
    num_odd = labels.size - np.count_nonzero(positive) - np.count_nonzero(labels == 0)
    if num_odd:
        raise UserError(f"{num_odd} of {labels.size} labels are neither 0 nor 1")
    num_nan = np.count_nonzero(np.isnan(scores))
    if num_nan:
        raise NanScoresError(
            f"{num_nan} of {scores.size} scores are NaN: the model diverged, or its inputs hold NaN"
        )
    return positive, scores


def checked_probabilities(
    labels_N: ArrayLike, probabilities_N: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Like `checked_predictions`, for scores that must be probabilities.

    Raises:
        UserError: additionally, where a probability is outside [0, 1], with the count and range.
    """
    positive, probabilities = checked_predictions(labels_N, probabilities_N)
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        raise UserError(
            f"{np.count_nonzero(outside)} of {probabilities.size} probabilities lie outside "
            f"[0, 1] ({probabilities.min():g} to {probabilities.max():g}): are these logits?"
        )
    return positive, probabilities
