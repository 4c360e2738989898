"""Ranking metrics by the definition: one user at a time, ties by trying every order."""

import itertools
import math
from collections.abc import Sequence


def metrics_of_list(relevant: Sequence[int], k: int) -> dict[str, float]:
    """Metrics of one ranked list."""
    total = sum(relevant)
    hits = sum(relevant[:k])
    dcg = sum(rel / math.log2(i + 2) for i, rel in enumerate(relevant[:k]))
    ideal = sum(1 / math.log2(i + 2) for i in range(min(total, k)))
    first = list(relevant).index(1) + 1
    return {
        f"recall@{k}": hits / total,
        f"ndcg@{k}": dcg / ideal,
        f"hit_rate@{k}": float(hits > 0),
        "mrr": 1 / first,
    }


def metrics_over_orders(
    relevant: Sequence[int], scores: Sequence[float], k: int
) -> dict[str, float]:
    """Mean over all orders of the candidates in which no lower score comes before a higher one."""
    candidates = list(zip(scores, relevant, strict=True))
    orders = [
        order
        for order in itertools.permutations(candidates)
        if all(a[0] >= b[0] for a, b in itertools.pairwise(order))
    ]
    lists = [metrics_of_list([rel for _, rel in order], k) for order in orders]
    return {name: sum(m[name] for m in lists) / len(lists) for name in lists[0]}
