"""All metrics of one set of predictions or of a segment of it, and their intervals.

In: labels, probabilities, user rows of every row once (gathered from all ranks). Out: a record of the
metrics of registry.py. Called by evaluations and by the validation during training.
Shapes: N rows, U units, R replicates.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.metrics.bootstrap import draw_units
from recsys.metrics.predictions import LabelledScores, labelled_scores
from recsys.metrics.registry import METRICS
from recsys.metrics.resamples import Resamples
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
    segment_N: ArrayLike | None = None,
) -> RowMetrics:
    """Return the metrics over all rows, or over the rows where `segment_N` is true.

    Rows that come sorted by probability are not sorted again.

    Edge cases: a metric that has no value (one class only, no rows, no users for gauc) is nan; the
    counts say why.

    Raises:
        UserError: NaN scores, probabilities outside [0, 1], labels other than 0 and 1 (in any row,
            also outside the segment), or arrays of different shapes.
    """
    return evaluate_rows_of(labelled_scores(labels_N, probabilities_N, user_rows_N), segment_N)


def evaluate_rows_of(rows: LabelledScores, segment_N: ArrayLike | None = None) -> RowMetrics:
    """Return the metrics as `evaluate_predictions`, of rows [N] that are checked already."""
    if segment_N is not None:
        rows = _of_segment(rows, np.asarray(segment_N))
    users_N = rows.user_row_N
    return RowMetrics(
        num_rows=rows.positive_N.size,
        num_positives=int(np.count_nonzero(rows.positive_N)),
        num_unknown_user_rows=(0 if users_N is None else int(np.count_nonzero(~is_known(users_N)))),
        values={name: metric.formula(rows) for name, metric in METRICS.items()},
    )


def _of_segment(rows: LabelledScores, keep_N: NDArray) -> LabelledScores:
    if keep_N.shape != rows.positive_N.shape:
        raise UserError(
            f"segment {keep_N.shape}: expected the shape of the labels, {rows.positive_N.shape}"
        )
    if keep_N.dtype != np.bool_:
        raise UserError(f"segment of {keep_N.dtype}: expected one boolean per row")
    users_N = rows.user_row_N
    return dataclasses.replace(
        rows,
        positive_N=rows.positive_N[keep_N],
        probability_N=rows.probability_N[keep_N],
        user_row_N=None if users_N is None else users_N[keep_N],
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


def bootstrap_metrics(
    rows: LabelledScores,
    *,
    units_N: NDArray[np.int64],
    draws_UR: NDArray[np.uint16],
    names: Iterable[str] = tuple(METRICS),
) -> dict[str, NDArray[np.float64]]:
    """Return the replicates [R] of every metric in `names`.

    Each equals the metric on the rows of the drawn users; for ece the bins stay those of all rows.
    Gauc needs users, and is nan without; it leaves unknown users out.

    Edge cases: nan for a replicate in which the metric has no value; no rows give all nan.

    Raises:
        UserError: units of another shape than the labels.
    """
    resamples = Resamples(rows, units_N=units_N, draws_UR=draws_UR)
    if not rows.positive_N.size:
        return {name: np.full(resamples.num_replicates, np.nan) for name in names}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: METRICS[name].replicates(resamples) for name in names}


def intervals(
    rows: LabelledScores,
    *,
    units_N: NDArray[np.int64],
    num_replicates: int,
    level: float,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """Return the interval of every metric over resampled units, by name; (nan, nan) without rows."""
    num_units = int(units_N.max()) + 1 if units_N.size else 0
    draws_UR = draw_units(num_units, num_replicates, rng)
    resamples = Resamples(rows, units_N=units_N, draws_UR=draws_UR)
    if not rows.positive_N.size:
        return dict.fromkeys(METRICS, (float("nan"), float("nan")))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: m.interval(resamples, level=level) for name, m in METRICS.items()}
