"""Figures as SVG text: the frontier with a tooltip on every point, where the ReLUs stayed, and training curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from parelu.report.tables import Row, candidates_of, frontier_rows, label_of, plus_minus
from parelu.run import Record

# Okabe and Ito's palette, told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#222222", "#d9d9d9"
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "parelu", "font.family": "sans-serif", "font.size": 11,
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"], "axes.edgecolor": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left", "figure.dpi": 72,
}  # fmt: skip

Tip = tuple[float, float, str]  # x and y in the axes' data, and the text


def frontier_svg(records: Sequence[Record]) -> str:
    """Test accuracy over ReLUs for every network, the frontier as a line."""
    with mpl.rc_context(STYLE):
        figure, axes, tips = _frontier(records)
        return _svg(figure, axes, tips)


def save_frontier(records: Sequence[Record], path: Path) -> None:
    """The frontier's figure as a picture, .png or .svg."""
    with mpl.rc_context(STYLE):
        figure, _, _ = _frontier(records)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=144, metadata={"Date": None} if path.suffix == ".svg" else None)


def _frontier(records: Sequence[Record]) -> tuple[Figure, Axes, list[Tip]]:
    rows = frontier_rows(records)
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    tips: list[Tip] = []
    methods = list(dict.fromkeys(row.method for row in rows if row.method != "train"))
    methods.sort(key=lambda method: (method != "deepreduce", method))
    for index, method in enumerate(methods):
        of_method = [row for row in rows if row.method == method]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        x, y = [row.relus for row in of_method], [row.test for row in of_method]
        ranges = [[row.test - row.low for row in of_method], [row.high - row.test for row in of_method]]
        if any(row.seeds > 1 for row in of_method):
            axes.errorbar(x, y, yerr=ranges, fmt="none", ecolor=colour, elinewidth=1.2, alpha=0.7)
        axes.plot(x, y, marker, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8, label=method)
        tips += [(row.relus, row.test, _tip(row)) for row in of_method]
    best = sorted((row for row in rows if row.on_frontier), key=lambda row: row.relus)
    axes.plot([r.relus for r in best], [r.test for r in best], "-", color=INK, linewidth=1, alpha=0.55, zorder=1,
              label="frontier (by validation)")  # fmt: skip
    for row in (row for row in rows if row.method == "train"):
        axes.axhline(row.test, color=INK, linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
        axes.plot(row.relus, row.test, "*", color=INK, markersize=13, label="all ReLUs")
        tips.append((row.relus, row.test, _tip(row)))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ReLUs an image")
    axes.set_ylabel("test accuracy, %")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=6, frameon=False, handletextpad=0.4, columnspacing=1.6)
    return figure, axes, tips


def _tip(row: Row) -> str:
    seeds = f", {row.seeds} seeds" if row.seeds > 1 else ""
    accuracy = f"{plus_minus(row.test, row.spread, row.seeds)} % test{seeds}"
    return f"{row.label}\n{row.relus:,} ReLUs, {accuracy}\n{row.macs / 1e6:,.1f} M MACs, depth {row.depth}"


def short(number: float) -> str:
    """50000 → "50k"."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def stages_svg(records: Sequence[Record]) -> str:
    """For each network, the share of each stage's ReLUs that stayed, of the full network's."""
    chosen = {(r.metrics["method"], label_of(r)): r for r in reversed(candidates_of(records))}
    ordered = sorted(chosen.values(), key=lambda r: (-r.metrics["relus"], label_of(r)))
    full = ordered[0].metrics["stages_full"]
    stages = [stage for stage, relus in full.items() if relus]
    shares = [[100 * r.metrics["stages"].get(s, {}).get("relus", 0) / full[s] for s in stages] for r in ordered]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.9 + 0.3 * len(ordered)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=115, aspect="auto")
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                colour = "white" if share > 60 else INK if share else "#999999"
                text = "0" if not share else f"{share:.0f} %" if share >= 1 else f"{share:.1f} %"
                axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=9.5)
        axes.set_xticks(range(len(stages)), [f"{stage}\n{full[stage]:,}" for stage in stages])
        labels = [f"{label_of(r)}   {r.metrics['relus']:,}" for r in ordered]
        axes.set_yticks(range(len(ordered)), labels, fontsize=9.5)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        return _svg(figure, axes, [])


def curves_svg(records: Sequence[Record]) -> str:
    """Validation accuracy an epoch of every network that was trained, a panel for each role."""
    trained = [record for record in records if record.history]
    panels = {
        "full ReLU and one stage only": [r for r in trained if r.metrics["role"] != "candidate"],
        **{
            method: [r for r in trained if r.metrics["role"] == "candidate" and r.metrics["method"] == method]
            for method in dict.fromkeys(r.metrics["method"] for r in trained if r.metrics["role"] == "candidate")
        },
    }
    panels = {title: group for title, group in panels.items() if group}
    with mpl.rc_context(STYLE):
        rows = math.ceil(len(panels) / 2)
        figure = Figure(figsize=(9.6, 3.4 * rows), layout="constrained")
        grid = figure.subplots(rows, 2, sharey=True, squeeze=False)
        for axes, (title, group) in zip(grid.flat, panels.items(), strict=False):
            _curves(axes, title, group)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        return _svg(figure, grid.flat[0], [])


def _curves(axes: Axes, title: str, group: Sequence[Record]) -> None:
    """Shaded by the number of ReLUs, the most and the fewest named at the line's end."""
    ordered = sorted(group, key=lambda record: -record.metrics["relus"])
    colours = mpl.colormaps["viridis"]
    for index, record in enumerate(ordered):
        epochs = [epoch["epoch"] for epoch in record.history]
        accuracies = [epoch["validation_accuracy"] for epoch in record.history]
        colour = colours(0.9 * index / max(1, len(ordered) - 1))
        axes.plot(epochs, accuracies, color=colour, linewidth=1.4, marker="." if len(epochs) < 3 else "")
        if index in (0, len(ordered) - 1):
            text = f" {short(record.metrics['relus'])}"
            axes.annotate(text, (epochs[-1], accuracies[-1]), color=colour, fontsize=9, va="center")
    axes.set_title(f"{title} (dark: most ReLUs)")
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=FAINT, linewidth=0.6)


def _svg(figure: Figure, axes: Axes, tips: Sequence[Tip]) -> str:
    """The figure as an <svg> element, with an invisible disc and a title over each point that has a tip."""
    canvas = FigureCanvasSVG(figure)
    buffer = io.StringIO()
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    height = figure.get_figheight() * 72
    discs = []
    for x, y, tip in tips:
        px, py = axes.transData.transform((x, y))
        discs.append(
            f'<circle class="tip" cx="{px:.1f}" cy="{height - py:.1f}" r="8" fill="transparent" '
            f'data-tip="{escape(tip)}"><title>{escape(tip)}</title></circle>'
        )
    body = text[text.index("<svg") :]
    return body.replace("</svg>", "\n".join(discs) + "</svg>").strip()
