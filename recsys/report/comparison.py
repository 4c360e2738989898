"""Comparison tables: in the terminal, as Markdown, CSV and HTML.

In: one VariantResult per variant. Called by launch/compare.py.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from recsys.files import write_text
from recsys.metrics.oracle import OracleMetrics
from recsys.report.page import html_table, page
from recsys.report.terminal import console
from recsys.spreadsheet import write_csv
from recsys.study.comparison import COLUMNS, VariantResult
from recsys.study.differences import Difference, Verdict


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the values that are no nan; nan where none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def deviation_of(values: Sequence[float]) -> float:
    """Return the sample standard deviation; nan for fewer than two values."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return math.nan
    mean = mean_of(known)
    return math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))


def table_texts(
    lines: Sequence[VariantResult], oracle: OracleMetrics | None
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows as texts; the oracle, where known, is the last row.

    A metric that no line has gets no column, nor has validation where no run knows it.
    """
    shown = [key for key in COLUMNS if any(not math.isnan(mean_of(x.metrics[key])) for x in lines)]
    with_difference = any(line.difference is not None for line in lines)
    header = ["run", "validation", *(COLUMNS[key] for key in shown)]
    header += ["AUC - reference [95 %]"] if with_difference else []
    header += ["parameters", "samples/s"]
    rows = []
    for line in lines:
        row = [line.name, _number(mean_of(line.validation))]
        for key in shown:
            values = line.metrics[key]
            text = _share(mean_of(values)) if key == "lift_recovered" else _number(mean_of(values))
            deviation = deviation_of(values)
            if key == "auc" and not math.isnan(deviation):
                text += f" +- {deviation:.4f}"
            row.append(text)
        if with_difference:
            row.append(_difference(line.difference))
        row.append("-" if line.num_parameters is None else f"{line.num_parameters:,}")
        rate = line.examples_per_second
        row.append("-" if math.isnan(rate) else f"{rate:,.0f}")
        rows.append(row)
    if oracle is not None:
        row = ["oracle (true probabilities)", "-"]
        for key in shown:
            value = 1.0 if key == "lift_recovered" else getattr(oracle, key, math.nan)
            row.append(_share(value) if key == "lift_recovered" else _number(value))
        rows.append(row + ["-"] * (len(header) - len(row)))
    return header, rows


def print_comparison(
    title: str, lines: Sequence[VariantResult], oracle: OracleMetrics | None = None
) -> None:
    """Print the table."""
    header, rows = table_texts(lines, oracle)
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        # Names stay on one line, whatever the terminal: they are what is looked for.
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def write_comparison(
    folder: Path,
    title: str,
    lines: Sequence[VariantResult],
    oracle: OracleMetrics | None,
    notes: Sequence[str],
) -> None:
    """Write comparison.md (the table), comparison.csv (a line per seed) and comparison.html."""
    header, rows = table_texts(lines, oracle)
    marks = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in marks)
    settings = "\n".join(
        f"- {line.name}: {' '.join(line.settings)}" for line in lines if line.settings
    )
    below = "\n".join(notes)
    parts = [f"# {title}", text, below, settings]
    write_text(folder / "comparison.md", "\n\n".join(part for part in parts if part) + "\n")
    _write_csv(folder / "comparison.csv", lines)
    body = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    body += f'<div class="wide">{html_table(header, rows)}</div>' + _differences(lines)
    if settings:
        body += "<section><h2>Settings</h2>" + html_table(
            ["run", "settings"],
            [[line.name, " ".join(line.settings)] for line in lines if line.settings],
        )
        body += "</section>"
    write_text(folder / "comparison.html", page(title, body, style=_STYLE, width_pixels=1360))


def _write_csv(path: Path, lines: Sequence[VariantResult]) -> None:
    rows: list[list[Any]] = []
    for line in lines:
        rate = line.examples_per_second
        for seed, validation in enumerate(line.validation):
            values = [line.metrics[key][seed] for key in COLUMNS]
            cells = ["" if math.isnan(v) else f"{v:.6f}" for v in (validation, *values)]
            cost = [line.num_parameters, "" if math.isnan(rate) else f"{rate:.0f}"]
            rows.append([line.name, seed, *cells, *cost])
    header = ["run", "seed", "validation", *COLUMNS, "parameters", "samples_per_second"]
    write_csv(path, header, rows)


_STYLE = """
.wide{overflow-x:auto}section{margin:16px 0}th,td{white-space:nowrap;font-variant-numeric:tabular-nums}
section td:last-child,section th:last-child{white-space:normal;text-align:left}
svg{width:100%;height:auto;display:block}svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .axis{stroke:var(--line)}svg .zero{stroke:var(--soft);stroke-dasharray:4 4}
svg .scale{fill:var(--soft);font-size:12px}
.better{--mark:#2b9a66}.worse{--mark:#e0723a}.noise{--mark:#8b95a3}
svg g line{stroke:var(--mark);stroke-width:3;stroke-linecap:round}svg g circle{fill:var(--mark)}
"""

_CLASS_OF_VERDICT: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "within noise": "noise",
}
_ROW_PIXELS = 30
_LEFT_PIXELS, _RIGHT_PIXELS, _WIDTH_PIXELS = 230, 130, 1100


def _differences(lines: Sequence[VariantResult]) -> str:
    """Draw the differences with their intervals, one row a variant, zero marked."""
    known = [(line.name, line.difference) for line in lines if line.difference is not None]
    if not known:
        return ""
    ends = [end for _, d in known for end in (d.low, d.high, d.mean) if not math.isnan(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.05 * (high - low or 1.0)
    low, high = low - margin, high + margin
    span = _WIDTH_PIXELS - _LEFT_PIXELS - _RIGHT_PIXELS

    def across(value: float) -> float:
        return _LEFT_PIXELS + span * (value - low) / (high - low)

    bottom = _ROW_PIXELS * len(known) + 10
    parts = []
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= 8)
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        x, kind = across(index * step), "zero" if index == 0 else "axis"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
        label = f"{index * step:+.4f}".rstrip("0").rstrip(".") if index else "0"
        parts.append(
            f'<text class="scale" text-anchor="middle" x="{x:.1f}" y="{bottom + 18}">{label}</text>'
        )
    for row, (name, d) in enumerate(known):
        y = _ROW_PIXELS * row + 22
        kind = _CLASS_OF_VERDICT[d.verdict]
        parts.append(
            f'<text x="0" y="{y + 5}">{html.escape(name)}</text><g class="{kind}">'
            f'<line x1="{across(d.low):.1f}" x2="{across(d.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{across(d.mean):.1f}" cy="{y}" r="6"/></g>'
            f'<text x="{_WIDTH_PIXELS}" y="{y + 5}" text-anchor="end">{d.mean:+.4f} {d.verdict}</text>'
        )
    return (
        "<section><h2>AUC against the reference</h2><p>Mean over seeds and 95 % interval over users "
        "and seeds; an interval that holds 0 is within noise.</p>"
        f'<svg viewBox="0 0 {_WIDTH_PIXELS} {bottom + 26}" role="img">{"".join(parts)}</svg></section>'
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "reference"
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
