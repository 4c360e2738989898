"""Retrieval of the text encoder before and after training: a table and evaluation.png.

Input: evaluations as plain dictionaries, {"step": n, "results": [one per perspective and
language]}. Called by launch/embed.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from recsys.files import new_file
from recsys.report.terminal import console

METRICS = {"recall_at_1": "recall@1", "recall_at_10": "recall@10", "mrr": "MRR"}


def show_retrieval(folder: Path, evaluations: Sequence[dict[str, Any]]) -> None:
    """Print the metrics before and after training, a line per perspective and language; draw them.

    Args:
        folder: of the encoder; evaluation.png is written there.
    """
    if not evaluations or not evaluations[0]["results"]:
        return
    first, last = evaluations[0], evaluations[-1]
    is_trained = last["step"] > first["step"]
    title = "text encoder on entities unseen in training"
    if is_trained:
        title += f", before and after {last['step']:,} steps"
    table = Table(title=title, title_justify="left")
    for column in ("perspective", "language"):
        table.add_column(column)
    for column in ("queries", "candidates", *METRICS.values()):
        table.add_column(column, justify="right")
    for before, after in zip(first["results"], last["results"], strict=True):
        values = [
            f"{before[key]:.3f} -> {after[key]:.3f}" if is_trained else f"{after[key]:.3f}"
            for key in METRICS
        ]
        counts = [f"{after['num_queries']:,}", f"{after['num_candidates']:,}"]
        table.add_row(after["perspective"], after["language"] or "any", *counts, *values)
    console().print(table)
    with new_file(folder / "evaluation.png") as beside:
        retrieval_figure(evaluations).savefig(beside, dpi=140, format="png")


def retrieval_figure(evaluations: Sequence[dict[str, Any]]) -> Figure:
    """Return the plot of recall@1: a line per perspective and language, from before to after."""
    first, last = evaluations[0]["results"], evaluations[-1]["results"]
    figure = Figure(figsize=(7.2, 1.3 + 0.32 * len(last)), layout="constrained")
    axes = figure.subplots()
    labels = []
    for place, (before, after) in enumerate(zip(first, last, strict=True)):
        low, high = before["recall_at_1"], after["recall_at_1"]
        axes.plot([low, high], [place, place], color="#9db8cf", linewidth=3, zorder=1)
        axes.scatter(low, place, s=42, facecolor="white", edgecolor="#555555", zorder=2)
        axes.scatter(high, place, s=42, color="#1f6fb2", zorder=3)
        axes.annotate(
            f"{high:.2f}",
            (max(low, high), place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#333333",
        )
        language = f" {after['language']}" if after["language"] else ""
        labels.append(f"{after['perspective']}{language} ({after['num_queries']:,})")
    axes.scatter([], [], facecolor="white", edgecolor="#555555", label="before training")
    axes.scatter([], [], color="#1f6fb2", label=f"after {evaluations[-1]['step']:,} steps")
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.08)
    axes.set_xlabel("recall@1 on entities unseen in training (queries in brackets)", fontsize=9)
    axes.grid(axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure
