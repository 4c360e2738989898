"""Labels and scores as every metric takes them: checked once, float64.

In: any array-likes of one length. Out: numpy arrays the formulas can trust. Called by every metric.
Shapes: N rows, T groups of tied scores.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class LabelledScores:
    """Labels and predicted probabilities of N rows, checked, and whose rows they are."""

    positive_N: NDArray[np.bool_]
    probability_N: NDArray[np.float64]
    user_row_N: NDArray[np.int64] | None
    """0: a user that the vocabulary does not know; None where there are no users."""


def labelled_scores(
    labels_N: ArrayLike, probabilities_N: ArrayLike, user_rows_N: ArrayLike | None
) -> LabelledScores:
    """Return the record that the formulas of the registry take.

    Raises:
        UserError: as `checked_probabilities`; user rows of another shape.
    """
    positive_N, probability_N = checked_probabilities(labels_N, probabilities_N)
    user_row_N = None if user_rows_N is None else np.asarray(user_rows_N)
    if user_row_N is not None and user_row_N.shape != positive_N.shape:
        raise UserError(
            f"user rows {user_row_N.shape}: expected the shape of the labels, {positive_N.shape}"
        )
    return LabelledScores(positive_N=positive_N, probability_N=probability_N, user_row_N=user_row_N)


def group_starts(changes: NDArray[np.bool_], num_rows: int) -> NDArray[np.int64]:
    """Return the first position of each run of equal values [T].

    Args:
        changes: [num_rows - 1], true where a row differs from the one before it.
        num_rows: rows in all; 0 gives no groups.
    """
    starts = np.flatnonzero(changes) + 1
    return np.concatenate([np.zeros(min(num_rows, 1), np.int64), starts])
