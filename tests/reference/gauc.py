"""GAUC by the definition: users one by one, pairs one by one."""

from collections.abc import Sequence


def auc_by_pairs(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Compare every positive with every negative."""
    won = 0.0
    num_pairs = 0
    for label, score in zip(labels, scores, strict=True):
        for other_label, other_score in zip(labels, scores, strict=True):
            if label == 1 and other_label == 0:
                num_pairs += 1
                won += 1.0 if score > other_score else 0.5 if score == other_score else 0.0
    return won / num_pairs if num_pairs else float("nan")


def gauc_by_users(labels: Sequence[int], scores: Sequence[float], users: Sequence[int]) -> float:
    """Average the users' AUCs by their rows; without the unknown user 0 and users of one class."""
    total = 0.0
    num_rows = 0
    for user in sorted(set(users) - {0}):
        rows = [n for n, other in enumerate(users) if other == user]
        user_labels = [labels[n] for n in rows]
        if 0 in user_labels and 1 in user_labels:
            total += len(rows) * auc_by_pairs(user_labels, [scores[n] for n in rows])
            num_rows += len(rows)
    return total / num_rows if num_rows else float("nan")
