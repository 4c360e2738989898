"""The sharding plan for people: verdict, tables and ranks in the terminal.

In: the content of plan.json (recsys.sharding.plan). Called by launch/plan.py and launch/train.py;
recsys/report/plan_page.py draws the same as a page.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from recsys.report.terminal import console

_MOST_RANKS = 16
_MOST_TABLES = 40


def size(num_bytes: float) -> str:
    """Return bytes for people: three digits and a unit of powers of 1,000."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(num_bytes) < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.2f} TB"


def sharding_of(table: Mapping[str, Any]) -> str:
    """Return how a table is cut, on how many ranks."""
    return f"{table['sharding']} x{table['num_ranks']}"


def kernel_of(table: Mapping[str, Any]) -> str:
    """Return a table's kernel, with the cached share where there is one."""
    cached = table["cache_load_factor"]
    return table["kernel"] if cached is None else f"{table['kernel']} {cached:.0%}"


TABLE_COLUMNS = {
    "table": lambda t: t["table"] + (" (frozen)" if t["frozen"] else ""),
    "rows": lambda t: f"{t['rows']:,}",
    "width": lambda t: f"{t['width']} {t['dtype']}",
    "sharding": sharding_of,
    "kernel": kernel_of,
    "values": lambda t: size(t["weight_bytes"]),
    "state": lambda t: size(t["optimizer_bytes"]),
    "gradients": lambda t: size(t["gradient_bytes"]),
    "ids": lambda t: size(t["input_bytes_per_step"]),
    "vectors": lambda t: size(t["output_bytes_per_step"]),
}
"""Columns of a plan's tables; bytes are sums over all ranks, those of ids and vectors sent a step."""

RANK_COLUMNS = {
    "rank": lambda r: str(r["rank"]),
    "tables": lambda r: str(r["num_tables"]),
    "HBM": lambda r: size(r["hbm_bytes"]) if r["hbm_capacity_bytes"] else "-",
    "DDR": lambda r: size(r["ddr_bytes"]),
    "headroom": lambda r: size(r["headroom_bytes"]),
    "lookups ms": lambda r: f"{r['lookup_ms']:.3f}",
    "communication ms": lambda r: f"{r['communication_ms']:.3f}",
    "dense ms": lambda r: f"{r['dense_ms']:.3f}",
}
"""Columns of a plan's ranks."""

_LEFT = ("table", "sharding", "kernel")


def print_plan(content: Mapping[str, Any]) -> None:
    """Print the verdict, a table per embedding table, a table per rank, and what limits a step."""
    summary = content["summary"]
    console().print(summary["verdict"], highlight=False, soft_wrap=True)
    title = f"sharding plan, {content['num_ranks']} rank(s)"
    tables = sorted(content["tables"], key=lambda t: -t["weight_bytes"])
    _print(title, TABLE_COLUMNS, tables, _MOST_TABLES, "smaller tables")
    _print("ranks", RANK_COLUMNS, content["ranks"], _MOST_RANKS, "ranks")
    path = summary["critical_path"]
    console().print(
        f"imbalance (max / mean): memory {summary['memory_imbalance']:.2f}, time "
        f"{summary['time_imbalance']:.2f}; critical path of a step "
        f"{summary['critical_path_ms']:.3f} ms = lookups {path['lookup_ms']:.3f} + communication "
        f"{path['communication_ms']:.3f} + dense {path['dense_ms']:.3f} (estimates)",
        highlight=False,
        soft_wrap=True,
    )


def _print(
    title: str,
    columns: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    most: int,
    rest: str,
) -> None:
    table = Table(title=title, title_justify="left")
    # Gradients are kept for replicated tables only.
    empty = {"gradients"} if not any(line.get("gradient_bytes") for line in lines) else set()
    shown = {name: text for name, text in columns.items() if name not in empty}
    for name in shown:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for line in lines[:most]:
        table.add_row(*(text(line) for text in shown.values()))
    console().print(table)
    if len(lines) > most:
        console().print(f"... and {len(lines) - most:,} more {rest}, in plan.json")


def print_suggestions(suggestions: Iterable[Any]) -> int:
    """Print changes that make a plan fit, as they are found; return their number."""
    count = 0
    for count, suggestion in enumerate(suggestions, start=1):
        console().print(f"  {count}. {suggestion.change}", highlight=False, soft_wrap=True)
        console().print(f"     {suggestion.keys}", highlight=False, soft_wrap=True)
        console().print(f"     planned: {suggestion.verdict}", highlight=False, soft_wrap=True)
    return count


def print_clusters(rows: Sequence[Sequence[str]]) -> None:
    """Print one line a cluster: name, ranks, memory, verdict, estimated rows a second."""
    table = Table(title="clusters, smallest first", title_justify="left")
    for name in ("cluster", "ranks", "memory of tables", "fits", "rows/s (estimate)", "verdict"):
        right = name in ("ranks", "memory of tables", "rows/s (estimate)")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)
