"""The sharding plan as an HTML page: memory of every rank, a heat map of tables by ranks, all numbers.

In: a Plan (recsys.sharding.plan). Out: plan.html, one file, with a dark mode. Called by launch/plan.py.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recsys.files import write_text
from recsys.report.page import COLOURS, SORT_SCRIPT, page
from recsys.report.plan import Record, rank_columns, size, table_columns
from recsys.sharding.plan import Plan, RankLoad, TablePlan

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
    "array_bytes": ("arrays of the data", "#3f8f8b"),
    "copy_bytes": ("copies for checkpoints", "#7a5ea8"),
}
"""Contents of a rank's memory, in the order they are stacked."""

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


def write_plan_page(path: Path, plan: Plan, *, title: str) -> None:
    """Write the page."""
    tables = sorted(plan.tables, key=lambda t: -_held(t))
    body = f"<p class=verdict>{html.escape(plan.summary.verdict)}</p>"
    body += _facts(plan)
    body += _section("Memory of a rank", "Use of the memory that holds the tables.", _bars(plan))
    body += _section(
        "Tables by ranks",
        "Values, optimizer state and gradients of a table on a rank: the darker, the more. "
        "Point at a cell for the number.",
        _heat_map(plan, tables),
    )
    body += _section(
        "Tables",
        "Bytes are sums over all ranks; ids and vectors are what all ranks send in a step. "
        "Click a head to sort.",
        _table(table_columns(plan), _TABLE_KEYS, tables, ("table", "sharding", "kernel")),
    )
    body += _section(
        "Ranks",
        "Times are TorchRec's estimates for a step, forward and backward.",
        _table(rank_columns(plan), _RANK_KEYS, plan.ranks, ()),
    )
    whole = page(title, body, style=_STYLE, script=SORT_SCRIPT, width_pixels=1240)
    write_text(path, whole)


def _held(table: TablePlan) -> int:
    return table.weight_bytes + table.optimizer_bytes + table.gradient_bytes


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{title}</h2><p>{text}</p>{body}</section>"


def _facts(plan: Plan) -> str:
    summary, cluster, path = plan.summary, plan.cluster, plan.summary.critical_path
    facts = {
        f"{cluster.hosts} x {cluster.accelerators_per_host}": "hosts x ranks each",
        size(summary.table_bytes): "tables and optimizer state",
        size(summary.smallest_headroom_bytes): "to spare on the fullest rank",
        f"{summary.memory_imbalance:.2f}": "memory, max / mean of the ranks",
        f"{summary.time_imbalance:.2f}": "time, max / mean of the ranks",
        f"{summary.critical_path_ms:.2f} ms": "a step (estimate): lookups "
        f"{path.lookup_ms:.2f}, communication {path.communication_ms:.2f}, dense "
        f"{path.dense_ms:.2f}",
    }
    cells = (
        f"<div class=fact><b>{html.escape(value)}</b><span>{html.escape(text)}</span></div>"
        for value, text in facts.items()
    )
    return f"<div class=facts>{''.join(cells)}</div>"


def _columns(plan: Plan) -> list[tuple[str, list[int]]]:
    """Name and ranks of every drawn column: a rank each, or a host each where there are many."""
    num_ranks, local = plan.num_ranks, plan.cluster.accelerators_per_host
    if num_ranks <= _MOST_COLUMNS:
        return [(f"rank {rank}", [rank]) for rank in range(num_ranks)]
    return [
        (f"host {first // local}", list(range(first, first + local)))
        for first in range(0, num_ranks, local)
    ]


_BAR_HEIGHT = 190
"""Pixels of a full rank."""


