"""The metrics registry: one record per metric, which summaries, intervals, tables and pages read.

A new metric has its formula over sums in formulas.py, an entry here, and a test. Metrics of ranked lists
of candidates are in ranking.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from recsys.metrics.bootstrap import interval
from recsys.metrics.formulas import (
    Formula,
    auc_of,
    brier_of,
    calibration_of,
    ece_bounds,
    ece_of,
    gauc_of,
    log_loss_of,
    normalised_entropy_of,
    pr_auc_of,
)
from recsys.metrics.row_sums import RowSums


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of predicted probabilities."""

    name: str
    """Key in metrics.json and in logs."""
    label: str
    """Heading of tables."""
    meaning: str
    """One line for readers of the report."""
    direction: Literal[1, 0, -1]
    """1: larger is better; -1: smaller is better; 0: nearer to 1 is better."""
    formula: Formula
    """Value over all rows, and over every resampled set of users; nan where the metric has none."""
    bounds: Callable[[RowSums, RowSums, float], tuple[float, float]] | None = None
    """Interval from sums over all rows, sums over drawn users and the level, where it is not the
    percentile interval of the replicates."""

    def interval(self, whole: RowSums, drawn: RowSums, *, level: float) -> tuple[float, float]:
        """Return the interval that holds `level` of the resampled sets of users."""
        if self.bounds is not None:
            return self.bounds(whole, drawn, level)
        return interval(self.formula(drawn), level=level)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="auc",
            label="AUC",
            meaning="a positive scores above a negative, over all pairs; 0.5 is chance",
            direction=1,
            formula=auc_of,
        ),
        Metric(
            name="pr_auc",
            label="PR-AUC",
            meaning="average precision; chance is the share of positives",
            direction=1,
            formula=pr_auc_of,
        ),
        Metric(
            name="log_loss",
            label="log-loss (BCE)",
            meaning="mean cross-entropy of the probabilities; smaller is better",
            direction=-1,
            formula=log_loss_of,
        ),
        Metric(
            name="gauc",
            label="GAUC",
            meaning="AUC within each user's own rows, averaged by rows",
            direction=1,
            formula=gauc_of,
        ),
        Metric(
            name="normalised_entropy",
            label="normalised entropy",
            meaning="log-loss against a constant prediction; 1 is no better",
            direction=-1,
            formula=normalised_entropy_of,
        ),
        Metric(
            name="calibration",
            label="calibration",
            meaning="mean prediction / share of positives; 1 is right",
            direction=0,
            formula=calibration_of,
        ),
        Metric(
            name="brier",
            label="Brier score",
            meaning="mean squared error of the probabilities; smaller is better",
            direction=-1,
            formula=brier_of,
        ),
        Metric(
            name="ece",
            label="ECE",
            meaning="mean distance of prediction and outcome over tenths; smaller is better",
            direction=-1,
            formula=ece_of,
            bounds=ece_bounds,
        ),
    )
}
"""Metrics by name, in the order in which they are shown."""
