"""Evaluation tables in the terminal: metrics with intervals, a comparison of two runs.

In: the content of metrics.json. Called by launch/evaluate.py; evaluation_page.py shares its wording.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from recsys.evaluation.evaluate import HEADLINE, ITEM_KINDS
from recsys.metrics.bootstrap import Difference
from recsys.report.terminal import console


def print_comparison(found: Mapping[str, Difference], names: list[str], level: float) -> None:
    """Print one line per metric: both values, their difference, its interval, the verdict."""
    table = Table(title=f"{names[1]} against {names[0]}, same users", title_justify="left")
    table.add_column("metric")
    for column in (*names, "difference", f"{level:.0%} interval", "better"):
        table.add_column(column, justify="right")
    words = {"first": names[0], "second": names[1], "undecided": "undecided"}
    for name, line in found.items():
        table.add_row(
            HEADLINE[name],
            shown(line.first),
            shown(line.second),
            f"{line.difference:+.4f}",
            f"{line.low:+.4f} to {line.high:+.4f}",
            words[line.verdict],
        )
    console().print(table)


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Print the headline metrics with intervals, ranking, importance; segments are in the report."""
    table = Table(title=title, title_justify="left")
    table.add_column("rows of")
    for name in (*HEADLINE.values(), "rows"):
        table.add_column(name, justify="right")
    for segment in ("all", *ITEM_KINDS):
        if segment in metrics and (segment == "all" or metrics[segment]["num_rows"]):
            values = metrics[segment]
            cells = [shown(values[key]) for key in (*HEADLINE, "num_rows")]
            table.add_row(segment.replace("_", " "), *cells)
            if segment == "all":
                bounds = [metrics["intervals"][key] for key in HEADLINE]
                table.add_row("  interval, low", *(shown(low) for low, _ in bounds), "")
                table.add_row("  interval, high", *(shown(high) for _, high in bounds), "")
    console().print(table)
    if sentence := about_unknown_users(metrics):
        console().print(sentence, highlight=False)
    if "oracle" in metrics:
        oracle = metrics["oracle"]
        console().print(
            f"best possible AUC {oracle['auc']:.4f}; lift over 0.5 recovered: "
            f"{oracle['lift_recovered']:.1%}"
        )
    for kind in ("full", "sampled"):
        if kind in metrics.get("ranking", {}):
            found = metrics["ranking"][kind]
            line = ", ".join(f"{name} {found[name]:.4f}" for name in found["intervals"])
            console().print(f"ranking, {found['candidates']}: {line}", highlight=False)
    if metrics.get("importance"):
        line = ", ".join(
            f"{name_of_input(entry)} {entry['auc_lost']:+.4f}"
            for entry in metrics["importance"][:6]
        )
        console().print(f"AUC lost with an input shuffled: {line}", highlight=False)
    if "planted" in metrics:
        line = ", ".join(
            f"{name} {r:+.2f}" for name, r in metrics["planted"].items() if name != "num_users"
        )
        console().print(f"weights against planted sensitivities, r: {line}", highlight=False)


def about_unknown_users(metrics: Mapping[str, Any]) -> str:
    """Return the sentence about users whom the vocabulary does not know; empty without any."""
    unknown = metrics.get("unknown_users", {"num_rows": 0})
    if not unknown["num_rows"]:
        return ""
    users = unknown["num_users"]
    whose = (
        "of users unknown to the vocabulary, whom this prepared data does not tell apart (run "
        "launch/prepare.py again)"
        if users is None
        else f"of {users:,} users unknown to the vocabulary"
    )
    return (
        f"{unknown['num_rows']:,} of {metrics['all']['num_rows']:,} rows are {whose}: GAUC and other "
        f"metrics by user leave them out"
    )


def name_of_input(entry: Mapping[str, Any]) -> str:
    """Return what a shuffled input is called: a feature by its name, vectors by whose they are."""
    words = {
        "feature": "{}",
        "item vector": "{} of the item",
        "history vector": "{} of the history",
    }
    return words[entry["kind"]].format(entry["name"])


def shown(value: float) -> str:
    """Return a count with separators, a metric with four digits, a dash where it has no value."""
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.4f}"
