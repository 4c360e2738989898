"""The page of an evaluation: how good the model is, for whom, why, and what it recommends.

In: the content of metrics.json, predictions, the data's counts, sample users. Out: report.html, one
file that fetches nothing. Called by launch/evaluate.py.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.evaluate import HEADLINE, ITEM_KINDS
from recsys.evaluation.predict import Predictions
from recsys.metrics.calibration import calibration_bins
from recsys.report import figures
from recsys.report.evaluation_tables import about_unknown_users, name_of_input, shown
from recsys.report.items import Item, picture_html
from recsys.report.page import COLOURS, html_table, page

MEANING = {
    "auc": "a positive scores above a negative, over all pairs; 0.5 is chance",
    "pr_auc": "average precision; chance is the share of positives",
    "log_loss": "mean cross-entropy of the probabilities; smaller is better",
    "gauc": "AUC within each user's own rows, averaged by rows",
    "normalised_entropy": "log-loss against a constant prediction; 1 is no better",
    "calibration": "mean prediction / share of positives; 1 is right",
    "brier": "mean squared error of the probabilities; smaller is better",
    "ece": "mean distance of prediction and outcome over tenths; smaller is better",
}

SHARES = {"semantic": "content", "style": "style", "text": "text", "ids": "ids"}
"""What the weights are called beside a recommendation."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A candidate at the top of a user's list."""

    item: Item
    score: float
    weights: dict[str, float]
    """By modality; empty for a model that measures none."""
    is_positive: bool
    """The user did like it in the split."""


