"""The evaluation report: metrics with intervals, segments, feature importance, recommendations.

In: an evaluation, the data's counts, the items of the sample users. Out: report.html, self-contained,
with a dark mode. Called by evaluation_folder.py; evaluation_users.py has the part about sample users.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.evaluation.curves import SCORE_EDGES, WEIGHT_EDGES
from recsys.evaluation.evaluate import Evaluation
from recsys.evaluation.interactions import Interactions
from recsys.evaluation.result import ITEM_KINDS, EvaluationResult, SegmentResult
from recsys.metrics.registry import METRICS
from recsys.metrics.summary import RowMetrics
from recsys.report import figures
from recsys.report.evaluation_tables import (
    about_two_stages,
    about_unknown_users,
    name_of_input,
    shown,
)
from recsys.report.evaluation_users import USERS_STYLE, users_html
from recsys.report.items import Item
from recsys.report.page import COLOURS, html_table, page


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """The data's own statistics."""

    facts: dict[str, str]
    """Lines of the table."""
    by_item: Interactions | None
    """Training rows by item, the unknown one left out."""
    by_user: Interactions | None
    """Training rows by user, the unknown one left out."""


_STYLE = """
h2.part{font-size:21px;margin:36px 0 4px}
.grid{columns:2 420px;column-gap:18px;margin:14px 0 0}
.grid section{break-inside:avoid;margin:0 0 18px}
.grid .whole{column-span:all;margin-top:18px}
h3.sub{font-size:13.5px;color:var(--soft);font-weight:600;margin:10px 0 4px}
svg{width:100%;height:auto;display:block}
section p{font-size:14px;line-height:1.45}
table{font-variant-numeric:tabular-nums;font-size:15px}
section table{font-size:13.5px;margin:6px 0 0}section th,section td{padding:4px 8px}
section th{font-size:12.5px}
.headline td:last-child,.headline th:last-child{text-align:left;color:var(--soft);font-size:14px}
.headline td:nth-child(2){font-weight:650}
.wide{overflow-x:auto}
summary{cursor:pointer;color:var(--soft);font-size:13.5px;margin-top:8px}
.note{color:var(--soft);font-size:13px;margin:6px 0 0}
"""
_STYLE += USERS_STYLE + "".join(
    f".c{index}{{background:{colour}}}" for index, colour in enumerate(COLOURS)
)


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: Evaluation,
    level: float,
    counts: DataCounts,
    items: Mapping[int, Item],
) -> None:
    """Write the page.

    Args:
        level: share of resampled users that the intervals hold.
        items: by item row: those of the sample users.
    """
    result, names = evaluation.result, evaluation.modality_names
    parts = [
        _head(result, level),
        _part("How good", _quality(evaluation)),
        _part("Lists", _lists(result)),
        _part("For whom", _families(result, names)),
        _part("Why", _reasons(evaluation)),
        _part("The data", _data(counts)),
    ]
    if evaluation.sample_users:
        users = users_html(evaluation.sample_users, items, names)
        parts.append(f'<h2 class="part">What it recommends</h2>{users}')
    path.write_text(page(title, "".join(parts), style=_STYLE, width_pixels=1180), encoding="utf-8")


def _part(name: str, cards: Sequence[str]) -> str:
    if not any(cards):
        return ""
    return f'<h2 class="part">{name}</h2><div class="grid">{"".join(cards)}</div>'


def _card(name: str, text: str, body: str, kind: str = "") -> str:
    said = f"<p>{html.escape(text)}</p>" if text else ""
    return f'<section class="{kind}"><h2>{html.escape(name)}</h2>{said}{body}</section>'


def _head(result: EvaluationResult, level: float) -> str:
    nothing = (math.nan, math.nan)
    rows = [
        [
            metric.label,
            shown(result.all.value(name)),
            _range(result.intervals.get(name, nothing)),
            metric.meaning,
        ]
        for name, metric in METRICS.items()
    ]
    num_rows = result.all.num_rows
    share = result.all.num_positives / num_rows if num_rows else 0
    notes = [f"{num_rows:,} rows, {share:.1%} positive."]
    if sentence := about_unknown_users(result):
        notes.append(f"{sentence}.")
    if oracle := result.oracle:
        notes.append(
            f"The best possible AUC on these rows is {oracle.auc:.4f}; the model recovers "
            f"{oracle.lift_recovered:.1%} of its lift over 0.5."
        )
    table = html_table(["metric", "value", f"{level:.0%} interval", "meaning"], rows)
    return (
        f"<p>{' '.join(notes)} Intervals: the same numbers over resampled users.</p>"
        f'<div class="wide headline">{table}</div>'
    )


