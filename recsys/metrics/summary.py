"""All metrics of one set of predictions or of a segment of it, and their intervals.

In: labels, probabilities, user rows of every row once, spread over the ranks. Out: a record of the
metrics of registry.py. Called by evaluations and by the validation during training.
Shapes: N rows of a rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from recsys.metrics.predictions import LabelledScores, labelled_scores
from recsys.metrics.registry import METRICS
from recsys.metrics.row_sums import RowSums
from recsys.schema import is_known


@dataclass(frozen=True, kw_only=True)
class RowMetrics:
    """Metrics over some rows, and the counts that explain those without a value."""

    num_rows: int
    num_positives: int
    num_unknown_user_rows: int = 0
    """Rows of users that are not in the vocabulary: GAUC leaves them out."""
    values: dict[str, float]
    """By name of the registry; nan where a metric has no value."""

    def value(self, name: str) -> float:
        """Return a metric; nan where it is not known, as in files of earlier versions."""
        return self.values.get(name, float("nan"))

    def flat(self) -> dict[str, float]:
        """Return counts and metrics in one dict, as metrics.json and logs hold them."""
        return {
            "num_rows": self.num_rows,
            "num_positives": self.num_positives,
            "num_unknown_user_rows": self.num_unknown_user_rows,
            **self.values,
        }

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> "RowMetrics":
        """Return the record of `flat`; null (no value) becomes nan, other keys are left out."""
        return cls(
            num_rows=int(flat.get("num_rows", 0)),
            num_positives=int(flat.get("num_positives", 0)),
            num_unknown_user_rows=int(flat.get("num_unknown_user_rows", 0)),
            values={
                name: float("nan") if flat[name] is None else float(flat[name])
                for name in METRICS
                if name in flat
            },
        )


def evaluate_predictions(
    *,
    labels_N: ArrayLike,
    probabilities_N: ArrayLike,
    user_rows_N: ArrayLike | None = None,
) -> RowMetrics:
    """Return the metrics over rows of this process alone, in any order.

    Edge cases: a metric that has no value (one class only, no rows, no users for gauc) is nan; the
    counts say why.

    Raises:
        UserError: NaN scores, probabilities outside [0, 1], labels other than 0 and 1, or arrays of
            different shapes.
    """
    return evaluate_rows_of(labelled_scores(labels_N, probabilities_N, user_rows_N))


def evaluate_rows_of(rows: LabelledScores, sums: RowSums | None = None) -> RowMetrics:
    """Return the metrics over the rows of all ranks, the same on every rank.

    Args:
        sums: over these rows, where they are known; None: they are made.
    """
    sums = sums or RowSums(rows)
    users_N = rows.user_row_N
    num_unknown = 0 if users_N is None else int(np.count_nonzero(~is_known(users_N)))
    return RowMetrics(
        num_rows=rows.num_rows,
        num_positives=rows.num_positives,
        num_unknown_user_rows=rows.ranks.total(num_unknown),
        values={name: float(metric.formula(sums)[0]) for name, metric in METRICS.items()},
    )


def too_small(num_rows: int, num_positives: int, *, min_rows: int, min_of_each_class: int) -> str:
    """Return why a segment is too small for its metrics to mean anything; empty where it is not."""
    fewest = min(num_positives, num_rows - num_positives)
    if num_rows >= min_rows and fewest >= min_of_each_class:
        return ""
    return (
        f"too small: {num_rows:,} rows, {num_positives:,} positives; expected {min_rows:,} rows and "
        f"{min_of_each_class:,} of each class"
    )


def intervals(
    whole: RowSums, *, num_replicates: int, level: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the interval of every metric over resampled users, by name; (nan, nan) without rows.

    Args:
        whole: sums over the rows, which have units.
    """
    drawn = RowSums(whole.rows, num_replicates=num_replicates, seed=seed)
    return {name: m.interval(whole, drawn, level=level) for name, m in METRICS.items()}
