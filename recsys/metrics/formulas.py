"""Formulas of the registry's metrics over sums of rows: of all rows, or of drawn users.

In: sums over the rows of all ranks (row_sums.py). Out: the metric of every replicate, and intervals.
Called by the metrics registry; equal for any number of ranks but for the rounding of sums. The textbook
functions of arrays, with citations, are in auc.py, precision.py, entropy.py and calibration.py.
Shapes: N rows, B bins, R replicates.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.metrics.calibration import EceReplicates, ece_interval
from recsys.metrics.predictions import ranked_scores
from recsys.metrics.row_sums import RowSums

Formula = Callable[[RowSums], NDArray[np.float64]]
"""Value over the rows [R]; nan where the metric has none, such as a quotient by 0."""


def auc_of(sums: RowSums) -> NDArray[np.float64]:
    """Return won pairs / pairs [R]; nan where one of the classes is absent."""
    num_negatives_R = sums.num_rows - sums.num_positives
    with np.errstate(invalid="ignore"):
        return sums.won_twice / (2 * sums.num_positives * num_negatives_R)


def pr_auc_of(sums: RowSums) -> NDArray[np.float64]:
    """Return the mean precision at the positives [R]; nan without positives."""
    with np.errstate(invalid="ignore"):
        return sums.precision / sums.num_positives


def log_loss_of(sums: RowSums) -> NDArray[np.float64]:
    """Return the mean cross-entropy [R]; nan without rows."""
    with np.errstate(invalid="ignore"):
        return sums.losses / sums.num_rows


def normalised_entropy_of(sums: RowSums) -> NDArray[np.float64]:
    """Return log-loss / entropy of the positive rate [R]; nan where one of the classes is absent."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rate_R = sums.num_positives / sums.num_rows
        entropy_R = -(rate_R * np.log(rate_R) + (1 - rate_R) * np.log1p(-rate_R))
        return log_loss_of(sums) / entropy_R


def calibration_of(sums: RowSums) -> NDArray[np.float64]:
    """Return mean prediction / positive rate [R]; nan without positives."""
    positives_R = sums.num_positives
    ratio_R = np.full(positives_R.shape, np.nan)
    return np.divide(sums.probabilities, positives_R, out=ratio_R, where=positives_R > 0)


def brier_of(sums: RowSums) -> NDArray[np.float64]:
    """Return the mean squared error [R]; nan without rows."""
    with np.errstate(invalid="ignore"):
        return sums.squared_errors / sums.num_rows


def ece_of(sums: RowSums) -> NDArray[np.float64]:
    """Return the expected calibration error [R] in the bins of all rows; nan without rows."""
    with np.errstate(invalid="ignore"):
        return abs(sums.gaps).sum(axis=0) / sums.num_rows


def gauc_of(sums: RowSums) -> NDArray[np.float64]:
    """Return the mean AUC of the users by their rows [R]; nan where no known user has both classes."""
    won_R, rows_R = sums.of_users
    with np.errstate(invalid="ignore"):
        return won_R / rows_R


def ece_bounds(whole: RowSums, drawn: RowSums, level: float) -> tuple[float, float]:
    """Return the interval of the expected calibration error; (nan, nan) without rows.

    Args:
        whole: sums over all rows.
        drawn: sums over drawn users.
    """
    with np.errstate(invalid="ignore"):
        gap_B1, gap_BR = whole.gaps / whole.num_rows, drawn.gaps / drawn.num_rows
        found = EceReplicates(
            estimate=float(ece_of(whole)[0]),
            replicates_R=ece_of(drawn),
            noise_R=abs(gap_BR - gap_B1).sum(axis=0),
        )
    return ece_interval(found, level=level)


def bootstrap_auc(
    labels_N: ArrayLike,
    scores_N: ArrayLike,
    units_N: ArrayLike,
    *,
    num_replicates: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the AUC of each replicate [R], of any scores of this process; equal seeds, equal draws.

    Args:
        units_N: keys as `unit_keys` returns them, or any other whole numbers of 0 or more.

    Edge cases: nan for a replicate that lacks one of the classes; no rows give all nan.
    """
    rows = ranked_scores(labels_N, scores_N, units_N=units_N)
    return auc_of(RowSums(rows, num_replicates=num_replicates, seed=seed, only_order=True))
