"""Figures of HTML pages: SVG drawn into the page, in the page's own colours, light or dark.

In: arrays. Out: SVG as text. Called by the pages of this folder.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from recsys.evaluation.interactions import Interactions
from recsys.report.page import COLOURS

_INK, _SOFT, _LINE = "#010203", "#040506", "#070809"
"""Stand-ins in the drawing; the page's style sheet says what they are in light and in dark."""
_IN_PAGE = {_INK: "var(--ink)", _SOFT: "var(--soft)", _LINE: "var(--line)"}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tessera",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "figure.facecolor": "none",
}


def _begin(width: float = 5.6, height: float = 3.7) -> tuple[Any, Any]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots()
    axes.tick_params(length=0)
    return figure, axes


def _finish(figure: Any, label: str) -> str:
    """Return the figure as an SVG element that takes its colours and its fonts from the page."""
    with matplotlib.rc_context(_STYLE):
        figure.tight_layout(pad=0.4)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    size, said = r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{label}"'
    svg = re.sub(size, said, svg, count=1)
    # Letters are the page's: matplotlib names its own families.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for stand_in, colour in _IN_PAGE.items():
        svg = svg.replace(stand_in, colour)
    return svg


def roc(curves: Mapping[str, tuple[NDArray, NDArray]]) -> str:
    """Draw ROC curves: shares of negatives and of positives, two arrays [T] by name.

    Args:
        curves: the first is drawn strongest. Empty arrays give no curve.
    """
    figure, axes = _begin()
    axes.plot([0, 1], [0, 1], color=_SOFT, linestyle="--", linewidth=1)
    for index, (name, (false_rate, true_rate)) in enumerate(curves.items()):
        axes.plot(false_rate, true_rate, color=COLOURS[index], linewidth=2.2 - index, label=name)
    axes.set(xlabel="share of negatives", ylabel="share of positives", xlim=(0, 1), ylim=(0, 1.01))
    if len(curves) > 1:
        axes.legend(loc="lower right", labelcolor=_INK, frameon=False)
    return _finish(figure, "ROC curve")


def calibration(predicted: Sequence[float], observed: Sequence[float], rows: Sequence[int]) -> str:
    """Draw mean prediction against share of positives by bin, with two standard errors of the share.

    Rows of a bin are taken as independent for the bars, which is why they are thin.
    """
    figure, axes = _begin()
    share, count = np.asarray(observed), np.asarray(rows)
    error = 2 * np.sqrt(share * (1 - share) / np.maximum(count, 1)) if len(rows) else share
    top = max([*predicted, *(share + error).tolist(), 1e-6]) * 1.05
    axes.plot([0, top], [0, top], color=_SOFT, linestyle="--", linewidth=1)
    axes.errorbar(predicted, share, error, color=COLOURS[0], linewidth=1, alpha=0.5, fmt="none")
    axes.plot(predicted, share, marker="o", color=COLOURS[0], linewidth=1.8, markersize=5)
    axes.set(xlabel="mean prediction", ylabel="share of positives", xlim=(0, top), ylim=(0, top))
    return _finish(figure, "calibration by tenth of the predictions")


def score_distributions(counts_2H: NDArray[np.int64], edges: NDArray[np.float64]) -> str:
    """Draw the distribution of the scores of negatives and of positives.

    Args:
        counts_2H: rows of negatives and of positives by bin.
        edges: of the bins [H + 1].
    """
    figure, axes = _begin()
    for label, colour, name in ((0, COLOURS[1], "negatives"), (1, COLOURS[0], "positives")):
        if counts_2H[label].any():
            heights = counts_2H[label] / counts_2H[label].sum() / np.diff(edges)
            axes.stairs(heights, edges, fill=True, alpha=0.3, color=colour)
            axes.stairs(heights, edges, color=colour, linewidth=1.6, label=name)
    axes.set(xlabel="predicted probability", ylabel="density", xlim=(0, 1))
    axes.legend(labelcolor=_INK, frameon=False)
    return _finish(figure, "distribution of the scores by label")


def weight_distributions(
    counts_MH: NDArray[np.int64], edges: NDArray[np.float64], medians: Mapping[str, float]
) -> str:
    """Draw how the weight of every modality is distributed over rows; a dot marks the median.

    Args:
        counts_MH: rows by bin, of the modalities of `medians` in their order.
        edges: of the bins [H + 1].
    """
    figure, axes = _begin()
    names = list(medians)
    for index, name in enumerate(names):
        base = len(names) - 1 - index
        colour = COLOURS[index % len(COLOURS)]
        heights = counts_MH[index] * 0.85 / max(counts_MH[index].max(), 1)
        axes.stairs(base + heights, edges, baseline=base, fill=True, color=colour, alpha=0.35)
        axes.stairs(base + heights, edges, baseline=base, color=colour, linewidth=1.4)
        axes.plot(medians[name], base + 0.08, "o", color=colour, markersize=6)
    axes.set(xlabel="weight", xlim=(0, 1), ylim=(-0.1, len(names)))
    axes.set_yticks([len(names) - 1 - i + 0.3 for i in range(len(names))], names)
    axes.grid(visible=False, axis="y")
    return _finish(figure, "distribution of the modality weights")


