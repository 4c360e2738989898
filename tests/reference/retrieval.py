"""Recall@k and MRR, slow and obvious: every order of the candidates that tie is tried."""

import itertools
import math

import numpy as np


def ranks_in_every_order(scores: list[float], target: int, ignored: set[int]) -> list[int]:
    """The target's rank in each order of the candidates that respects their scores."""
    left = [i for i in range(len(scores)) if i not in ignored]
    ranks = []
    for order in itertools.permutations(left):
        values = [scores[i] for i in order]
        if values == sorted(values, reverse=True):
            ranks.append(order.index(target) + 1)
    return ranks


def recall_and_mrr(scores, targets, ignored, k: int) -> tuple[float, float]:
    """The mean over queries of the mean over orders."""
    recalls, reciprocals = [], []
    for row, target, apart in zip(scores, targets, ignored, strict=True):
        ranks = ranks_in_every_order(row, target, apart)
        recalls.append(np.mean([rank <= k for rank in ranks]))
        reciprocals.append(math.fsum(1 / rank for rank in ranks) / len(ranks))
    return float(np.mean(recalls)), float(np.mean(reciprocals))
