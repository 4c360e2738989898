"""The closed loop for people and programs: a table, loop.html, days.csv, loop_result.json.

In: a LoopResult. Called by launch/loop.py.
"""

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from recsys.files import write_json, write_text
from recsys.loop.config import ARMS, LoopConfig
from recsys.loop.result import (
    MEASURES,
    NEW_DAYS,
    REFERENCES,
    ArmDifference,
    Estimate,
    LoopResult,
    Row,
)
from recsys.report.figures import curves, dots
from recsys.report.page import html_table, page
from recsys.report.terminal import console
from recsys.spreadsheet import write_csv

_STYLE = """
section{margin:16px 0;overflow-x:auto}th,td{white-space:nowrap;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:8px 0}dd{margin:0}
dt{font-weight:600}dd{color:var(--soft)}
svg{width:100%;height:auto;display:block;min-width:300px}.wide svg{max-width:760px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:16px}
.pair section{margin:0}
.claim{color:var(--ink);font-weight:600;border-left:4px solid var(--mark);padding:2px 12px}
.better{--mark:#2b9a66}.worse{--mark:#e0723a}.noise{--mark:#8b95a3}
ul{color:var(--soft);padding-left:20px}
"""
_CLASS = {"better": "better", "worse": "worse", "within noise": "noise"}
_HEADER = ["arm", "bookmarks a visit", "true probability", "new pictures", "catalogue shown",
           "new pictures shown", "night"]  # fmt: skip


def print_loop(result: LoopResult) -> None:
    """Print what visitors got from every arm over all days, and the differences."""
    table = Table(title=_title(result), title_justify="left")
    for index, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in result.arms_total:
        table.add_row(*_cells(row))
    console().print(table)
    for difference in result.differences:
        console().print(_sentence(difference), highlight=False)


def write_loop(folder: Path, result: LoopResult, config: LoopConfig) -> None:
    """Write loop.html, days.csv (a line for each arm and day) and loop_result.json (everything)."""
    write_json(folder / "loop_result.json", dataclasses.asdict(result))
    _write_csv(folder / "days.csv", result)
    body = _claim(result) + _notes(result, config)
    body += '<div class="pair">' + "".join(
        f"<section><h2>{html.escape(title)}</h2>{_curves(result, name)}</section>"
        for name, title in (
            ("probability", "True probability of the shown pictures"),
            ("bookmarks", "Bookmarks a visit"),
            ("new_share", "Share of new pictures among the shown"),
            ("coverage", "Share of the catalogue shown on a day"),
        )
    )
    body += "</div>"
    rows = [_cells(row) for row in result.arms_total]
    body += (
        f"<section><h2>All days</h2><p>95 % intervals over visitors; "
        f"the night is the time of its jobs, mean.</p>{html_table(_HEADER, rows)}</section>"
    )
    for reference in REFERENCES:
        body += _differences([d for d in result.differences if d.reference == reference])
    arms = "".join(f"<dt>{name}</dt><dd>{ARMS[name].meaning}</dd>" for name in result.arms)
    body += f"<section><h2>Arms</h2><dl>{arms}</dl></section>"
    write_text(folder / "loop.html", page(_title(result), body, style=_STYLE, width_pixels=1240))


def _title(result: LoopResult) -> str:
    num_days = max(row.day for row in result.days)
    seeds = "1 seed" if len(result.seeds) == 1 else f"{len(result.seeds)} seeds"
    return f"The closed loop: {num_days} days, {seeds}"


def _cells(row: Row) -> list[str]:
    m = row.measures
    return [
        row.arm,
        _with_bounds(m["bookmarks"]),
        _with_bounds(m["probability"]),
        _share(m["new_share"]),
        _share(m["coverage"]),
        _share(m["new_coverage"]),
        f"{row.night_seconds:.0f} s" if row.night_seconds else "-",
    ]


def _with_bounds(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _share(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.value) else f"{estimate.value:.1%}"


def _sentence(d: ArmDifference) -> str:
    return (
        f"{d.arm} against {d.reference}: {d.mean:+.3f} bookmarks a visit "
        f"[{d.low:+.3f}, {d.high:+.3f}], {d.verdict}"
    )


def _claim(result: LoopResult) -> str:
    found = [d for d in result.differences if (d.arm, d.reference) == ("ours", "never")]
    return "".join(
        f'<p class="claim {_CLASS[d.verdict]}">{html.escape(_sentence(d))}</p>' for d in found
    )


def _notes(result: LoopResult, config: LoopConfig) -> str:
    world, visitors = config.world, config.visitors
    notes = [
        f"The world is drawn, its formula of liking known: {world.num_items:,} pictures and "
        f"{world.num_users:,} users at the start; {world.items_per_day} pictures and "
        f"{world.users_per_day} users more each day, among them artists, subjects and themes that were "
        f"not there before; every taste turns by a normal angle of {world.drift:g} rad a day.",
        f"A visitor sees {visitors.pictures} pictures that it has not been shown before, looks at "
        f"place j with probability j ** -{visitors.position_bias:g}, and bookmarks what it looks at with "
        f"the true probability. All arms meet the same visitors with the same random numbers.",
        "Rows that were not bookmarked weigh in training as often as their place is looked at."
        if visitors.known_bias
        else "The site does not know that probability: all rows weigh the same in training.",
        f"A picture is new on its first {NEW_DAYS} days. Intervals are bootstraps over users; "
        f"differences draw users in pairs, and the {len(result.seeds)} seed(s).",
    ]
    return "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"


def _curves(result: LoopResult, name: str) -> str:
    days = sorted({row.day for row in result.days})
    lines = {}
    for arm in result.arms:
        of_arm = {row.day: row.measures[name] for row in result.days if row.arm == arm}
        estimates = [of_arm[day] for day in days]
        lines[arm] = (
            [e.value for e in estimates],
            [e.low for e in estimates],
            [e.high for e in estimates],
        )
    return curves(days, lines, label=MEASURES[name], below="day")


def _differences(differences: Sequence[ArmDifference]) -> str:
    if not differences:
        return ""
    name = REFERENCES[differences[0].reference]
    header = ["arm", "bookmarks a visit, difference", "by seed", "verdict"]
    rows = [
        [
            d.arm,
            f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]",
            ", ".join(f"{mean:+.3f}" for mean in d.by_seed),
            d.verdict,
        ]
        for d in differences
    ]
    figure = dots(
        [d.arm for d in differences],
        [d.mean for d in differences],
        [(d.low, d.high) for d in differences],
        reference=0.0,
        label=f"bookmarks a visit, less those of {name}",
    )
    return (
        f"<section class=wide><h2>Against {name}</h2>{figure}{html_table(header, rows)}</section>"
    )


def _write_csv(path: Path, result: LoopResult) -> None:
    header = ["arm", "day", "visits", "night_seconds"]
    header += [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    lines = []
    for row in result.days:
        line = [row.arm, row.day, row.num_visits, f"{row.night_seconds:.2f}"]
        for name in MEASURES:
            estimate = row.measures[name]
            values = (estimate.value, estimate.low, estimate.high)
            line += ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        lines.append(line)
    write_csv(path, header, lines)
