"""Progressive validation for people and programs: a table, and progressive.{html,csv,json}.

In: a ProgressiveResult. Called by launch/progressive.py.
"""

import dataclasses
import html
import math
from pathlib import Path
from typing import Any

from rich.table import Table

from recsys.files import write_json, write_text
from recsys.report.figures import curves
from recsys.report.page import html_table, page
from recsys.report.terminal import console
from recsys.spreadsheet import write_csv
from recsys.study.progressive_result import (
    METRICS,
    ArmDifference,
    ArmTotal,
    ProgressiveResult,
    WindowLine,
)

_STYLE = """
section{margin:16px 0;overflow-x:auto}th,td{white-space:nowrap;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto;display:block;min-width:420px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:16px}
.pair section{margin:0}
.claim{color:var(--ink);font-weight:600;border-left:4px solid var(--mark);padding:2px 12px}
.better{--mark:#2b9a66}.worse{--mark:#e0723a}.noise{--mark:#8b95a3}
"""
_CLASS = {"better": "better", "worse": "worse", "within noise": "noise"}
_COST = ["seconds", "CPU seconds", "rows trained on"]
_HEADER = ["model", "window", "rows", *METRICS.values(), "AUC [95 %]", *_COST]
_MEANING = {
    "refreshed": "goes on from window to window, each scored before it is trained on",
    "never": "trained on what was there before the first window, and never refreshed",
    "anew": "trained from scratch on everything before the window",
}


def print_progressive(title: str, result: ProgressiveResult) -> None:
    """Print the windows, the totals and the differences."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=index < 2)
    for row in _rows(result):
        table.add_row(*row)
    console().print(table)
    for difference in result.differences:
        console().print(_sentence(difference), highlight=False)


def write_progressive(folder: Path, title: str, result: ProgressiveResult) -> None:
    """Write progressive.html, .csv (a line for each model and window) and .json (everything)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "progressive.json", dataclasses.asdict(result))
    write_csv(folder / "progressive.csv", ["model", "window", "rows", *_csv_names()], _csv(result))
    body = "".join(
        f'<p class="claim {_CLASS[d.auc.verdict]}">{html.escape(_sentence(d))}</p>'
        for d in result.differences
    )
    body += (
        f"<p>Every window was scored before any model had seen it. Means over {result.num_seeds} "
        f"seed(s); intervals are bootstraps over users, and of differences over users and seeds. Costs "
        f"are those of the training for the window; its seconds compare only where nothing else ran.</p>"
    )
    body += '<div class="pair">' + "".join(
        f"<section><h2>{html.escape(label)}</h2>{_curves(result, key)}</section>"
        for key, label in METRICS.items()
    )
    body += f"</div><section><h2>Windows</h2>{html_table(_HEADER, _rows(result))}</section>"
    arms = [[total.arm, _MEANING[total.arm]] for total in result.totals]
    body += f"<section><h2>Models</h2>{html_table(['model', 'how it is trained'], arms)}</section>"
    write_text(folder / "progressive.html", page(title, body, style=_STYLE, width_pixels=1240))


def _rows(result: ProgressiveResult) -> list[list[str]]:
    rows = [_cells(line, line.window, line.bounds["auc"]) for line in result.lines]
    of_all = [
        _cells(total, f"all {total.num_windows}", (math.nan, math.nan)) for total in result.totals
    ]
    return rows + of_all


def _cells(line: WindowLine | ArmTotal, window: str, bounds: tuple[float, float]) -> list[str]:
    values = [_number(line.values[key], 4) for key in METRICS]
    between = "-" if math.isnan(bounds[0]) else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
    cost = [_number(c, 0) for c in (line.seconds, line.cpu_seconds, line.num_trained_rows)]
    return [line.arm, window, f"{line.num_rows:,}", *values, between, *cost]


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _sentence(d: ArmDifference) -> str:
    text = (
        f"refreshed against {d.reference}, {d.num_windows} windows: AUC {d.auc.mean:+.4f} "
        f"[{d.auc.low:+.4f}, {d.auc.high:+.4f}], {d.auc.verdict}; normalised entropy "
        f"{d.normalised_entropy:+.4f}"
    )
    if not math.isnan(d.cpu_ratio):
        text += f"; {d.cpu_ratio:.1%} of its CPU time, {d.rows_ratio:.1%} of its rows"
    return text


def _curves(result: ProgressiveResult, key: str) -> str:
    numbers = {window: number for number, window in enumerate(result.windows, start=1)}
    drawn = {}
    for total in result.totals:
        of_arm = {line.window: line for line in result.lines if line.arm == total.arm}
        missing = (math.nan, math.nan)
        bounds = [of_arm[w].bounds[key] if w in of_arm else missing for w in result.windows]
        values = [of_arm[w].values[key] if w in of_arm else math.nan for w in result.windows]
        drawn[total.arm] = (values, [low for low, _ in bounds], [high for _, high in bounds])
    return curves(
        list(numbers.values()), drawn, label=METRICS[key], below="window", from_zero=False
    )


def _csv_names() -> list[str]:
    bounds = [f"{key}_{end}" for key in METRICS for end in ("low", "high")]
    return [*METRICS, *bounds, "seconds", "cpu_seconds", "rows_trained_on"]


def _csv(result: ProgressiveResult) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for line in result.lines:
        bounds = [end for key in METRICS for end in line.bounds[key]]
        numbers = [*(line.values[key] for key in METRICS), *bounds, line.seconds, line.cpu_seconds]
        cells = ["" if math.isnan(n) else f"{n:.6f}" for n in numbers]
        trained = "" if math.isnan(line.num_trained_rows) else f"{line.num_trained_rows:.0f}"
        rows.append([line.arm, line.window, line.num_rows, *cells, trained])
    return rows
