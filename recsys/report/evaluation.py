"""What an evaluation leaves for people and programs: metrics, predictions, one HTML page.

In: Predictions of a split. Out: a metrics dict, predictions.parquet, report.html, a table in the
terminal. Called by launch/evaluate.py.
"""

import base64
import html
import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table
from sklearn.metrics import roc_curve

from recsys.metrics.calibration import calibration_bins
from recsys.metrics.summary import evaluate_predictions
from recsys.report.page import COLOURS, html_table, page
from recsys.report.terminal import console
from recsys.train.predict import Predictions

HEADLINE = {
    "auc": "AUC",
    "log_loss": "log-loss (BCE)",
    "gauc": "GAUC",
    "normalised_entropy": "normalised entropy",
    "calibration": "calibration",
    "ece": "ECE",
    "num_rows": "rows",
}


def evaluate_rows(predictions: Predictions, train_count: np.ndarray | None) -> dict[str, Any]:
    """Return metrics over all rows, and over items seen and unseen in training.

    Args:
        train_count: training rows by item row; None where there are no items.
    """
    has_users = bool((predictions.user_row > 0).any())
    shared: dict[str, Any] = {
        "labels_N": predictions.label,
        "probabilities_N": predictions.score,
        "user_rows_N": predictions.user_row if has_users else None,
    }
    metrics: dict[str, Any] = {"all": evaluate_predictions(**shared)}
    if train_count is not None:
        unseen = train_count[predictions.item_row] == 0
        metrics["items_seen_in_training"] = evaluate_predictions(**shared, segment_N=~unseen)
        metrics["items_unseen_in_training"] = evaluate_predictions(**shared, segment_N=unseen)
    return metrics


def write_predictions(
    path: Path, predictions: Predictions, modality_names: list[str], workspace: Path
) -> None:
    """Write one line per row, in input order: row_id, user_id, item_id, label, score, weights."""
    order = np.argsort(predictions.row_id, kind="stable")
    columns: dict[str, Any] = {"row_id": predictions.row_id[order]}
    for side, rows in (("user", predictions.user_row), ("item", predictions.item_row)):
        names = workspace / "prepared" / f"{side}s.parquet"
        if names.is_file():
            ids = pq.read_table(names, columns=[f"{side}_id"]).column(0)
            columns[f"{side}_id"] = pc.take(ids, pa.array(rows[order]))
    columns["label"] = predictions.label[order].astype(np.uint8)
    columns["score"] = predictions.score[order]
    if predictions.weights.shape[1]:
        for index, name in enumerate(modality_names):
            columns[f"weight_{name}"] = predictions.weights[order, index]
    pq.write_table(pa.table(columns), path, compression="zstd")


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Print the headline metrics, one line per segment."""
    table = Table(title=title, title_justify="left")
    table.add_column("rows of")
    for name in HEADLINE.values():
        table.add_column(name, justify="right")
    for segment, values in metrics.items():
        if segment != "oracle":
            table.add_row(segment.replace("_", " "), *(_shown(values[key]) for key in HEADLINE))
    console().print(table)
    if "oracle" in metrics:
        oracle = metrics["oracle"]
        console().print(
            f"best possible AUC {oracle['auc']:.4f}; lift over 0.5 recovered: "
            f"{oracle['lift_recovered']:.1%}"
        )


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.4f}"


def write_report(
    path: Path,
    *,
    title: str,
    metrics: dict[str, Any],
    predictions: Predictions,
    modality_names: list[str],
) -> None:
    """Write a self-contained page: headline table, ROC, calibration, scores, modality weights."""
    figures = [
        ("ROC curve", "True positive rate against false positive rate.", _roc(predictions)),
        (
            "Calibration",
            "Mean prediction against share of positives, by tenth of the predictions; on the "
            "diagonal a score means what it says.",
            _calibration(predictions),
        ),
        ("Scores", "Distribution of the scores by label.", _scores(predictions)),
    ]
    if predictions.weights.shape[1]:
        figures.append((
            "Modality weights",
            "How much each modality counts, row by row: the weights of the user-aware fusion. "
            "White marks are medians.",
            _weights(predictions, modality_names),
        ))
    path.write_text(_page(title, metrics, figures), encoding="utf-8")


_STYLE = """
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:20px}
img{width:100%;background:#fff;border-radius:6px}
"""


def _page(title: str, metrics: dict[str, Any], figures: list[tuple[str, str, str]]) -> str:
    rows = [
        [segment.replace("_", " "), *(_shown(values[key]) for key in HEADLINE)]
        for segment, values in metrics.items()
        if segment != "oracle"
    ]
    oracle = metrics.get("oracle")
    note = (
        f"<p>The best possible AUC on these rows is {oracle['auc']:.4f}; the model recovers "
        f"{oracle['lift_recovered']:.1%} of its lift over 0.5.</p>"
        if oracle
        else ""
    )
    sections = "".join(
        f"<section><h2>{html.escape(name)}</h2><p>{html.escape(text)}</p>"
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{picture}"></section>'
        for name, text, picture in figures
    )
    head = html_table(["rows of", *HEADLINE.values()], rows)
    return page(title, f'{note}{head}<div class="grid">{sections}</div>', style=_STYLE)


def _figure() -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(5.6, 3.8), dpi=140)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _encoded(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _roc(predictions: Predictions) -> str:
    figure, axes = _figure()
    if 0 < predictions.label.sum() < len(predictions.label):
        false_rate, true_rate, _ = roc_curve(predictions.label, predictions.score)
        axes.plot(false_rate, true_rate, color=COLOURS[0], linewidth=2)
    axes.plot([0, 1], [0, 1], color="#999", linestyle="--", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1))
    return _encoded(figure)


def _calibration(predictions: Predictions) -> str:
    figure, axes = _figure()
    bins = calibration_bins(predictions.label, predictions.score)
    predicted = [b.mean_prediction for b in bins]
    observed = [b.positive_rate for b in bins]
    top = max([*predicted, *observed, 1e-6]) * 1.05
    axes.plot([0, top], [0, top], color="#999", linestyle="--", linewidth=1)
    axes.plot(predicted, observed, marker="o", color=COLOURS[0], linewidth=1.5)
    axes.set(xlabel="mean prediction", ylabel="share of positives", xlim=(0, top), ylim=(0, top))
    return _encoded(figure)


def _scores(predictions: Predictions) -> str:
    figure, axes = _figure()
    bins = np.linspace(0, 1, 51)
    for label, colour, name in ((0, COLOURS[1], "negative"), (1, COLOURS[0], "positive")):
        scores = predictions.score[predictions.label == label]
        if len(scores):
            axes.hist(scores, bins, alpha=0.55, color=colour, label=name, density=True)
    axes.set(xlabel="predicted probability", ylabel="density", xlim=(0, 1))
    axes.legend(frameon=False)
    return _encoded(figure)


def _weights(predictions: Predictions, modality_names: list[str]) -> str:
    figure, axes = _figure()
    columns = [predictions.weights[:, index] for index in range(len(modality_names))]
    parts = axes.violinplot(columns, showextrema=False, widths=0.85)
    for body, colour in zip(parts["bodies"], COLOURS * 3, strict=False):
        body.set(facecolor=colour, alpha=0.7)
    positions = range(1, len(columns) + 1)
    axes.scatter(positions, [np.median(c) for c in columns], color="white", edgecolor="#333")
    axes.set_xticks(list(positions), modality_names)
    axes.set(ylabel="weight", ylim=(0, 1))
    return _encoded(figure)
