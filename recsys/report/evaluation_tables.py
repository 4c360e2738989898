"""Evaluation tables in the terminal: metrics with intervals, rankings, importance.

In: the result of an evaluation. Called by launch/evaluate.py; evaluation_page.py shares its wording.
"""

import math

import numpy as np
from rich.table import Table

from recsys.evaluation.result import (
    ITEM_KINDS,
    EvaluationResult,
    InputImportance,
    TwoStageResult,
)
from recsys.metrics.registry import METRICS
from recsys.metrics.summary import RowMetrics
from recsys.report.terminal import console


def print_metrics(result: EvaluationResult, title: str) -> None:
    """Print the metrics with intervals, rankings, importance; segments are in the report."""
    table = Table(title=title, title_justify="left")
    table.add_column("rows of")
    for label in (*(metric.label for metric in METRICS.values()), "rows"):
        table.add_column(label, justify="right")
    table.add_row("all", *_cells(result.all))
    nothing = (math.nan, math.nan)
    bounds = [result.intervals.get(name, nothing) for name in METRICS]
    table.add_row("  interval, low", *(shown(low) for low, _ in bounds), "")
    table.add_row("  interval, high", *(shown(high) for _, high in bounds), "")
    for kind in ITEM_KINDS:
        if kind in result.by_item_kind and result.by_item_kind[kind].num_rows:
            table.add_row(f"items {kind}".replace("_", " "), *_cells(result.by_item_kind[kind]))
    console().print(table)
    for line in _lines(result):
        console().print(line, highlight=False)


def _cells(metrics: RowMetrics) -> list[str]:
    return [*(shown(metrics.value(name)) for name in METRICS), shown(metrics.num_rows)]


def _lines(result: EvaluationResult) -> list[str]:
    """Return the sentences below the table."""
    lines = []
    if sentence := about_unknown_users(result):
        lines.append(sentence)
    if oracle := result.oracle:
        lines.append(
            f"best possible AUC {oracle.auc:.4f}; lift over 0.5 recovered: "
            f"{oracle.lift_recovered:.1%}"
        )
    for found in result.rankings.by_kind().values() if result.rankings else ():
        values = ", ".join(f"{name} {found.values[name]:.4f}" for name in found.intervals)
        lines.append(f"ranking, {found.candidates}: {values}")
    if stages := result.two_stages:
        values = ", ".join(f"{name} {stages.values[name]:.4f}" for name in stages.intervals)
        lines.append(f"two stages, {about_two_stages(stages)}: {values}")
    if result.importance:
        values = ", ".join(
            f"{name_of_input(line)} {line.auc_lost:+.4f}" for line in result.importance[:6]
        )
        lines.append(f"AUC lost with an input shuffled: {values}")
    if result.planted:
        values = ", ".join(f"{name} {r:+.2f}" for name, r in result.planted.items())
        lines.append(f"weights against planted sensitivities, r: {values}")
    return lines


def about_two_stages(stages: TwoStageResult) -> str:
    """Return the description of the two stages: whose candidates, and how many."""
    return f"{stages.num_candidates:,} candidates of bundle {stages.bundle}, ranked by the run"


def about_unknown_users(result: EvaluationResult) -> str:
    """Return the sentence about users whom the vocabulary does not know; empty without any."""
    unknown = result.unknown_users
    if unknown is None or not unknown.num_rows:
        return ""
    whose = (
        "of users unknown to the vocabulary, whom this prepared data does not tell apart (run "
        "launch/prepare.py again)"
        if unknown.num_users is None
        else f"of {unknown.num_users:,} users unknown to the vocabulary"
    )
    return (
        f"{unknown.num_rows:,} of {result.all.num_rows:,} rows are {whose}: GAUC and other metrics "
        f"by user leave them out"
    )


def name_of_input(line: InputImportance) -> str:
    """Return the name of a shuffled input: a feature's own, or of a modality's vectors and whose."""
    words = {
        "feature": "{}",
        "item vector": "{} of the item",
        "history vector": "{} of the history",
    }
    return words[line.kind].format(line.name)


def shown(value: float) -> str:
    """Return a count with separators, a metric with four digits, a dash where it has no value."""
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.4f}"