@dataclass(frozen=True, kw_only=True)
class SampleUser:
    """A user, what they liked, and what the model says they will."""

    user_id: str
    num_liked: int
    liked: list[Item]
    """The latest of them, newest first."""
    recommended: list[Recommendation]
    """Best first."""
    planted: dict[str, float] = field(default_factory=dict)
    """Share of each sensitivity the user was drawn with, where that is known."""


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """The data's own statistics."""

    facts: dict[str, str]
    """Lines of the table."""
    by_item: NDArray | None
    """Training rows by item, the unknown one left out."""
    by_user: NDArray | None
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
.user{margin:18px 0}.user h3{margin:0 0 2px;font-size:16px}
.user h4{margin:12px 0 6px;font-size:13.5px;color:var(--soft);font-weight:600}
.items{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:12px}
.items>div{font-size:12.5px;line-height:1.3;min-width:0}
.liked{grid-template-columns:repeat(auto-fill,minmax(84px,1fr))}
.picture{position:relative;display:block;aspect-ratio:1;border-radius:8px;overflow:hidden;
background:var(--line)}
.picture img{display:block;width:100%;height:100%;object-fit:cover}
.picture .empty{position:absolute;inset:0;display:grid;place-content:center;text-align:center;
color:var(--soft);font-size:12px}
.score,.hit{position:absolute;bottom:5px;padding:0 6px;border-radius:5px;background:#000a;color:#fff;
font-size:11px;line-height:17px;font-variant-numeric:tabular-nums}.score{right:5px}
.hit{left:5px;background:#1f8a57}
.plain .score,.plain .hit{position:static;margin-left:4px}
.name{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden;
overflow-wrap:anywhere;margin-top:5px}
.by{color:var(--soft);overflow-wrap:anywhere}
.mix{display:flex;height:9px;border-radius:3px;overflow:hidden;margin-top:5px;background:var(--line)}
.mix i{display:block;height:100%}
.key{display:inline-flex;align-items:center;gap:5px;margin-right:14px;font-size:13px;
color:var(--soft)}
.key i{width:11px;height:11px;border-radius:3px;display:inline-block}
"""
_STYLE += "".join(f".c{index}{{background:{colour}}}" for index, colour in enumerate(COLOURS))


def write_report(
    path: Path,
    *,
    title: str,
    metrics: Mapping[str, Any],
    predictions: Predictions,
    modality_names: list[str],
    level: float,
    counts: DataCounts,
    users: Sequence[SampleUser],
    oracle_scores: NDArray | None = None,
    planted: dict[str, tuple[NDArray, NDArray, float]] | None = None,
) -> None:
    """Write the page.

    Args:
        modality_names: of the columns of `predictions.weights`.
        level: share of resampled users that the intervals hold.
        oracle_scores: true probabilities of the rows of `predictions`, where they are known.
        planted: by modality: planted and learned shares of every user, and their r.
    """
    parts = [
        _head(metrics, level),
        _part("How good", _quality(metrics, predictions, oracle_scores)),
        _part("Lists", _lists(metrics)),
        _part("For whom", _families(metrics, modality_names)),
        _part("Why", _reasons(metrics, predictions, modality_names, planted)),
        _part("The data", _data(counts)),
    ]
    if users:
        parts.append('<h2 class="part">What it recommends</h2>' + _users(users, modality_names))
    path.write_text(page(title, "".join(parts), style=_STYLE, width_pixels=1180), encoding="utf-8")


def _part(name: str, cards: Sequence[str]) -> str:
    if not any(cards):
        return ""
    return f'<h2 class="part">{name}</h2><div class="grid">{"".join(cards)}</div>'


def _card(name: str, text: str, body: str, kind: str = "") -> str:
    said = f"<p>{html.escape(text)}</p>" if text else ""
    return f'<section class="{kind}"><h2>{html.escape(name)}</h2>{said}{body}</section>'


def _head(metrics: Mapping[str, Any], level: float) -> str:
    values, bounds = metrics["all"], metrics["intervals"]
    rows = [
        [name, shown(values[key]), _range(bounds[key]), MEANING[key]]
        for key, name in HEADLINE.items()
    ]
    share = values["num_positives"] / values["num_rows"] if values["num_rows"] else 0
    notes = [f"{values['num_rows']:,} rows, {share:.1%} positive."]
    if sentence := about_unknown_users(metrics):
        notes.append(f"{sentence}.")
    if oracle := metrics.get("oracle"):
        notes.append(
            f"The best possible AUC on these rows is {oracle['auc']:.4f}; the model recovers "
            f"{oracle['lift_recovered']:.1%} of its lift over 0.5."
        )
    table = html_table(["metric", "value", f"{level:.0%} interval", "meaning"], rows)
    return (
        f"<p>{' '.join(notes)} Intervals: the same numbers over resampled users.</p>"
        f'<div class="wide headline">{table}</div>'
    )


def _range(bounds: Sequence[float]) -> str:
    low, high = bounds
    return "-" if np.isnan(low) else f"{low:.4f} to {high:.4f}"


def _quality(
    metrics: Mapping[str, Any], predictions: Predictions, oracle_scores: NDArray | None
) -> list[str]:
    curves = {"model": (predictions.label, predictions.score)}
    if oracle_scores is not None:
        curves["best possible"] = (predictions.label, oracle_scores)
    bins = calibration_bins(predictions.label, predictions.score)
    seen = [
        [name.replace("_", " "), *(shown(metrics[name][key]) for key in ("num_rows", *_FEW))]
        for name in ITEM_KINDS
        if name in metrics and metrics[name]["num_rows"]
    ]
    cards = [
        _card("ROC curve", "Positives found against negatives let through.", figures.roc(curves)),
        _card(
            "Calibration",
            "Mean prediction against share of positives, by tenth of the predictions, with two "
            "standard errors. On the line a score means what it says.",
            figures.calibration(
                [b.mean_prediction for b in bins],
                [b.positive_rate for b in bins],
                [b.num_rows for b in bins],
            ),
        ),
        _card(
            "Scores",
            "How the predicted probabilities are distributed.",
            figures.score_distributions(predictions.label, predictions.score),
        ),
    ]
    if seen:
        header = ["rows of", "rows", *(HEADLINE[key] for key in _FEW)]
        text = (
            "Items without a training row can only be known by what they show and say; of an item "
            "unknown to the vocabulary the model knows nothing at all."
        )
        cards.append(
            _card("New items", text, f'<div class="wide">{html_table(header, seen)}</div>')
        )
    return cards


_FEW = ("auc", "log_loss", "gauc", "calibration")


def _lists(metrics: Mapping[str, Any]) -> list[str]:
    cards = []
    ranking = metrics.get("ranking", {})
    for kind in ("full", "sampled"):
        if kind not in ranking:
            continue
        found = ranking[kind]
        rows = [
            [name, shown(found[name]), _range(bounds)]
            for name, bounds in found["intervals"].items()
        ]
        text = f"Candidates: {found['candidates']}; mean over {ranking['num_users']:,} users."
        table = html_table(["metric", "value", "interval"], rows)
        cards.append(_card(f"Ranking, {kind} candidates", text, table))
    if lists := metrics.get("recommendations"):
        said = {
            "coverage": "of the catalogue recommended to anybody",
            "novelty": "bits of surprise of a recommended item",
            "popularity_lift": "recommendations more popular than the user's own taste by",
        }
        rows = []
        for name, value in lists.items():
            if name == "k":
                continue
            kind = name.removeprefix("diversity_")
            meaning = said.get(name, f"mean 1 - cosine of {kind} vectors within a list")
            rows.append([name.replace("_", " "), shown(value), meaning])
        text = f"The first {lists['k']} of each user's list."
        table = html_table(["", "value", "meaning"], rows)
        cards.append(_card("Beyond accuracy", text, f'<div class="wide headline">{table}</div>'))
    return cards


def _families(metrics: Mapping[str, Any], names: list[str]) -> list[str]:
    cards = []
    for family, members in metrics["segments"].items():
        if any(found["num_rows"] == metrics["all"]["num_rows"] for found in members.values()):
            continue
        large = {name: found for name, found in members.items() if "auc" in found}
        body = ""
        if large:
            body = figures.dots(
                list(large),
                [found["auc"] for found in large.values()],
                [found.get("auc_interval") for found in large.values()],
                reference=metrics["all"]["auc"],
                label="AUC; the broken line is all rows",
            )
        weighed = {name: found["weights"] for name, found in members.items() if "weights" in found}
        if len(weighed) > 1:
            shares = np.array([[means[name] for name in names] for means in weighed.values()])
            drawn = figures.stacked(list(weighed), shares, names, label="mean modality weight")
            body += f'<h3 class="sub">what counts</h3>{drawn}'
        if large:
            rows = [
                [name, *(shown(found[key]) for key in ("num_rows", "num_positives", *_FEW))]
                for name, found in large.items()
            ]
            header = ["", "rows", "positives", *(HEADLINE[key] for key in _FEW)]
            table = f'<div class="wide">{html_table(header, rows)}</div>'
            body += f"<details><summary>numbers</summary>{table}</details>"
        small = [
            f"{name} ({found['num_rows']:,} rows)"
            for name, found in members.items()
            if "note" in found and found["num_rows"]
        ]
        if small:
            body += f'<p class="note">Too small to tell: {html.escape(", ".join(small))}.</p>'
        empty = [name for name, found in members.items() if not found["num_rows"]]
        if empty:
            body += f'<p class="note">No rows: {html.escape(", ".join(empty))}.</p>'
        cards.append(_card(family[:1].upper() + family[1:], "", body))
    return cards


def _reasons(
    metrics: Mapping[str, Any],
    predictions: Predictions,
    names: list[str],
    planted: dict[str, tuple[NDArray, NDArray, float]] | None,
) -> list[str]:
    cards = []
    if entries := metrics.get("importance"):
        kinds = {"feature": 0, "item vector": 1, "history vector": 2}
        text = (
            "AUC lost when one input is dealt out anew among the rows and the rest stays. Blue: ids "
            "of a feature; orange: vectors of the item; green: vectors of the history."
        )
        drawn = figures.bars(
            [name_of_input(entry) for entry in entries],
            [entry["auc_lost"] for entry in entries],
            [entry["interval"] for entry in entries],
            [kinds[entry["kind"]] for entry in entries],
            label="AUC lost",
        )
        cards.append(_card("What the model uses", text, drawn))
    if "weights" not in metrics:
        return cards
    cards.append(
        _card(
            "Modality weights",
            "How much each modality counts in the fusion, row by row; dots are medians.",
            figures.weight_distributions(predictions.weights, names),
        )
    )
    if planted:
        text = (
            "Every dot is a user: what share of the sensitivities they were drawn with is the "
            "modality's, and what share of the weights the model gave it."
        )
        cards.append(_card("Learned and planted", text, figures.scatter(planted), "whole"))
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


def _spread(values: NDArray) -> str:
    """Return the sentence about interactions by item or user."""
    there = values[values > 0]
    if not there.size:
        return "Nobody has any."
    most = np.sort(there)[::-1][: max(1, there.size // 10)].sum() / there.sum()
    return (
        f"Median {np.median(there):,.0f} (broken line), most {there.max():,}; {most:.0%} belong to a "
        f"tenth; {values.size - there.size:,} have none."
    )


def _users(users: Sequence[SampleUser], names: list[str]) -> str:
    with_weights = any(r.weights for user in users for r in user.recommended)
    key = ""
    if with_weights:
        key = "".join(
            f'<span class="key"><i class="c{index}"></i>{html.escape(SHARES.get(name, name))}</span>'
            for index, name in enumerate(names)
        )
        key = f"<p>The bar below a recommendation is what counted in it: {key}</p>"
    with_pictures = any(
        item.picture is not None
        for user in users
        for item in [*user.liked, *(r.item for r in user.recommended)]
    )
    return key + "".join(_user(user, names, with_pictures) for user in users)


def _user(user: SampleUser, names: list[str], with_pictures: bool) -> str:
    facts = [f"{user.num_liked:,} liked before"]
    if user.planted:
        mix = ", ".join(f"{SHARES.get(n, n)} {share:.0%}" for n, share in user.planted.items())
        facts.append(f"drawn to care for {mix}")
    liked = "".join(f"<div>{_item(item, with_pictures, 168)}</div>" for item in user.liked)
    recommended = "".join(
        f"<div>{_recommendation(r, names, with_pictures)}</div>" for r in user.recommended
    )
    past = f'<h4>liked, latest first</h4><div class="items liked">{liked}</div>' if liked else ""
    return (
        f'<section class="user"><h3>user {html.escape(user.user_id)}</h3>'
        f"<p>{html.escape('; '.join(facts))}</p>{past}"
        f'<h4>recommended, best first</h4><div class="items">{recommended}</div></section>'
    )


def _item(item: Item, with_pictures: bool, side: int, over: str = "") -> str:
    picture = (
        picture_html(item, side, over) if with_pictures else f'<div class="plain">{over}</div>'
    )
    by = f'<div class="by">{html.escape(item.artist)}</div>' if item.artist else ""
    return f'{picture}<div class="name" title="{_title(item)}">{html.escape(item.name)}</div>{by}'


def _title(item: Item) -> str:
    tags = f"; {', '.join(item.tags[:8])}" if item.tags else ""
    return html.escape(f"{item.name} (id {item.item_id}){tags}")


def _recommendation(found: Recommendation, names: list[str], with_pictures: bool) -> str:
    over = f'<span class="score">{found.score:.2f}</span>'
    over += '<span class="hit">liked it</span>' if found.is_positive else ""
    mix = ""
    if found.weights:
        said = ", ".join(f"{SHARES.get(n, n)} {found.weights[n]:.0%}" for n in names)
        mix = "".join(
            f'<i class="c{index % len(COLOURS)}" style="width:{100 * found.weights[name]:.1f}%"></i>'
            for index, name in enumerate(names)
        )
        mix = f'<div class="mix" title="{html.escape(said)}">{mix}</div>'
    return _item(found.item, with_pictures, 236, over) + mix
