"""Area under the precision-recall curve (average precision).

In: labels and scores. Out: one float. Called by whoever has the rows of one process; evaluations over
ranks count it as AUC (row_sums.py), with what scores more on other ranks.
Shapes: N rows, T groups of tied scores.
"""

import numpy as np
from numpy.typing import ArrayLike

from recsys.metrics.predictions import checked_predictions, group_starts


def pr_auc(labels_N: ArrayLike, scores_N: ArrayLike) -> float:
    """Return the average precision: sum_t (R_t - R_t-1) P_t over thresholds t, the highest first.

    R_t and P_t are recall and precision of the rows that score t or more. No interpolation between
    thresholds, which would flatter (Davis and Goadrich, ICML 2006). A constant score gets the share
    of positives. O(N log N), O(N) where the rows come sorted.

    Edge cases: nan without positives (no rows included); 1 without negatives.
    """
    positive, scores = checked_predictions(labels_N, scores_N)
    num_positives = int(np.count_nonzero(positive))
    if not num_positives:
        return float("nan")
    order = np.argsort(scores, kind="stable")
    scores, positive = scores[order], positive[order]
    starts_T = group_starts(scores[1:] != scores[:-1], scores.size)
    positives_T = np.add.reduceat(positive, starts_T, dtype=np.int64)
    # Ascending: rows and positives that score this much or more.
    rows_above_T = scores.size - starts_T
    positives_above_T = num_positives - (np.cumsum(positives_T) - positives_T)
    return float((positives_T * (positives_above_T / rows_above_T)).sum() / num_positives)
