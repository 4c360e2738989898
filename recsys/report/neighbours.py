"""Nearest neighbours for people and programs: an HTML page and its content as JSON.

In: Answers (recsys/report/neighbour_answers.py). Out: neighbours.html and neighbours.json. Called by
launch/neighbours.py.
"""

import dataclasses
import html
from pathlib import Path
from typing import Any

from recsys.files import write_json
from recsys.report.items import Item, picture_html, short
from recsys.report.neighbour_answers import (
    MARKS,
    MODALITIES,
    WORDING,
    Answer,
    Neighbour,
    has_pictures,
    summarise,
    why_empty,
)
from recsys.report.page import html_table, page


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
