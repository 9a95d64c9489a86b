"""Figures as SVG text: the frontier with a tooltip on every point, and training curves."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from parelu.errors import UserError
from parelu.report.grids import FEW
from parelu.report.tables import Row, frontier_rows, label_of, plus_minus, with_comparisons
from parelu.runs.folder import Record

# Okabe and Ito's palette, told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, SOFT = "#222222", "#d9d9d9", "#666666"
GREYS = {INK: "ink", FAINT: "line", SOFT: "soft", "#ffffff": "paper"}  # as the page's stylesheet calls them
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "parelu",
    "font.family": "sans-serif",
    "font.size": 11,
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.dpi": 72,
    "text.parse_math": False,  # a "$" in a name is a "$"
}

Tip = tuple[Axes, float, float, str]  # the axes, x and y in their data, and the text


def frontier_svg(records: Sequence[Record]) -> str:
    """Test accuracy over ReLUs for every network, the frontier as steps; a point is the mean over its seeds."""
    with mpl.rc_context(STYLE):
        figure, tips = _frontier(records)
        return svg_text(figure, tips, "frontier")


def save_frontier(records: Sequence[Record], path: Path) -> None:
    """The frontier's figure as a picture, .png or .svg; raises `UserError` for another ending."""
    save_figure(path, lambda: _frontier(records)[0])


def check_picture(path: Path) -> None:
    """Raises `UserError` where a picture cannot be written there."""
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"{path} is neither .png nor .svg; give a path with one of these endings")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it, or give a path in another one")


def save_figure(path: Path, draw: Callable[[], Figure]) -> None:
    """What is drawn as a picture, .png or .svg; raises `UserError` as `check_picture` does."""
    check_picture(path)
    with mpl.rc_context(STYLE):
        figure = draw()
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=144, metadata={"Date": None} if path.suffix == ".svg" else None)


def _frontier(records: Sequence[Record]) -> tuple[Figure, list[Tip]]:
    rows = frontier_rows(records)
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    positive = [row.relus for row in rows if row.relus] or [1]
    # A network without a ReLU has no place on a log scale: it stands left of the others, and says so.
    x_of = {row.relus: row.relus or min(positive) / 2 for row in rows}
    _draw_methods(axes, rows, x_of)
    _draw_frontiers(axes, rows, x_of)
    _draw_full(axes, [row for row in rows if row.method == "train"], x_of)
    for row in (row for row in rows if not row.relus):
        axes.annotate("no ReLU", (x_of[0], row.test), (0, -16), textcoords="offset points", ha="center", fontsize=9.5)
    _set_scales(axes, wide=max(positive) >= 8 * min(positive))
    figure.legend(loc="outside upper left", ncols=6, frameon=False, handletextpad=0.4, columnspacing=1.6)
    told = rows if len(rows) <= FEW else [row for row in rows if row.on_frontier or row.method == "train"]
    return figure, [(axes, x_of[row.relus], row.test, _tip(row)) for row in told]


def styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Method → its colour and marker; the full-ReLU networks have others."""
    methods = sorted({row.method for row in rows} - {"train"}, key=lambda method: (method != "deepreduce", method))
    return {m: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, m in enumerate(methods)}


def _draw_methods(axes: Axes, rows: Sequence[Row], x_of: Mapping[int, float]) -> None:
    """A marker for each network, a colour and a form for each method, with the range over seeds."""
    for method, (colour, marker) in styles(rows).items():
        of_method = [row for row in rows if row.method == method]
        x, y = [x_of[row.relus] for row in of_method], [row.test for row in of_method]
        ranges = [[row.test - row.low for row in of_method], [row.high - row.test for row in of_method]]
        if any(row.seeds > 1 for row in of_method):
            axes.errorbar(x, y, yerr=ranges, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5, alpha=0.7)
        hollow = any(row.squares for row in of_method)
        axes.plot(
            x,
            y,
            marker,
            color=colour,
            markersize=8,
            markerfacecolor="white" if hollow else colour,
            markeredgecolor=colour if hollow else "white",
            markeredgewidth=1.4 if hollow else 0.9,
            label=f"{method}, with squares" if hollow else method,
        )


def _draw_frontiers(axes: Axes, rows: Sequence[Row], x_of: Mapping[int, float]) -> None:
    """The steps of the frontier, and of the one with squares."""
    for squares, style, label in ((False, "-", "frontier (by validation)"), (True, ":", "frontier with squares")):
        best = [row for row in rows if row.on_frontier and bool(row.squares) == squares]
        best = sorted(best, key=lambda row: row.relus)
        if best:
            x, y = [x_of[row.relus] for row in best], [row.test for row in best]
            steps = {"color": INK, "linewidth": 1.1, "alpha": 0.55, "drawstyle": "steps-post", "zorder": 1}
            axes.plot(x, y, style, label=label, **steps)


def _draw_full(axes: Axes, full: Sequence[Row], x_of: Mapping[int, float]) -> None:
    """A line at the accuracy of each network with all ReLUs."""
    for index, row in enumerate(full):
        axes.axhline(row.test, color=INK, linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
        axes.plot(x_of[row.relus], row.test, "*", color=INK, markersize=14, label="" if index else "all ReLUs")
        axes.annotate(
            f"all ReLUs, {row.test:.1f} %",
            (0, row.test),
            (4, 4),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            color=SOFT,
            fontsize=9.5,
        )


def _set_scales(axes: Axes, *, wide: bool) -> None:
    """A log scale of ReLUs; wide: its ticks are at 1, 2, 5, 10, …, which leaves a narrow range without one."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
    axes.margins(y=0.08)
    axes.set_xlabel("ReLUs an image")
    axes.set_ylabel("test accuracy, %")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _tip(row: Row) -> str:
    seeds = f", {row.seeds} seeds" if row.seeds > 1 else ""
    squares = f", {row.squares:,} squares" if row.squares else ""
    return (
        f"{row.label}\n{row.relus:,} ReLUs{with_comparisons(row)}{squares}"
        f"{', on the frontier' if row.on_frontier else ''}\n"
        f"test {plus_minus(row.test, row.spread, row.seeds)} %, "
        f"validation {plus_minus(row.validation, row.validation_spread, row.seeds)} %{seeds}\n"
        f"{row.macs / 1e6:,.1f} M MACs, depth {row.depth}\n{row.method}: {row.name}"
    )