def _range(bounds: Sequence[float]) -> str:
    low, high = bounds
    return "-" if np.isnan(low) else f"{low:.4f} to {high:.4f}"


def _quality(evaluation: Evaluation) -> list[str]:
    curves = evaluation.curves
    by_kind = evaluation.result.by_item_kind
    seen = [
        [f"items {kind}".replace("_", " "), shown(by_kind[kind].num_rows), *_few(by_kind[kind])]
        for kind in ITEM_KINDS
        if kind in by_kind and by_kind[kind].num_rows
    ]
    cards = [
        _card(
            "ROC curve", "Positives found against negatives let through.", figures.roc(curves.roc)
        ),
        _card(
            "Calibration",
            "Mean prediction against share of positives, by tenth of the predictions, with two "
            "standard errors. On the line a score means what it says.",
            figures.calibration(
                [b.mean_prediction for b in curves.bins],
                [b.positive_rate for b in curves.bins],
                [b.num_rows for b in curves.bins],
            ),
        ),
        _card(
            "Scores",
            "How the predicted probabilities are distributed.",
            figures.score_distributions(curves.score_counts_2H, SCORE_EDGES),
        ),
    ]
    if seen:
        header = ["rows of", "rows", *(METRICS[name].label for name in _FEW)]
        text = (
            "Items without a training row can only be known by what they show and say; of an item "
            "unknown to the vocabulary the model knows nothing at all."
        )
        cards.append(
            _card("New items", text, f'<div class="wide">{html_table(header, seen)}</div>')
        )
    return cards


_FEW = ("auc", "log_loss", "gauc", "calibration")
"""Metrics of tables that have a line for each part of the rows."""


def _few(metrics: RowMetrics) -> list[str]:
    return [shown(metrics.value(name)) for name in _FEW]


_LIST_MEANING = {
    "coverage": "of the catalogue recommended to anybody",
    "novelty": "bits of surprise of a recommended item",
    "popularity_lift": "recommendations more popular than the user's own taste by",
}


def _lists(result: EvaluationResult) -> list[str]:
    cards = []
    for kind, found in result.rankings.by_kind().items() if result.rankings else ():
        assert result.rankings is not None
        rows = [
            [name, shown(found.values[name]), _range(bounds)]
            for name, bounds in found.intervals.items()
        ]
        text = f"Candidates: {found.candidates}; mean over {result.rankings.num_users:,} users."
        table = html_table(["metric", "value", "interval"], rows)
        cards.append(_card(f"Ranking, {kind} candidates", text, table))
    if stages := result.two_stages:
        rows = [
            [name.replace("_", " "), shown(stages.values[name]), _range(bounds)]
            for name, bounds in stages.intervals.items()
        ]
        text = (
            f"{about_two_stages(stages)}. Candidate recall: share of the best {stages.k} of the full "
            f"ranking that are candidates."
        )
        table = html_table(["metric", "value", "interval"], rows)
        cards.append(_card("Two stages", text[0].upper() + text[1:], table))
    if lists := result.lists:
        rows = []
        for name, value in lists.values.items():
            modality = name.removeprefix("diversity_")
            meaning = f"mean 1 - cosine of {modality} vectors within a list"
            name_shown = name.replace("_", " ")
            rows.append([name_shown, shown(value), _LIST_MEANING.get(name, meaning)])
        text = f"The first {lists.k} of each user's list."
        table = html_table(["", "value", "meaning"], rows)
        cards.append(_card("Beyond accuracy", text, f'<div class="wide headline">{table}</div>'))
    return cards


