"""Nearest neighbours for people and programs: an HTML page and its content as JSON.

In: items and what is nearest to them by each modality. Out: neighbours.html and neighbours.json.
Called by launch/neighbours.py; recsys/report/sheet.py draws the same as one picture.
"""

import dataclasses
import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.files import write_json
from recsys.report.items import Item, picture_html, short
from recsys.report.page import COLOURS, html_table, page
from recsys.runtime.threads import ProcessConfig

MODALITIES = {
    "semantic": "what is shown",
    "style": "how it is painted",
    "text": "what is said of it",
}
"""The groups of a page, in order, and what they mean."""

MARKS = {"artist": COLOURS[3], "content": COLOURS[0], "tags": COLOURS[2]}
"""What a neighbour may share with the picture asked about, and its colour."""

WORDING = {"artist": "same artist", "content": "same content", "tags": "tags shared"}
"""What a mark says."""

EXCLUDE_SAME = ("none", "artist", "content")


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """What is asked and shown.

    `exclude_same` holds for all modalities at once, so that the groups answer the same question and
    can be compared. Without it the nearest by style are often the other pictures of one series, and
    it cannot be seen whether they are near for the hand or for the subject. `content` leaves out
    pictures of the same thing: what remains near by style is near for the hand. `artist` leaves out
    pictures by the same hand: what remains near in semantics is near for what it shows, and near by
    style are the hands that paint alike. Where the artist (or the content) of the item asked about
    is unknown, nothing is left out for it.
    """

    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads."""
    items: list[str] = field(default_factory=list)
    """Ids of the items asked about; empty: a seeded sample, spread over artists and contents."""
    num_queries: int = 6
    """Items of the sample."""
    k: int = 5
    """Neighbours of each modality."""
    exclude_same: str = "none"
    """`artist` or `content`: items that share it with the one asked about are left out; `none`."""
    seed: int = 0
    """Of the sample."""
    sheet_width: int = 1400
    """Pixels of sheet.png."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """An item beside the one asked about."""

    item: Item
    similarity: float
    """Cosine."""
    same_artist: bool
    same_content: bool
    shared_tags: int
    """How many of the tags of the item asked about it has too."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An item asked about and its neighbours by modality; best first."""

    item: Item
    groups: dict[str, list[Neighbour] | None]
    """None: the item has no vector of this modality."""


def neighbour(asked: Item, item: Item, similarity: float) -> Neighbour:
    """Return `item` with what it shares with the item asked about; the unknown is shared by none."""
    return Neighbour(
        item=item,
        similarity=similarity,
        same_artist=asked.artist is not None and asked.artist == item.artist,
        same_content=asked.content is not None and asked.content == item.content,
        shared_tags=len(set(asked.tags) & set(item.tags)),
    )


def known_marks(answers: list[Answer], exclude_same: str = "none") -> list[str]:
    """Return which marks can appear: what an item asked about has and its neighbours may share."""
    return [
        mark
        for mark in MARKS
        if mark != exclude_same and any(getattr(a.item, mark) for a in answers)
    ]


