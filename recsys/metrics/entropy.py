"""Log-loss and normalised entropy of predicted probabilities.

In: labels and probabilities. Out: one float. Called by comparisons and the sums of evaluations.

Accumulation over ranks: log-loss is a sum over rows divided by their number, so add up the sums and
the counts of the ranks; normalised entropy needs the positives as well, and is the quotient of the
totals (a mean of the ranks' own values is something else).
Shapes: N rows.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.metrics.predictions import checked_probabilities

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1: near the spacing of float32 below 1."""


def log_loss(labels_N: ArrayLike, probabilities_N: ArrayLike, *, clip: float = CLIP) -> float:
    """Return the mean binary cross-entropy in nats: -mean(y ln p + (1 - y) ln(1 - p)).

    Edge cases: p is clipped to [clip, 1 - clip], so a confident mistake costs at most -ln(clip)
    (16.1 with the default); nan without rows.
    """
    positive, probabilities = checked_probabilities(labels_N, probabilities_N)
    if not positive.size:
        return float("nan")
    return float(np.mean(row_losses(positive, probabilities, clip=clip)))


def row_losses(
    positive: NDArray[np.bool_], probabilities: NDArray[np.float64], *, clip: float = CLIP
) -> NDArray[np.float64]:
    """Return the cross-entropy of every row [N], clipped as in `log_loss`; inputs are checked."""
    clipped = np.clip(probabilities, clip, 1 - clip)
    return -np.log(np.where(positive, clipped, 1 - clipped))


def normalised_entropy(
    labels_N: ArrayLike, probabilities_N: ArrayLike, *, clip: float = CLIP
) -> float:
    """Return log-loss divided by the entropy of the positive rate: 1 is no better than a constant.

    NE = log_loss / -(r ln r + (1 - r) ln(1 - r)) with r the share of positives
    (He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014).

    Edge cases: nan where one of the two classes is absent (the entropy is 0), or without rows.
    """
    loss = log_loss(labels_N, probabilities_N, clip=clip)
    labels = np.asarray(labels_N)
    rate = float(np.mean(labels == 1)) if labels.size else 0.0
    if rate in (0.0, 1.0):
        return float("nan")
    return loss / float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))