def _families(result: EvaluationResult, names: list[str]) -> list[str]:
    return [
        _family(family, members, result.all.value("auc"), names)
        for family, members in result.segments.items()
        if all(found.num_rows != result.all.num_rows for found in members.values())
    ]


def _family(family: str, members: Mapping[str, SegmentResult], auc: float, names: list[str]) -> str:
    """Return the card of one family of segments; `auc` is that of all rows."""
    large = {name: found.metrics for name, found in members.items() if found.metrics is not None}
    body = ""
    if large:
        body = figures.dots(
            list(large),
            [metrics.value("auc") for metrics in large.values()],
            [members[name].auc_interval for name in large],
            reference=auc,
            label="AUC; the broken line is all rows",
        )
    weighed = {name: found.weights for name, found in members.items() if found.weights}
    if len(weighed) > 1:
        shares = np.array([[means[name] for name in names] for means in weighed.values()])
        drawn = figures.stacked(list(weighed), shares, names, label="mean modality weight")
        body += f'<h3 class="sub">what counts</h3>{drawn}'
    if large:
        rows = [
            [name, shown(metrics.num_rows), shown(metrics.num_positives), *_few(metrics)]
            for name, metrics in large.items()
        ]
        header = ["", "rows", "positives", *(METRICS[name].label for name in _FEW)]
        table = f'<div class="wide">{html_table(header, rows)}</div>'
        body += f"<details><summary>numbers</summary>{table}</details>"
    small = [
        f"{name} ({found.num_rows:,} rows)"
        for name, found in members.items()
        if found.metrics is None and found.num_rows
    ]
    if small:
        body += f'<p class="note">Too small to tell: {html.escape(", ".join(small))}.</p>'
    empty = [name for name, found in members.items() if not found.num_rows]
    if empty:
        body += f'<p class="note">No rows: {html.escape(", ".join(empty))}.</p>'
    return _card(family[:1].upper() + family[1:], "", body)


def _reasons(evaluation: Evaluation) -> list[str]:
    cards = []
    result, names = evaluation.result, evaluation.modality_names
    if entries := result.importance:
        kinds = {"feature": 0, "item vector": 1, "history vector": 2}
        text = (
            "AUC lost when one input is dealt out anew among the rows and the rest stays. Blue: ids "
            "of a feature; orange: vectors of the item; green: vectors of the history."
        )
        drawn = figures.bars(
            [name_of_input(entry) for entry in entries],
            [entry.auc_lost for entry in entries],
            [entry.interval for entry in entries],
            [kinds[entry.kind] for entry in entries],
            label="AUC lost",
        )
        cards.append(_card("What the model uses", text, drawn))
    if not result.weights:
        return cards
    cards.append(
        _card(
            "Modality weights",
            "How much each modality counts in the fusion, row by row; dots are medians.",
            figures.weight_distributions(
                evaluation.curves.weight_counts_MH,
                WEIGHT_EDGES,
                {name: result.weights[name].median for name in names},
            ),
        )
    )
    if evaluation.planted:
        text = (
            "Every dot is a user: what share of the sensitivities they were drawn with is the "
            "modality's, and what share of the weights the model gave it."
        )
        panels = {
            name: (share.planted_U, share.learned_U, share.correlation)
            for name, share in evaluation.planted.items()
        }
        cards.append(_card("Learned and planted", text, figures.scatter(panels), "whole"))
    return cards


def _data(counts: DataCounts) -> list[str]:
    table = html_table(["", ""], [[name, text] for name, text in counts.facts.items()])
    cards = [_card("In numbers", "", table)]
    for values, of in ((counts.by_item, "items"), (counts.by_user, "users")):
        if values is not None:
            each = f"interactions of {'an item' if of == 'items' else 'a user'} in training"
            drawn = figures.counts(values, of=of, each=each)
            cards.append(_card(f"Interactions by {of[:-1]}", _spread(values), drawn))
    return cards


def _spread(values: Interactions) -> str:
    """Return the sentence about interactions by item or user."""
    if not values.counts_C.size:
        return "Nobody has any."
    return (
        f"Median {values.median:,.0f} (broken line), most {values.counts_C[-1]:,}; "
        f"{values.share_of_tenth:.0%} belong to a tenth; {values.num_without:,} have none."
    )
