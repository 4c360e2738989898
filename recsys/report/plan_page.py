"""A sharding plan as a page: who holds what, how full every rank is, every table and rank in numbers.

In: the content of plan.json. Out: plan.html, one file, for light and dark. Called by launch/plan.py.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.files import write_text
from recsys.report.page import COLOURS, SORT_SCRIPT, page
from recsys.report.plan import RANK_COLUMNS, TABLE_COLUMNS, size

_MOST_COLUMNS = 128
"""Ranks drawn one by one; more are drawn host by host."""
_MOST_TABLES = 60

PARTS = {
    "weight_bytes": ("trainable values", COLOURS[0]),
    "frozen_bytes": ("frozen values", COLOURS[2]),
    "optimizer_bytes": ("optimizer state", COLOURS[1]),
    "gradient_bytes": ("gradients", COLOURS[3]),
    "buffer_bytes": ("buffers, caches", "#8a94a3"),
    "dense_bytes": ("dense part", "#d0a928"),
    "copy_bytes": ("copies for checkpoints", "#7a5ea8"),
}
"""What fills a rank, in the order it is stacked."""

_STYLE = """
section{margin:16px 0;overflow-x:auto}
section table{margin:8px 0 0}
th,td{padding:5px 10px;white-space:nowrap;font-variant-numeric:tabular-nums;font-size:14px}
td.text,th.text{text-align:left}
table.sortable th{cursor:pointer}
table.sortable th:hover{color:var(--ink)}
th[aria-sort=descending]::after{content:" \\2193"}
th[aria-sort=ascending]::after{content:" \\2191"}
.verdict{color:var(--ink);font-weight:600;border-left:4px solid #2b9a66;padding:2px 12px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}
.fact{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 14px}
.fact b{display:block;font-size:20px}.fact span{color:var(--soft);font-size:13px}
svg{display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.cell{fill:#2f6fde}.ground{fill:var(--line);fill-opacity:.45}.limit{stroke:#c0392b;stroke-width:1.5;
stroke-dasharray:4 3}
.legend{display:flex;flex-wrap:wrap;gap:14px;font-size:13px;color:var(--soft);margin:4px 0 10px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px}
"""


def write_plan_page(path: Path, content: Mapping[str, Any], *, title: str) -> None:
    """Write the page."""
    tables = sorted(content["tables"], key=lambda t: -_held(t))
    body = f"<p class=verdict>{html.escape(content['summary']['verdict'])}</p>"
    body += _facts(content)
    body += _section(
        "Memory of a rank", "What lies in the memory that holds the tables.", _bars(content)
    )
    body += _section(
        "Who holds what",
        "Values, optimizer state and gradients of a table on a rank: the darker, the more. "
        "Point at a cell for the number.",
        _heat_map(content, tables),
    )
    body += _section(
        "Tables",
        "Bytes are sums over all ranks; ids and vectors are what all ranks send in a step. "
        "Click a head to sort.",
        _table(TABLE_COLUMNS, _TABLE_KEYS, tables, ("table", "sharding", "kernel")),
    )
    body += _section(
        "Ranks",
        "Times are TorchRec's estimates for a step, forward and backward.",
        _table(RANK_COLUMNS, _RANK_KEYS, content["ranks"], ()),
    )
    whole = page(title, body, style=_STYLE, script=SORT_SCRIPT, width_pixels=1240)
    write_text(path, whole)


def _held(table: Mapping[str, Any]) -> int:
    return table["weight_bytes"] + table["optimizer_bytes"] + table["gradient_bytes"]


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{title}</h2><p>{text}</p>{body}</section>"


def _facts(content: Mapping[str, Any]) -> str:
    summary, cluster = content["summary"], content["cluster"]
    path = summary["critical_path"]
    facts = {
        f"{cluster['hosts']} x {cluster['accelerators_per_host']}": "hosts x ranks each",
        size(summary["table_bytes"]): "tables and optimizer state",
        size(summary["smallest_headroom_bytes"]): "to spare on the fullest rank",
        f"{summary['memory_imbalance']:.2f}": "memory, max / mean of the ranks",
        f"{summary['time_imbalance']:.2f}": "time, max / mean of the ranks",
        f"{summary['critical_path_ms']:.2f} ms": "a step (estimate): lookups "
        f"{path['lookup_ms']:.2f}, communication {path['communication_ms']:.2f}, dense "
        f"{path['dense_ms']:.2f}",
    }
    cells = (
        f"<div class=fact><b>{html.escape(value)}</b><span>{html.escape(text)}</span></div>"
        for value, text in facts.items()
    )
    return f"<div class=facts>{''.join(cells)}</div>"


def _columns(content: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    """Name and ranks of every drawn column: a rank each, or a host each where there are many."""
    num_ranks, local = content["num_ranks"], content["cluster"]["accelerators_per_host"]
    if num_ranks <= _MOST_COLUMNS:
        return [(f"rank {rank}", [rank]) for rank in range(num_ranks)]
    return [
        (f"host {first // local}", list(range(first, first + local)))
        for first in range(0, num_ranks, local)
    ]


def _bars(content: Mapping[str, Any]) -> str:
    """Stacked bars, one a rank (or the fullest of a host), against capacity and what is kept free."""
    ranks, on_accelerator = content["ranks"], content["cluster"]["device"] == "cuda"
    key = "hbm" if on_accelerator else "ddr"
    capacity = ranks[0][f"{key}_capacity_bytes"]
    free_from = capacity - ranks[0]["reserved_bytes"]
    # What lies in main memory on GPU is no part of the accelerator's bar.
    parts = {
        part: look for part, look in PARTS.items() if part != "copy_bytes" or not on_accelerator
    }
    columns = _columns(content)
    left, height, gap = 70, 190, 2
    width = max(4, min(40, (1130 - left) // len(columns) - gap))
    scale = height / capacity if capacity else 0

    def y(num_bytes: float) -> float:
        return round(10 + height - num_bytes * scale, 1)

    marks = []
    for index, (name, members) in enumerate(columns):
        rank = min((ranks[r] for r in members), key=lambda r: r["headroom_bytes"])
        x, top = left + index * (width + gap), 0.0
        marks.append(
            f"<rect class=ground x={x} y={y(capacity)} width={width} height={height}></rect>"
        )
        total = sum(rank[part] for part in parts)
        shrink = rank[f"{key}_bytes"] / total if total else 0
        for part, (label, colour) in parts.items():
            if rank[part]:
                tall = rank[part] * shrink
                marks.append(
                    f"<rect x={x} y={y(top + tall)} width={width} height={max(0.3, tall * scale):.1f} "
                    f'fill="{colour}"><title>{name}: {label} {size(tall)}</title></rect>'
                )
                top += tall
    right = left + len(columns) * (width + gap)
    ticks = "".join(
        f"<text x={left - 6} y={y(share * capacity) + 4} text-anchor=end>{size(share * capacity)}"
        f"</text>"
        for share in (0, 0.5, 1)
    )
    limit = f"<line class=limit x1={left} x2={right} y1={y(free_from)} y2={y(free_from)}></line>"
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{label}</span>'
        for label, colour in parts.values()
    )
    legend += "<span>dashed: above it is kept free</span>"
    names = _column_names(columns, left, width + gap, 10 + height + 16)
    return (
        f"<div class=legend>{legend}</div><svg width={right + 10} height={height + 40} "
        f"role=img>{''.join(marks)}{limit}{ticks}{names}</svg>"
    )


def _column_names(columns: Sequence[tuple[str, list[int]]], left: int, step: int, y: int) -> str:
    every = max(1, 34 // step + (34 % step > 0))
    return (
        "".join(
            f"<text x={left + index * step + step // 2} y={y} text-anchor=middle>"
            f"{name.split()[1]}</text>"
            for index, (name, _) in enumerate(columns)
            if index % every == 0
        )
        + f"<text x=4 y={y}>{columns[0][0].split()[0]}</text>"
    )


def _heat_map(content: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> str:
    """Rows are tables, columns ranks; opacity is the bytes held, as a share of the fullest cell."""
    columns = _columns(content)
    column_of = {rank: index for index, (_, ranks) in enumerate(columns) for rank in ranks}
    held: dict[str, list[float]] = {t["table"]: [0.0] * len(columns) for t in tables}
    for shard in content["shards"]:
        num_bytes = shard["bytes"] + shard["state_bytes"]
        if shard["rank"] is None:
            for index, (_, ranks) in enumerate(columns):
                held[shard["table"]][index] += num_bytes * len(ranks)
        else:
            held[shard["table"]][column_of[shard["rank"]]] += num_bytes
    shown = list(tables)[:_MOST_TABLES]
    most = max((max(held[t["table"]]) for t in shown), default=0) or 1
    left = 12 + 7 * max(len(t["table"]) for t in shown)
    step = max(6, min(42, (1150 - left) // len(columns)))
    tall, cells = 24, []
    for row, table in enumerate(shown):
        y = row * tall
        name = html.escape(table["table"])
        cells.append(f"<text x={left - 8} y={y + 16} text-anchor=end>{name}</text>")
        for index, (column, _) in enumerate(columns):
            num_bytes = held[table["table"]][index]
            # The square root keeps small tables visible beside one that is a thousand times larger.
            opacity = 0.08 + 0.92 * (num_bytes / most) ** 0.5 if num_bytes else 0
            shape = f"x={left + index * step} y={y + 1} width={step - 1} height={tall - 2}"
            cells.append(
                f"<rect class=cell {shape} fill-opacity={opacity:.3f}><title>{name} on {column}: "
                f"{size(num_bytes)}</title></rect>"
                if num_bytes
                else f"<rect class=ground {shape}></rect>"
            )
    names = _column_names(columns, left, step, len(shown) * tall + 16)
    more = len(tables) - len(shown)
    note = f"<p>{more:,} smaller tables are in the list below.</p>" if more > 0 else ""
    width = left + len(columns) * step + 10
    height = len(shown) * tall + 26
    drawing = f"<svg width={width} height={height} role=img>{''.join(cells)}{names}</svg>"
    return drawing + note


_TABLE_KEYS = {
    "rows": "rows",
    "width": "width",
    "values": "weight_bytes",
    "state": "optimizer_bytes",
    "gradients": "gradient_bytes",
    "ids": "input_bytes_per_step",
    "vectors": "output_bytes_per_step",
}
_RANK_KEYS = {
    "rank": "rank",
    "tables": "num_tables",
    "HBM": "hbm_bytes",
    "DDR": "ddr_bytes",
    "headroom": "headroom_bytes",
    "lookups ms": "lookup_ms",
    "communication ms": "communication_ms",
    "dense ms": "dense_ms",
}


def _table(
    columns: Mapping[str, Any],
    keys: Mapping[str, str],
    lines: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
) -> str:
    """Return a sortable table; `keys` says which number of a line orders a column."""

    def kind(name: str) -> str:
        return " class=text" if name in texts else ""

    def key(name: str, line: Mapping[str, Any]) -> str:
        return f" data-key='{html.escape(str(line[keys[name]]))}'" if name in keys else ""

    head = "".join(f"<th{kind(name)}>{html.escape(name)}</th>" for name in columns)
    rows = []
    for line in lines:
        cells = (
            f"<td{kind(name)}{key(name, line)}>{html.escape(text(line))}</td>"
            for name, text in columns.items()
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
