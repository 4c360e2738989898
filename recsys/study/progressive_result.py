"""Result of a progressive validation: metrics by window and over all of them, differences, and costs.

In: scored windows, whose metrics and predictions launch/evaluate.py wrote. Out: the record that the page
shows and progressive.json holds. Called by launch/progressive.py. Shapes: N rows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.evaluation.rows import ScoredRows, read_lines, scored_rows
from recsys.metrics.calibration import calibration_ratio
from recsys.metrics.entropy import normalised_entropy
from recsys.study.differences import Difference, paired_difference, seed_scores
from recsys.study.progressive import ARMS, ScoredWindow
from recsys.study.runs import evaluate_again, read_metrics

METRICS = {"auc": "AUC", "normalised_entropy": "normalised entropy", "calibration": "calibration"}
"""Metrics of a window by key, with their labels."""
NUM_REPLICATES = 400


@dataclass(frozen=True, kw_only=True)
class WindowLine:
    """One model on one window, over the seeds."""

    arm: str
    window: str
    num_rows: int
    values: dict[str, float]
    """Mean over seeds, by key of METRICS; nan where the window lacks a class."""
    bounds: dict[str, tuple[float, float]]
    """95 % interval over users, its ends averaged over seeds, by the same keys."""
    seconds: float
    """Mean over seeds of what its training took; nan where there was none."""
    cpu_seconds: float
    num_trained_rows: float


@dataclass(frozen=True, kw_only=True)
class ArmTotal:
    """One model over all windows that it scored: their rows together."""

    arm: str
    num_windows: int
    num_rows: int
    values: dict[str, float]
    """Mean over seeds, by key of METRICS."""
    seconds: float
    """Sum over windows of the mean over seeds; windows without a cost are left out."""
    cpu_seconds: float
    num_trained_rows: float


@dataclass(frozen=True, kw_only=True)
class ArmDifference:
    """AUC of the refreshed model less that of another one, on the windows that both scored."""

    reference: str
    num_windows: int
    auc: Difference
    normalised_entropy: float
    """The same difference of the normalised entropy: below 0, the refreshed model is better."""
    cpu_ratio: float
    """Processor time of the refreshed model / that of the other; nan where one has none."""
    rows_ratio: float
    """The same of the rows that were trained on."""


@dataclass(frozen=True, kw_only=True)
class ProgressiveResult:
    """Result of a progressive validation."""

    num_seeds: int
    windows: list[str]
    lines: list[WindowLine]
    totals: list[ArmTotal]
    differences: list[ArmDifference]


def progressive_result(scored: Sequence[ScoredWindow]) -> ProgressiveResult:
    """Return the result of scored windows, of which every arm has the same seeds."""
    windows = list(dict.fromkeys(one.window for one in scored))
    arms = [arm for arm in ARMS if any(one.arm == arm for one in scored)]
    return ProgressiveResult(
        num_seeds=len({one.seed for one in scored}),
        windows=windows,
        lines=[
            _line([one for one in scored if (one.arm, one.window) == (arm, window)])
            for arm in arms
            for window in windows
            if any((one.arm, one.window) == (arm, window) for one in scored)
        ],
        totals=[_total([one for one in scored if one.arm == arm]) for arm in arms],
        differences=[_difference(scored, arm) for arm in arms if arm != "refreshed"],
    )


def _line(scored: Sequence[ScoredWindow]) -> WindowLine:
    """Return one model on one window, of all seeds."""
    results = [read_metrics(one.run, one.window) for one in scored]
    return WindowLine(
        arm=scored[0].arm,
        window=scored[0].window,
        num_rows=results[0].all.num_rows,
        values={key: _mean(result.all.value(key) for result in results) for key in METRICS},
        bounds={
            key: (
                _mean(result.intervals.get(key, (math.nan, math.nan))[0] for result in results),
                _mean(result.intervals.get(key, (math.nan, math.nan))[1] for result in results),
            )
            for key in METRICS
        },
        **_costs([scored]),
    )


def _costs(groups: Iterable[Sequence[ScoredWindow]]) -> dict[str, float]:
    """Return the sum over groups (windows) of the mean cost of their trainings; nan without any."""
    sums = {"seconds": math.nan, "cpu_seconds": math.nan, "num_trained_rows": math.nan}
    for group in groups:
        costs = [one.cost for one in group if one.cost is not None]
        if not costs:
            continue
        for key, of in zip(sums, ("seconds", "cpu_seconds", "num_rows"), strict=True):
            before = 0.0 if math.isnan(sums[key]) else sums[key]
            sums[key] = before + _mean(getattr(cost, of) for cost in costs)
    return sums


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are no nan; nan where none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _by_window(scored: Sequence[ScoredWindow]) -> list[list[ScoredWindow]]:
    windows = dict.fromkeys(one.window for one in scored)
    return [[one for one in scored if one.window == window] for window in windows]


def _rows_by_seed(scored: Sequence[ScoredWindow]) -> list[ScoredRows]:
    """Return the rows of all windows together, by seed; users of several windows are one unit."""
    found = []
    for seed in sorted({one.seed for one in scored}):
        tables = []
        for one in scored:
            if one.seed != seed:
                continue
            file = one.run.folder / "eval" / one.window / "predictions.parquet"
            tables.append(read_lines(file, evaluate_again(one.run.name, one.window)))
        found.append(scored_rows(pa.concat_tables(tables)))
    return found


def _total(scored: Sequence[ScoredWindow]) -> ArmTotal:
    seeds = _rows_by_seed(scored)
    of_metrics = {
        "auc": [float(s) for s in seed_scores(seeds, num_replicates=2, seed=0).auc_S],
        "normalised_entropy": [normalised_entropy(r.label_N, r.score_N) for r in seeds],
        "calibration": [calibration_ratio(r.label_N, r.score_N) for r in seeds],
    }
    groups = _by_window(scored)
    return ArmTotal(
        arm=scored[0].arm,
        num_windows=len(groups),
        num_rows=len(seeds[0].row_id_N),
        values={key: _mean(values) for key, values in of_metrics.items()},
        **_costs(groups),
    )


def _difference(scored: Sequence[ScoredWindow], reference: str) -> ArmDifference:
    """Return the refreshed model against another one, on the windows that both scored."""
    theirs = [one for one in scored if one.arm == reference]
    windows = {one.window for one in theirs}
    ours = [one for one in scored if one.arm == "refreshed" and one.window in windows]
    rows, other_rows = _rows_by_seed(ours), _rows_by_seed(theirs)
    scores = [
        seed_scores(
            [r.with_units_of(rows[0]) for r in seeds], num_replicates=NUM_REPLICATES, seed=0
        )
        for seeds in (rows, other_rows)
    ]
    entropies = [
        np.mean([normalised_entropy(r.label_N, r.score_N) for r in seeds])
        for seeds in (rows, other_rows)
    ]
    # Windows of which both have a training: the refreshed model had none for the first one.
    measured = {one.window for one in ours if one.cost is not None}
    measured &= {one.window for one in theirs if one.cost is not None}
    costs, other_costs = (
        _costs(_by_window([one for one in those if one.window in measured]))
        for those in (ours, theirs)
    )
    return ArmDifference(
        reference=reference,
        num_windows=len(windows),
        auc=paired_difference(scores[0], scores[1], seed=0),
        normalised_entropy=float(entropies[0] - entropies[1]),
        cpu_ratio=costs["cpu_seconds"] / other_costs["cpu_seconds"],
        rows_ratio=costs["num_trained_rows"] / other_costs["num_trained_rows"],
    )