def curves(
    steps: Sequence[int],
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    *,
    label: str,
    below: str,
    from_zero: bool = True,
) -> str:
    """Draw one curve a name, (values, lows, highs) [T] each, with a band where the bounds are numbers."""
    figure, axes = _begin(width=6.4, height=3.9)
    for index, (name, (values, lows, highs)) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        style = ("-", "--", ":")[index // len(COLOURS) % 3]
        axes.plot(steps, values, style, color=colour, linewidth=1.8, marker="o", markersize=3)
        axes.plot([], [], style, color=colour, linewidth=1.8, label=name)
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.10, linewidth=0)
    axes.set(xlabel=below, ylabel=label)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.legend(
        ncols=4, loc="lower left", bbox_to_anchor=(0, 1), labelcolor=_INK, frameon=False,
        fontsize=10, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
    return _finish(figure, label)


def dots(
    names: Sequence[str],
    values: Sequence[float],
    bounds: Sequence[tuple[float, float] | None],
    *,
    reference: float,
    label: str,
) -> str:
    """Draw one value a line with its interval, beside a line for the reference (all rows)."""
    figure, axes = _begin(height=0.7 + 0.27 * max(len(names), 2))
    lines = np.arange(len(names))[::-1]
    axes.axvline(reference, color=_SOFT, linestyle="--", linewidth=1)
    known = [(line, *bound) for line, bound in zip(lines, bounds, strict=True) if bound is not None]
    axes.hlines(*np.reshape(known, (-1, 3)).T, color=COLOURS[0], linewidth=2, alpha=0.45)
    axes.plot(values, lines, "o", color=COLOURS[0], markersize=5.5)
    return _named_lines(figure, axes, names, lines, label)


def bars(
    names: Sequence[str],
    values: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    kinds: Sequence[int],
    *,
    label: str,
) -> str:
    """Draw one bar a line with its interval; `kinds` choose the colour."""
    figure, axes = _begin(height=0.7 + 0.3 * max(len(names), 2))
    lines = np.arange(len(names))[::-1]
    colours = [COLOURS[kind % len(COLOURS)] for kind in kinds]
    axes.barh(lines, values, 0.62, color=colours, alpha=0.75)
    axes.hlines(lines, *np.reshape(bounds, (-1, 2)).T, color=_INK, linewidth=1.3)
    axes.axvline(0, color=_SOFT, linewidth=1)
    return _named_lines(figure, axes, names, lines, label)


def stacked(names: Sequence[str], shares: NDArray, parts: Sequence[str], *, label: str) -> str:
    """Draw one bar a line made of parts: shares [lines, parts]; the legend stands above."""
    figure, axes = _begin(height=1.0 + 0.3 * max(len(names), 2))
    lines = np.arange(len(names))[::-1]
    left = np.zeros(len(names))
    for index, part in enumerate(parts):
        colour = COLOURS[index % len(COLOURS)]
        axes.barh(lines, shares[:, index], 0.66, left, color=colour, alpha=0.8, label=part)
        for line, start, width in zip(lines, left, shares[:, index], strict=True):
            if width > 0.07:
                number = axes.text(
                    start + width / 2,
                    line,
                    f"{width:.2f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="#fff",
                )
                number.set_in_layout(False)  # within its bar, and slow to measure
        left += shares[:, index]
    axes.set_xlim(0, max(1.0, float(left.max(initial=0))))
    axes.legend(
        ncols=len(parts),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        labelcolor=_INK,
        handlelength=1,
        columnspacing=1.2,
        borderaxespad=0.2,
        frameon=False,
    )
    axes.grid(visible=False, axis="y")
    return _named_lines(figure, axes, names, lines, label)


def _named_lines(figure: Any, axes: Any, names: Sequence[str], lines: NDArray, label: str) -> str:
    cut = [name if len(name) <= 34 else f"{name[:31]}..." for name in names]
    # A dollar sign would begin a formula.
    axes.set_yticks(lines, [name.replace("$", r"\$") for name in cut])
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(visible=False, axis="y")
    return _finish(figure, label)


def counts(values: Interactions, *, of: str, each: str) -> str:
    """Draw how many items (users) have how many interactions, the lower axis logarithmic.

    Args:
        values: those without one are not drawn.
        of: what is counted: "items".
        each: what the lower axis counts: "interactions of an item".
    """
    figure, axes = _begin(height=3.0)
    counts_C = values.counts_C
    if counts_C.size:
        least, most = counts_C[0], counts_C[-1]
        steps = np.unique(np.geomspace(least, most + 1, 25).round().astype(np.int64))
        heights = np.histogram(counts_C, steps, weights=values.owners_C)[0]
        axes.stairs(heights, steps, fill=True, color=COLOURS[2], alpha=0.35)
        axes.stairs(heights, steps, color=COLOURS[2], linewidth=1.5)
        axes.set_xscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_formatter(plain)
        if most < 20 * least:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(values.median, color=_SOFT, linestyle="--", linewidth=1)
    axes.set(xlabel=each, ylabel=of)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _finish(figure, each)


_MOST_POINTS = 2000
"""Users drawn in a scatter plot."""


def scatter(panels: dict[str, tuple[NDArray, NDArray, float]]) -> str:
    """Draw learned weight [U] against planted sensitivity [U], one panel a modality with its r."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 3.3))
        all_axes = figure.subplots(1, len(panels), squeeze=False)
    for index, (name, (planted, learned, r)) in enumerate(panels.items()):
        axes = all_axes[0, index]
        axes.tick_params(length=0)
        # Users come by falling count of rows: the first of them would be the most active.
        shown = np.random.default_rng(0).permutation(len(planted))[:_MOST_POINTS]
        axes.plot(
            planted[shown],
            learned[shown],
            "o",
            color=COLOURS[(index + 1) % len(COLOURS)],
            markersize=3.5,
            alpha=0.55,
            markeredgewidth=0,
        )
        axes.set_title(f"{name}: r = {r:+.2f}", fontsize=11, color=_INK, loc="left")
        axes.set(xlabel="planted share", ylabel="learned share" if not index else "")
    return _finish(figure, "learned weights against planted sensitivities")
