"""How far a metric lies from what chance gives, in standard errors, with users as the unit of luck.

Slow and obvious; nothing of recsys/metrics is used but its shapes: N rows, U users.
"""

import numpy as np


def errors_of_auc(labels_N, scores_N, users_N):
    """(AUC - 0.5) / standard error; the error is of the users' shares of the AUC, added up."""
    labels, scores = np.asarray(labels_N) == 1, np.asarray(scores_N, dtype=np.float64)
    share_N = np.zeros(labels.size)
    for is_positive in (True, False):
        own, others = labels == is_positive, np.sort(scores[labels != is_positive])
        below = np.searchsorted(others, scores[own], side="left")
        upto = np.searchsorted(others, scores[own], side="right")
        beaten = (below + upto) / (2 * others.size)
        share_N[own] = (beaten if is_positive else 1 - beaten) / own.sum()
    auc = share_N[labels].sum()
    count_N = np.where(labels, 1 / labels.sum(), 1 / (~labels).sum())
    users, place_N = np.unique(users_N, return_inverse=True)
    share_U = np.bincount(place_N, weights=share_N - auc * count_N, minlength=users.size)
    return _in_errors(auc - 0.5, np.sqrt((share_U**2).sum()))


def errors_of_gauc(labels_N, scores_N, users_N):
    """(mean of the users' AUC - 0.5) / standard error; users weigh as many as their rows."""
    values, weights = [], []
    for user in np.unique(users_N):
        own = np.asarray(users_N) == user
        positives = np.asarray(scores_N)[own & (np.asarray(labels_N) == 1)]
        negatives = np.asarray(scores_N)[own & (np.asarray(labels_N) == 0)]
        if positives.size and negatives.size:
            difference = positives[:, None] - negatives[None, :]
            values.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
            weights.append(own.sum())
    share_U = np.array(weights) / sum(weights)
    distance_U = np.array(values) - 0.5
    mean = (share_U * distance_U).sum()
    return _in_errors(mean, np.sqrt((share_U**2 * (distance_U - mean) ** 2).sum()))


def errors_of_mean(values_U, chance_U):
    """Mean of the users' distances from chance / standard error."""
    distance_U = np.asarray(values_U) - np.asarray(chance_U)
    return _in_errors(distance_U.mean(), distance_U.std() / np.sqrt(distance_U.size))


def _in_errors(distance, error):
    return 0.0 if abs(distance) < 1e-12 else distance / max(error, 1e-12)
