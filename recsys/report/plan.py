"""The sharding plan in the terminal: verdict, tables and ranks.

In: a Plan (recsys.sharding.plan). Called by launch/plan.py and launch/train.py;
recsys/report/plan_page.py draws the same as a page.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.table import Table

from recsys.report.terminal import console
from recsys.run.planning import RatedCluster
from recsys.run.suggestions import Suggestion
from recsys.sharding.plan import Plan, RankLoad, TablePlan

Record = TypeVar("Record", TablePlan, RankLoad)

_MOST_RANKS = 16
_MOST_TABLES = 40


def size(num_bytes: float) -> str:
    """Return bytes for people: three digits and a unit of powers of 1,000."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(num_bytes) < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.2f} TB"


def sharding_of(table: TablePlan) -> str:
    """Return a table's sharding type and its number of ranks."""
    return f"{table.sharding} x{table.num_ranks}"


def kernel_of(table: TablePlan) -> str:
    """Return a table's kernel, with the cached share where there is one."""
    cached = table.cache_load_factor
    return table.kernel if cached is None else f"{table.kernel} {cached:.0%}"


TABLE_COLUMNS: dict[str, Callable[[TablePlan], str]] = {
    "table": lambda t: t.table + (" (frozen)" if t.frozen else ""),
    "rows": lambda t: f"{t.rows:,}",
    "width": lambda t: f"{t.width} {t.dtype}",
    "sharding": sharding_of,
    "kernel": kernel_of,
    "values": lambda t: size(t.weight_bytes),
    "state": lambda t: size(t.optimizer_bytes),
    "gradients": lambda t: size(t.gradient_bytes),
    "HBM cache": lambda t: size(t.cache_bytes),
    "DDR": lambda t: size(t.host_bytes),
    "SSD": lambda t: size(t.ssd_bytes),
    "ids": lambda t: size(t.input_bytes_per_step),
    "vectors": lambda t: size(t.output_bytes_per_step),
}
"""Columns of a plan's tables; bytes are sums over all ranks, those of ids and vectors sent a step."""
_OF_SSD = ("HBM cache", "DDR", "SSD")
"""Columns of tables that only those on SSD fill."""

RANK_COLUMNS: dict[str, Callable[[RankLoad], str]] = {
    "rank": lambda r: str(r.rank),
    "tables": lambda r: str(r.num_tables),
    "HBM": lambda r: size(r.hbm_bytes) if r.hbm_capacity_bytes else "-",
    "DDR": lambda r: size(r.ddr_bytes),
    "SSD": lambda r: size(r.ssd_bytes),
    "headroom": lambda r: size(r.headroom_bytes),
    "lookups ms": lambda r: f"{r.lookup_ms:.3f}",
    "of them SSD": lambda r: f"{r.ssd_ms:.3f}",
    "communication ms": lambda r: f"{r.communication_ms:.3f}",
    "dense ms": lambda r: f"{r.dense_ms:.3f}",
}
"""Columns of a plan's ranks."""

_LEFT = ("table", "sharding", "kernel")


def table_columns(plan: Plan) -> dict[str, Callable[[TablePlan], str]]:
    """Return the columns of a plan's tables, without those of SSD where none is on it."""
    return {n: text for n, text in TABLE_COLUMNS.items() if plan.on_ssd or n not in _OF_SSD}


def rank_columns(plan: Plan) -> dict[str, Callable[[RankLoad], str]]:
    """Return the columns of a plan's ranks, without those of SSD where no table is on it."""
    return {n: text for n, text in RANK_COLUMNS.items() if plan.on_ssd or "SSD" not in n}


def print_plan(plan: Plan) -> None:
    """Print the verdict, a table per embedding table, a table per rank, and what limits a step."""
    summary, path = plan.summary, plan.summary.critical_path
    console().print(summary.verdict, highlight=False, soft_wrap=True)
    title = f"sharding plan, {plan.num_ranks} rank(s)"
    columns = table_columns(plan)
    if not any(table.gradient_bytes for table in plan.tables):
        del columns["gradients"]  # kept for replicated tables only
    tables = sorted(plan.tables, key=lambda t: -t.weight_bytes)
    _print(title, columns, tables, _MOST_TABLES, "smaller tables")
    _print("ranks", rank_columns(plan), plan.ranks, _MOST_RANKS, "ranks")
    console().print(
        f"imbalance (max / mean): memory {summary.memory_imbalance:.2f}, time "
        f"{summary.time_imbalance:.2f}; critical path of a step "
        f"{summary.critical_path_ms:.3f} ms = lookups {path.lookup_ms:.3f} + communication "
        f"{path.communication_ms:.3f} + dense {path.dense_ms:.3f} (estimates)",
        highlight=False,
        soft_wrap=True,
    )
    if plan.num_ranks > 1:
        exchange = plan.communication
        console().print(
            f"exchange between ranks: vectors in {exchange.forward}, their gradients in "
            f"{exchange.backward}",
            highlight=False,
            soft_wrap=True,
        )


def _print(
    title: str,
    columns: Mapping[str, Callable[[Record], str]],
    records: Sequence[Record],
    most: int,
    rest: str,
) -> None:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for record in records[:most]:
        table.add_row(*(text(record) for text in columns.values()))
    console().print(table)
    if len(records) > most:
        console().print(f"... and {len(records) - most:,} more {rest}, in plan.json")


def print_suggestions(suggestions: Iterable[Suggestion]) -> int:
    """Print changes that make a plan fit or quicker, as they are found; return their number."""
    count = 0
    for count, suggestion in enumerate(suggestions, start=1):
        console().print(f"  {count}. {suggestion.change}", highlight=False, soft_wrap=True)
        console().print(f"     {suggestion.keys}", highlight=False, soft_wrap=True)
        console().print(f"     planned: {suggestion.verdict}", highlight=False, soft_wrap=True)
    return count


def print_clusters(rated: Sequence[RatedCluster]) -> None:
    """Print one line a cluster: name, ranks, memory, verdict, estimated rows a second."""
    table = Table(title="clusters, smallest first", title_justify="left")
    for name in ("cluster", "ranks", "memory of tables", "fits", "rows/s (estimate)", "verdict"):
        right = name in ("ranks", "memory of tables", "rows/s (estimate)")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in rated:
        cluster, plan = line.cluster, line.plan
        table.add_row(
            cluster.name,
            str(cluster.num_ranks),
            size(cluster.num_ranks * cluster.table_memory_bytes),
            "no" if plan is None else "yes",
            "-" if plan is None else f"{plan.examples_per_second:,.0f}",
            line.verdict,
        )
    console().print(table)
