"""The sharding plan for people: a table in the terminal and plan.json beside the run."""

from pathlib import Path
from typing import Any

from rich.table import Table

from recsys.report.terminal import console
from recsys.schema import write_json


def write_plan(path: Path, lines: list[dict[str, Any]], num_ranks: int) -> None:
    """Write the plan as JSON: table -> sharding -> rank -> rows, columns, bytes.

    `lines` come from recsys.distributed.plan.plan_rows.
    """
    write_json(path, {"num_ranks": num_ranks, "shards": lines})


def print_plan(lines: list[dict[str, Any]], num_ranks: int) -> None:
    """Print one line per table: sharding, rows, width, and bytes on each of the first ranks."""
    table = Table(title=f"sharding plan, {num_ranks} rank(s)", title_justify="left")
    for column in ("table", "sharding", "rows", "width"):
        table.add_column(column, justify="left" if column in ("table", "sharding") else "right")
    shown_ranks = range(min(num_ranks, 8))
    for rank in shown_ranks:
        table.add_column(f"rank {rank}", justify="right")
    by_table: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_table.setdefault(line["table"], []).append(line)
    for name, shards in by_table.items():
        size = {rank: 0 for rank in shown_ranks}
        for shard in shards:
            for rank in shown_ranks:
                if shard["rank"] in (None, rank):
                    size[rank] += shard["bytes"]
        table.add_row(
            name,
            shards[0]["sharding"],
            f"{max(s['rows'][1] for s in shards):,}",
            str(max(s["columns"][1] for s in shards)),
            *(f"{size[rank] / 2**20:,.1f} MiB" for rank in shown_ranks),
        )
    console().print(table)