def short(number: float) -> str:
    """50000 → "50k", to three digits."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def curves_svg(records: Sequence[Record]) -> str:
    """Validation accuracy and loss an epoch of every network that was trained; a row of panels for each method."""
    trained = [record for record in records if record.history]
    panels: dict[str, list[Record]] = {}
    for record in sorted(trained, key=lambda r: (r.metrics.role == "candidate", r.metrics.method)):
        ours = record.metrics.role in ("candidate", "scaffold")
        panels.setdefault(record.metrics.method if ours else "all ReLUs, and one stage only", []).append(record)
    relus = [record.metrics.relus_and_comparisons or 1 for record in trained]
    colours = ScalarMappable(LogNorm(min(relus), max(*relus, min(relus) + 1)), mpl.colormaps["viridis_r"].resampled(40))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.4 + 2.7 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 2, sharex=True, sharey="col", squeeze=False)
        tips: list[Tip] = []
        for (left, right), (title, group) in zip(grid, panels.items(), strict=True):
            left.set_title(title)
            tips += _curves(left, group, "validation_accuracy", colours)
            tips += _curves(right, group, "loss", colours)
            left.set_ylabel("validation accuracy, %")
            right.set_ylabel("training loss")
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        bar = figure.colorbar(colours, ax=list(grid.flat), label="ReLUs an image", aspect=16 * len(panels), pad=0.02)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.solids.set(edgecolor="face", rasterized=False)  # pyright: ignore[reportOptionalMemberAccess]
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return svg_text(figure, tips, "curves")


def _curves(axes: Axes, group: Sequence[Record], key: str, colours: ScalarMappable) -> list[Tip]:
    """A line for each network, coloured by its ReLUs, with a tip at its end."""
    tips: list[Tip] = []
    for record in sorted(group, key=lambda r: -r.metrics.relus_and_comparisons):
        epochs = [epoch.epoch for epoch in record.history]
        values = [getattr(epoch, key) for epoch in record.history]
        marker = "." if len(epochs) < 3 else ""
        colour = colours.to_rgba(np.array([record.metrics.relus_and_comparisons or 1]))[0]
        axes.plot(epochs, values, marker=marker, color=colour, linewidth=1.3)
        seed = f"{record.metrics.relus_and_comparisons:,} ReLUs, seed {record.metrics.seed}"
        tips.append((axes, epochs[-1], values[-1], f"{label_of(record)}\n{seed}\n{values[-1]:.3g} after {epochs[-1]}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=FAINT, linewidth=0.6)
    return tips


def svg_text(figure: Figure, tips: Sequence[Tip], name: str) -> str:
    """The figure as an <svg> element, with an invisible disc and a title over each point that has a tip.

    Its ids begin with `name`, so that figures on one page share none. Its greys are the page's, light or dark.
    """
    canvas = FigureCanvasSVG(figure)
    buffer = io.StringIO()
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r'( id="|url\(#|href="#)', rf"\1{name}-", tag[0]), text)
    for grey, name_of in GREYS.items():
        text = text.replace(grey, f"var(--{name_of})")
    height = figure.get_figheight() * 72
    discs = []
    for axes, x, y, tip in tips:
        px, py = axes.transData.transform((x, y))
        discs.append(
            f'<circle class="tip" cx="{px:.1f}" cy="{height - py:.1f}" r="7" fill="transparent" '
            f'data-tip="{escape(tip)}"><title>{escape(tip)}</title></circle>'
        )
    body = text[text.index("<svg") :]
    return body.replace("</svg>", "\n".join(discs) + "</svg>").strip()