def _bars(plan: Plan) -> str:
    """Stacked bars, one a rank (or the fullest of a host), against capacity and what is kept free."""
    on_accelerator, first = plan.cluster.device == "cuda", plan.ranks[0]
    capacity = first.hbm_capacity_bytes if on_accelerator else first.ddr_capacity_bytes
    # Tables in main memory on GPU are no part of the accelerator's bar.
    parts = {
        part: look for part, look in PARTS.items() if part != "copy_bytes" or not on_accelerator
    }
    columns = _columns(plan)
    left, gap = 70, 2
    width = max(4, min(40, (1130 - left) // len(columns) - gap))

    def y(num_bytes: float) -> float:
        return round(10 + _BAR_HEIGHT * (1 - num_bytes / capacity if capacity else 1), 1)

    marks = ""
    for index, (name, members) in enumerate(columns):
        rank = min((plan.ranks[r] for r in members), key=lambda r: r.headroom_bytes)
        marks += _bar(rank, name, parts, left + index * (width + gap), width, y, on_accelerator)
    right = left + len(columns) * (width + gap)
    ticks = "".join(
        f"<text x={left - 6} y={y(share * capacity) + 4} text-anchor=end>{size(share * capacity)}"
        f"</text>"
        for share in (0, 0.5, 1)
    )
    free_from = y(capacity - first.reserved_bytes)
    limit = f"<line class=limit x1={left} x2={right} y1={free_from} y2={free_from}></line>"
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{label}</span>'
        for label, colour in parts.values()
    )
    legend += "<span>dashed: above it is kept free</span>"
    names = _column_names(columns, left, width + gap, 10 + _BAR_HEIGHT + 16)
    return (
        f"<div class=legend>{legend}</div><svg width={right + 10} height={_BAR_HEIGHT + 40} "
        f"role=img>{marks}{limit}{ticks}{names}</svg>"
    )


def _bar(
    rank: RankLoad,
    name: str,
    parts: Mapping[str, tuple[str, str]],
    x: int,
    width: int,
    y: Callable[[float], float],
    on_accelerator: bool,
) -> str:
    """Return one stacked bar; `y` maps bytes to the pixel of their top."""
    top = 0.0
    marks = f"<rect class=ground x={x} y=10 width={width} height={_BAR_HEIGHT}></rect>"
    amounts = {part: getattr(rank, part) for part in parts}
    total = sum(amounts.values())
    used = rank.hbm_bytes if on_accelerator else rank.ddr_bytes
    shrink = used / total if total else 0
    for part, (label, colour) in parts.items():
        if amounts[part]:
            tall = amounts[part] * shrink
            height = max(0.3, y(top) - y(top + tall))
            marks += (
                f"<rect x={x} y={y(top + tall)} width={width} height={height:.1f} "
                f'fill="{colour}"><title>{name}: {label} {size(tall)}</title></rect>'
            )
            top += tall
    return marks


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


def _heat_map(plan: Plan, tables: Sequence[TablePlan]) -> str:
    """Rows are tables, columns ranks; opacity is the bytes held, as a share of the fullest cell."""
    columns = _columns(plan)
    held = _held_by_column(plan, columns)
    shown = [table.table for table in tables[:_MOST_TABLES]]
    most = max((max(held[name]) for name in shown), default=0) or 1
    left = 12 + 7 * max(len(name) for name in shown)
    step = max(6, min(42, (1150 - left) // len(columns)))
    tall, cells = 24, []
    for row, table in enumerate(shown):
        y, name = row * tall, html.escape(table)
        cells.append(f"<text x={left - 8} y={y + 16} text-anchor=end>{name}</text>")
        for index, (column, _) in enumerate(columns):
            num_bytes = held[table][index]
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


def _held_by_column(plan: Plan, columns: Sequence[tuple[str, list[int]]]) -> dict[str, list[int]]:
    """Return the bytes of values, state and gradients in every column, by table name."""
    column_of = {rank: index for index, (_, ranks) in enumerate(columns) for rank in ranks}
    held: dict[str, list[int]] = {t.table: [0] * len(columns) for t in plan.tables}
    for shard in plan.shards:
        num_bytes = shard.bytes + shard.state_bytes
        if shard.rank is None:
            for index, (_, ranks) in enumerate(columns):
                held[shard.table][index] += num_bytes * len(ranks)
        else:
            held[shard.table][column_of[shard.rank]] += num_bytes
    return held


_TABLE_KEYS = {
    "rows": "rows",
    "width": "width",
    "values": "weight_bytes",
    "state": "optimizer_bytes",
    "gradients": "gradient_bytes",
    "HBM cache": "cache_bytes",
    "DDR": "host_bytes",
    "SSD": "ssd_bytes",
    "ids": "input_bytes_per_step",
    "vectors": "output_bytes_per_step",
}
_RANK_KEYS = {
    "rank": "rank",
    "tables": "num_tables",
    "HBM": "hbm_bytes",
    "DDR": "ddr_bytes",
    "SSD": "ssd_bytes",
    "headroom": "headroom_bytes",
    "lookups ms": "lookup_ms",
    "of them SSD": "ssd_ms",
    "communication ms": "communication_ms",
    "dense ms": "dense_ms",
}


def _table(
    columns: Mapping[str, Callable[[Record], str]],
    keys: Mapping[str, str],
    records: Sequence[Record],
    texts: Sequence[str],
) -> str:
    """Return a sortable table; `keys` says which field of a record orders a column."""

    def kind(name: str) -> str:
        return " class=text" if name in texts else ""

    def key(name: str, record: Record) -> str:
        return f" data-key='{getattr(record, keys[name])}'" if name in keys else ""

    head = "".join(f"<th{kind(name)}>{html.escape(name)}</th>" for name in columns)
    rows = []
    for record in records:
        cells = (
            f"<td{kind(name)}{key(name, record)}>{html.escape(text(record))}</td>"
            for name, text in columns.items()
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
