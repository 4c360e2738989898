"""Whether predicted probabilities mean what they say: ratio, Brier score, bins, ECE.

In: labels and probabilities. Out: floats, and the table of bins that reports draw. Called by
summary.py and the reports.

Accumulation over ranks: ratio and Brier score are quotients of sums over rows: add up the sums. The
bins are cut at quantiles of all scores: gather the rows on one rank.
Shapes: N rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.metrics.predictions import checked_probabilities


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Rows whose predictions lie next to each other."""

    num_rows: int
    """Rows of the bin."""
    lowest: float
    """Smallest prediction of the bin."""
    highest: float
    """Largest prediction of the bin."""
    mean_prediction: float
    """What the model says: the mean probability."""
    positive_rate: float
    """What happened: the share of positives."""


def calibration_ratio(labels_N: ArrayLike, probabilities_N: ArrayLike) -> float:
    """Return mean prediction / positive rate: above 1 the model promises too much.

    Edge cases: nan without positives (no rows included).
    """
    positive, probabilities = checked_probabilities(labels_N, probabilities_N)
    num_positives = np.count_nonzero(positive)
    return float(probabilities.sum() / num_positives) if num_positives else float("nan")


def brier_score(labels_N: ArrayLike, probabilities_N: ArrayLike) -> float:
    """Return mean((p - y)^2) (Brier, Monthly Weather Review 78, 1950); nan without rows."""
    positive, probabilities = checked_probabilities(labels_N, probabilities_N)
    return float(np.mean((probabilities - positive) ** 2)) if positive.size else float("nan")


def calibration_bins(
    labels_N: ArrayLike, probabilities_N: ArrayLike, *, num_bins: int = 10
) -> list[CalibrationBin]:
    """Return bins of about equal size in the order of the predictions (deciles by default).

    Edge cases: equal predictions share a bin, whatever the order of the rows, so there may be fewer
    and larger bins than asked for; no rows give no bins.

    Raises:
        UserError: num_bins below 1.
    """
    if num_bins < 1:
        raise UserError(f"num_bins={num_bins}: expected at least 1")
    positive, probabilities = checked_probabilities(labels_N, probabilities_N)
    if not positive.size:
        return []
    order = np.argsort(probabilities, kind="stable")
    positive, probabilities = positive[order], probabilities[order]
    last = _last_of_bins(probabilities, num_bins)
    ends = np.searchsorted(probabilities, last, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    rows = ends - starts
    predictions = np.add.reduceat(probabilities, starts) / rows
    positives = np.add.reduceat(positive, starts, dtype=np.int64) / rows
    return [
        CalibrationBin(
            num_rows=int(rows[i]),
            lowest=float(probabilities[starts[i]]),
            highest=float(probabilities[ends[i] - 1]),
            mean_prediction=float(predictions[i]),
            positive_rate=float(positives[i]),
        )
        for i in range(len(ends))
    ]


def bin_of_rows(probabilities_N: NDArray[np.float64], *, num_bins: int = 10) -> NDArray[np.int64]:
    """Return the number of each row's bin [N], of those that `calibration_bins` makes."""
    last = _last_of_bins(np.sort(probabilities_N, kind="stable"), num_bins)
    return np.searchsorted(last, probabilities_N, side="left")


def _last_of_bins(sorted_N: NDArray[np.float64], num_bins: int) -> NDArray[np.float64]:
    """Return the largest prediction of every bin; a bin ends with what ties at k N / num_bins."""
    cuts = np.arange(1, num_bins + 1) * sorted_N.size // num_bins
    return np.unique(sorted_N[cuts[cuts > 0] - 1])


def expected_calibration_error(
    labels_N: ArrayLike, probabilities_N: ArrayLike, *, num_bins: int = 10
) -> float:
    """Return the mean distance of prediction and positive rate over bins, weighted by rows.

    ECE = sum_b n_b / N |mean prediction_b - positive rate_b| over `calibration_bins`
    (Naeini et al., AAAI 2015; bins of equal size instead of equal width, since click probabilities
    crowd near 0). Nan without rows.
    """
    bins = calibration_bins(labels_N, probabilities_N, num_bins=num_bins)
    num_rows = sum(b.num_rows for b in bins)
    gap = sum(b.num_rows * abs(b.mean_prediction - b.positive_rate) for b in bins)
    return gap / num_rows if num_rows else float("nan")