def summarise(answers: list[Answer]) -> dict[str, dict[str, Any]]:
    """Return, by modality, the number of neighbours shown and how many share what.

    Only neighbours of items whose artist (content, tags) is known count; a share is null where there
    are none. `tags` is the mean share of the item's tags.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name in answers[0].groups if answers else ():
        pairs = [(a.item, n) for a in answers for n in a.groups[name] or ()]
        artist = [n.same_artist for item, n in pairs if item.artist is not None]
        content = [n.same_content for item, n in pairs if item.content is not None]
        tags = [n.shared_tags / len(set(item.tags)) for item, n in pairs if item.tags]
        summary[name] = {"neighbours": len(pairs)}
        for mark, shares in (("artist", artist), ("content", content), ("tags", tags)):
            summary[name][mark] = sum(shares) / len(shares) if shares else None
    return summary


def write_neighbours(
    folder: Path,
    *,
    title: str,
    notes: list[str],
    answers: list[Answer],
    marks: list[str],
    settings: dict[str, Any],
) -> None:
    """Write neighbours.json and neighbours.html.

    Args:
        notes: sentences below the title, plain text.
        marks: which are shown (`known_marks`).
        settings: written to the JSON as they are.
    """
    summary = summarise(answers)
    content = {
        **settings,
        "notes": notes,
        "summary": summary,
        "queries": [_answer_json(answer) for answer in answers],
    }
    write_json(folder / "neighbours.json", content)
    text = _page(title, notes, answers, marks, summary)
    (folder / "neighbours.html").write_text(text, encoding="utf-8")


def has_pictures(answers: list[Answer]) -> bool:
    """Return whether any item has a picture to show."""
    items = [a.item for a in answers]
    items += [n.item for a in answers for group in a.groups.values() for n in group or ()]
    return any(item.picture is not None for item in items)


def _item_json(item: Item) -> dict[str, Any]:
    known = {f.name: getattr(item, f.name) for f in dataclasses.fields(Item)}
    return {name: value for name, value in known.items() if name != "picture"}


def _answer_json(answer: Answer) -> dict[str, Any]:
    groups = {
        name: None
        if group is None
        else [
            {
                **_item_json(n.item),
                "similarity": round(n.similarity, 6),
                "same_artist": n.same_artist,
                "same_content": n.same_content,
                "shared_tags": n.shared_tags,
            }
            for n in group
        ]
        for name, group in answer.groups.items()
    }
    return {**_item_json(answer.item), "neighbours": groups}


_STYLE = """
h1{margin-bottom:6px}h2{overflow-wrap:anywhere}h3{font-size:15px;margin:0 0 8px}
h3 small{font-weight:400;color:var(--soft);font-size:13px;margin-left:6px}
.summary{max-width:620px}
section{display:flex;gap:28px;margin:18px 0;align-items:flex-start}
.asked{flex:0 0 148px;min-width:0}.asked h2{font-size:16px;line-height:1.3;margin:10px 0 2px}
.asked h2:first-child{margin-top:0}
.groups{flex:1;min-width:0;display:grid;gap:22px 28px;
grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr))}
ol{list-style:none;margin:0;padding:0;display:grid;gap:10px;align-items:start;
grid-template-columns:repeat(var(--k),minmax(0,1fr))}
ol.titles{grid-template-columns:1fr;gap:0}
ol.titles li{padding:7px 0;border-top:1px solid var(--line);font-size:14px}
li{font-size:12px;line-height:1.3;min-width:0}
.picture{position:relative;display:block;aspect-ratio:1;border-radius:7px;overflow:hidden;
background:var(--line)}
.picture img{display:block;width:100%;height:100%;object-fit:cover}
.picture .empty{position:absolute;inset:0;display:grid;place-content:center;text-align:center;
color:var(--soft);font-size:12px}
.near{position:absolute;right:4px;bottom:4px;padding:0 5px;border-radius:5px;
background:#000a;color:#fff;font-size:11px;font-variant-numeric:tabular-nums}
.titles .near{position:static;float:right;background:none;color:var(--soft);font-size:13px}
.name{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden;
overflow-wrap:anywhere;margin-top:5px}
.titles .name{margin:0}
.by,.fact{color:var(--soft);overflow-wrap:anywhere}
.fact{font-size:13px;line-height:1.4}.fact b{font-weight:400;color:var(--ink)}
.mark{display:inline-block;margin:3px 3px 0 0;padding:0 5px;border-radius:4px;color:#fff;
font-size:11px;line-height:16px;max-width:calc(100% - 10px);overflow:hidden;
text-overflow:ellipsis;white-space:nowrap;vertical-align:top}
.none{color:var(--soft);font-size:14px;margin:0}
@media(max-width:720px){section{flex-direction:column}.asked .picture{width:200px}
ol{--k:3!important}ol.titles{--k:1!important}}
"""
_STYLE += "".join(f".{mark}{{background:{colour}}}" for mark, colour in MARKS.items())


def _page(
    title: str,
    notes: list[str],
    answers: list[Answer],
    marks: list[str],
    summary: dict[str, dict[str, Any]],
) -> str:
    with_pictures = has_pictures(answers)
    legend = "".join(f'<span class="mark {mark}">{WORDING[mark]}</span>' for mark in marks)
    head = f"<p>{html.escape(' '.join(notes))} {legend}</p>"
    if marks:
        rows = [
            [name, *(_percent(values[mark]) for mark in marks), f"{values['neighbours']:,}"]
            for name, values in summary.items()
        ]
        columns = ["nearest by", *(WORDING[mark] for mark in marks), "shown"]
        head += f'<div class="summary">{html_table(columns, rows)}</div>'
    sections = "".join(_section(answer, marks, with_pictures) for answer in answers)
    return page(title, head + sections, style=_STYLE, width_pixels=1680 if with_pictures else 1080)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _section(answer: Answer, marks: list[str], with_pictures: bool) -> str:
    item = answer.item
    lines = [picture_html(item, 336)] if with_pictures else []
    lines.append(f"<h2>{html.escape(item.name)}</h2>")
    facts = {
        "artist": item.artist,
        "content": item.content,
        "tags": _listed(item.tags),
        "id": item.item_id,
    }
    lines += [
        f'<div class="fact">{name} <b>{html.escape(short(text))}</b></div>'
        for name, text in facts.items()
        if text
    ]
    groups = "".join(
        f"<div><h3>{html.escape(name)}<small>{html.escape(MODALITIES[name])}</small></h3>"
        f"{_group(answer, group, marks, with_pictures)}</div>"
        for name, group in answer.groups.items()
    )
    asked = f'<div class="asked">{"".join(lines)}</div>'
    return f'<section>{asked}<div class="groups">{groups}</div></section>'


def _group(
    answer: Answer, group: list[Neighbour] | None, marks: list[str], with_pictures: bool
) -> str:
    if not group:
        return f'<p class="none">{html.escape(why_empty(group))}</p>'
    kind = "" if with_pictures else ' class="titles"'
    entries = "".join(_entry(answer.item, n, marks, with_pictures) for n in group)
    return f'<ol{kind} style="--k:{len(group)}">{entries}</ol>'


def why_empty(group: list[Neighbour] | None) -> str:
    """Return the sentence that stands for an empty group."""
    return "It has no vector of this kind." if group is None else "No other item qualifies."


def _entry(asked: Item, near: Neighbour, marks: list[str], with_pictures: bool) -> str:
    item = near.item
    details = f"{item.name} (id {item.item_id})" + (f"; {_listed(item.tags)}" if item.tags else "")
    similarity = f'<span class="near">{near.similarity:.2f}</span>'
    lines = [picture_html(item, 168, similarity) if with_pictures else similarity]
    lines.append(f'<div class="name">{html.escape(item.name)}</div>')
    if item.artist and not near.same_artist:
        lines.append(f'<div class="by">{html.escape(short(item.artist))}</div>')
    shared = {
        "artist": short(item.artist or "") if near.same_artist else "",
        "content": "same content" if near.same_content else "",
        "tags": f"{near.shared_tags}/{len(set(asked.tags))} tags" if near.shared_tags else "",
    }
    lines += [f'<span class="mark {m}">{html.escape(shared[m])}</span>' for m in marks if shared[m]]
    return f'<li title="{html.escape(details)}">{"".join(lines)}</li>'


def _listed(tags: tuple[str, ...]) -> str:
    shown = ", ".join(tags[:6])
    return shown if len(tags) <= 6 else f"{shown} and {len(tags) - 6} more"
