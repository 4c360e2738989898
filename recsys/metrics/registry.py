"""The metrics registry: one record per metric, which summaries, intervals, tables and pages read.

A new metric has its formula and its resampled formula in the file of its family, an entry here, and a
test. Metrics of ranked lists of candidates are in ranking.py. Shapes: R replicates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys.metrics.auc import auc, auc_replicates, gauc, gauc_replicates
from recsys.metrics.bootstrap import interval
from recsys.metrics.calibration import (
    bootstrap_ece,
    brier_replicates,
    brier_score,
    calibration_ratio,
    calibration_replicates,
    ece_interval,
    expected_calibration_error,
)
from recsys.metrics.entropy import (
    log_loss,
    log_loss_replicates,
    normalised_entropy,
    normalised_entropy_replicates,
)
from recsys.metrics.precision import pr_auc, pr_auc_replicates
from recsys.metrics.predictions import LabelledScores
from recsys.metrics.resamples import Resamples


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
    formula: Callable[[LabelledScores], float]
    """Value over all rows; nan where the metric has none."""
    replicates: Callable[[Resamples], NDArray[np.float64]]
    """Value over every resampled set of users [R]; there is at least one row."""
    bounds: Callable[[Resamples, float], tuple[float, float]] | None = None
    """Interval of a level, where it is not the percentile interval of the replicates."""

    def interval(self, resamples: Resamples, *, level: float) -> tuple[float, float]:
        """Return the interval that holds `level` of the resampled sets of users."""
        if self.bounds is not None:
            return self.bounds(resamples, level)
        return interval(self.replicates(resamples), level=level)


def _gauc(rows: LabelledScores) -> float:
    if rows.user_row_N is None:
        return float("nan")
    return gauc(rows.positive_N, rows.probability_N, rows.user_row_N)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="auc",
            label="AUC",
            meaning="a positive scores above a negative, over all pairs; 0.5 is chance",
            direction=1,
            formula=lambda rows: auc(rows.positive_N, rows.probability_N),
            replicates=auc_replicates,
        ),
        Metric(
            name="pr_auc",
            label="PR-AUC",
            meaning="average precision; chance is the share of positives",
            direction=1,
            formula=lambda rows: pr_auc(rows.positive_N, rows.probability_N),
            replicates=pr_auc_replicates,
        ),
        Metric(
            name="log_loss",
            label="log-loss (BCE)",
            meaning="mean cross-entropy of the probabilities; smaller is better",
            direction=-1,
            formula=lambda rows: log_loss(rows.positive_N, rows.probability_N),
            replicates=log_loss_replicates,
        ),
        Metric(
            name="gauc",
            label="GAUC",
            meaning="AUC within each user's own rows, averaged by rows",
            direction=1,
            formula=_gauc,
            replicates=gauc_replicates,
        ),
        Metric(
            name="normalised_entropy",
            label="normalised entropy",
            meaning="log-loss against a constant prediction; 1 is no better",
            direction=-1,
            formula=lambda rows: normalised_entropy(rows.positive_N, rows.probability_N),
            replicates=normalised_entropy_replicates,
        ),
        Metric(
            name="calibration",
            label="calibration",
            meaning="mean prediction / share of positives; 1 is right",
            direction=0,
            formula=lambda rows: calibration_ratio(rows.positive_N, rows.probability_N),
            replicates=calibration_replicates,
        ),
        Metric(
            name="brier",
            label="Brier score",
            meaning="mean squared error of the probabilities; smaller is better",
            direction=-1,
            formula=lambda rows: brier_score(rows.positive_N, rows.probability_N),
            replicates=brier_replicates,
        ),
        Metric(
            name="ece",
            label="ECE",
            meaning="mean distance of prediction and outcome over tenths; smaller is better",
            direction=-1,
            formula=lambda rows: expected_calibration_error(rows.positive_N, rows.probability_N),
            replicates=lambda resamples: bootstrap_ece(resamples).replicates_R,
            bounds=lambda resamples, level: ece_interval(bootstrap_ece(resamples), level=level),
        ),
    )
}
"""Metrics by name, in the order in which they are shown."""
