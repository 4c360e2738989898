"""Labels and scores as every metric takes them: checked once, float64, ascending by score.

In: any array-likes of one length, on every rank its own rows. Out: numpy arrays the formulas can trust.
Called by every metric. Shapes: N rows of a rank, T groups of tied scores, K places.
"""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.runtime.distributed_sort import sorted_rows
from recsys.runtime.ranks import ALONE, Ranks


class NanScoresError(UserError):
    """Scores that are NaN."""


def checked_predictions(
    labels_N: ArrayLike, scores_N: ArrayLike, ranks: Ranks = ALONE
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return labels as booleans and scores as float64.

    Args:
        ranks: that each have other rows and all call this.

    Raises:
        UserError: shapes differ or are not [N]; labels other than 0 and 1; scores that are NaN,
            with their count over the ranks (infinite scores are kept: they rank).
    """
    labels = np.asarray(labels_N)
    scores = np.asarray(scores_N, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(
            f"labels {labels.shape} and scores {scores.shape}: expected two arrays of one shape [N]"
        )
    positive = labels == 1
    num_odd = labels.size - np.count_nonzero(positive) - np.count_nonzero(labels == 0)
    counts = np.array([num_odd, np.count_nonzero(np.isnan(scores)), scores.size])
    num_odd, num_nan, num_rows = ranks.total(counts).tolist()
    if num_odd:
        raise UserError(f"{num_odd} of {num_rows} labels are neither 0 nor 1")
    if num_nan:
        raise NanScoresError(
            f"{num_nan} of {num_rows} scores are NaN: the model diverged, or its inputs hold NaN"
        )
    return positive, scores


def checked_probabilities(
    labels_N: ArrayLike, probabilities_N: ArrayLike, ranks: Ranks = ALONE
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Like `checked_predictions`, for scores that must be probabilities.

    Raises:
        UserError: additionally, where a probability is outside [0, 1], with the count and range on
            this rank.
    """
    positive, probabilities = checked_predictions(labels_N, probabilities_N, ranks)
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        raise UserError(
            f"{np.count_nonzero(outside)} of {probabilities.size} probabilities lie outside "
            f"[0, 1] ({probabilities.min():g} to {probabilities.max():g}): are these logits?"
        )
    return positive, probabilities


@dataclass(frozen=True, kw_only=True)
class LabelledScores:
    """Checked rows of one rank, ascending by score; the ranks' ranges of scores follow each other.

    Rows of equal scores are on one rank. One process alone has all rows.
    """

    positive_N: NDArray[np.bool_]
    probability_N: NDArray[np.float64]
    user_row_N: NDArray[np.integer] | None = None
    """0: a user that the vocabulary does not know; None where there are no users."""
    unit_N: NDArray[np.integer] | None = None
    """Key of what the bootstrap draws (`unit_keys`); None: these rows are not resampled."""
    ranks: Ranks = ALONE

    @functools.cached_property
    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (rows, positives) of the ranks with lower scores [2], and of all ranks [2]."""
        own = np.array([self.positive_N.size, np.count_nonzero(self.positive_N)], np.int64)
        before, total = self.ranks.before_and_total(own)
        return before, total

    @property
    def num_rows(self) -> int:
        """Rows of all ranks."""
        return int(self.counts[1][0])

    @property
    def num_positives(self) -> int:
        """Positives of all ranks."""
        return int(self.counts[1][1])

    def at_places(self, places_K: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores [K] at some places, from 0, of the order of all ranks' rows."""
        own_K = places_K - self.counts[0][0]
        is_here_K = (own_K >= 0) & (own_K < self.positive_N.size)
        found = self.ranks.gather((np.flatnonzero(is_here_K), self.probability_N[own_K[is_here_K]]))
        scores_K = np.zeros(len(places_K))
        for at, values in found:
            scores_K[at] = values
        return scores_K

    def where(self, keep_N: NDArray[np.bool_]) -> "LabelledScores":
        """Return the rows of a segment, given as a mask [N] on every rank."""
        users_N, units_N = self.user_row_N, self.unit_N
        return dataclasses.replace(
            self,
            positive_N=self.positive_N[keep_N],
            probability_N=self.probability_N[keep_N],
            user_row_N=None if users_N is None else users_N[keep_N],
            unit_N=None if units_N is None else units_N[keep_N],
        )


def labelled_scores(
    labels_N: ArrayLike,
    probabilities_N: ArrayLike,
    user_rows_N: ArrayLike | None = None,
    *,
    units_N: ArrayLike | None = None,
    ranks: Ranks = ALONE,
) -> LabelledScores:
    """Return rows in any order, of this rank, as the metrics take them: checked, and sorted by score.

    Args:
        units_N: keys of the bootstrap's units; where all users are known, their rows do.
        ranks: that each have other rows and all call this.

    Raises:
        UserError: as `checked_probabilities`; user rows or units of another shape.
    """
    positive_N, probability_N = checked_probabilities(labels_N, probabilities_N, ranks)
    columns: dict[str, NDArray] = {"positive": positive_N, "score": probability_N}
    given = {"user rows": user_rows_N, "units": None if units_N is user_rows_N else units_N}
    for name, values in given.items():
        if values is not None:
            columns[name] = of_shape(values, positive_N, name)
    are_users = units_N is not None and units_N is user_rows_N
    # Whoever gave the arrays may have no other use of them: large ones are then held once.
    del labels_N, probabilities_N, user_rows_N, units_N, positive_N, probability_N, given, values
    columns = sorted_rows(columns, "score", ranks)
    if are_users:
        columns["units"] = columns["user rows"]
    return _record(columns, ranks)


def ranked_scores(
    labels_N: ArrayLike, scores_N: ArrayLike, *, units_N: ArrayLike | None = None
) -> LabelledScores:
    """Return rows of this process alone, of any scores, as metrics of their order take them.

    Raises:
        UserError: as `checked_predictions`; units of another shape.
    """
    positive_N, score_N = checked_predictions(labels_N, scores_N)
    columns: dict[str, NDArray] = {"positive": positive_N, "score": score_N}
    if units_N is not None:
        columns["units"] = of_shape(units_N, positive_N, "units")
    return _record(sorted_rows(columns, "score"), ALONE)


def _record(columns: dict[str, NDArray], ranks: Ranks) -> LabelledScores:
    """Return the record of columns [N] that are checked and sorted."""
    return LabelledScores(
        positive_N=columns["positive"],
        probability_N=columns["score"],
        user_row_N=columns.get("user rows"),
        unit_N=columns.get("units"),
        ranks=ranks,
    )


def of_shape(values_N: ArrayLike, like_N: NDArray, name: str) -> NDArray:
    """Return an array of the shape of another one [N].

    Raises:
        UserError: it has another shape.
    """
    values = np.asarray(values_N)
    if values.shape != like_N.shape:
        raise UserError(f"{name} {values.shape}: expected the shape of the labels, {like_N.shape}")
    return values


def group_starts(changes: NDArray[np.bool_], num_rows: int) -> NDArray[np.int64]:
    """Return the first position of each run of equal values [T].

    Args:
        changes: [num_rows - 1], true where a row differs from the one before it.
        num_rows: rows in all; 0 gives no groups.
    """
    starts = np.flatnonzero(changes) + 1
    return np.concatenate([np.zeros(min(num_rows, 1), np.int64), starts])
