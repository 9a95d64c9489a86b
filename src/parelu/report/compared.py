"""The picture of a paper's table beside runs: the paper's points hollow, ours filled, a colour and a form a method."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from parelu.report.beside import Beside
from parelu.report.plots import COLOURS, FAINT, INK, MARKERS, STYLE, Tip, save_figure, short, svg_text
from parelu.report.standing import Point
from parelu.report.tables import plus_minus

SIDES = {"paper": "in the paper", "ours": "here"}


def beside_svg(found: Beside) -> str:
    """Accuracy over ReLUs; where these are not comparable, the change from the baseline over the share of the ReLUs."""
    with mpl.rc_context(STYLE):
        figure, tips = _figure(found)
        return svg_text(figure, tips, "beside")


def save_beside(found: Beside, path: Path) -> None:
    """The same as .png or .svg; raises `UserError` for another ending."""
    save_figure(path, lambda: _figure(found)[0])


def _figure(found: Beside) -> tuple[Figure, list[Tip]]:
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    place, spread_of = (_accuracy, "spread") if found.is_alike else (_change, "change_spread")
    placed = {
        (method, side): [(*xy, point, what) for point, what in points if (xy := place(point)) is not None]
        for (method, side), points in _by_method(found).items()
    }
    methods = [method for method in dict.fromkeys(m for m, _ in placed) if any(placed[method, s] for s in SIDES)]
    looks: dict[str, tuple[str, str]] = {"baseline": (INK, "*")}
    for number, method in enumerate(method for method in methods if method != "baseline"):
        looks[method] = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    tips: list[Tip] = []
    for method, (side, label) in itertools.product(methods, SIDES.items()):
        points = sorted(placed[method, side], key=lambda one: one[:2])
        _draw(
            axes, [(x, y, getattr(one, spread_of)) for x, y, one, _ in points], *looks[method], hollow=side == "paper"
        )
        tips += [(axes, x, y, _tip(one, what, label)) for x, y, one, what in points]
    _set_axes(axes, found)
    figure.legend(handles=_legend({m: looks[m] for m in methods}), loc="outside upper left", ncols=5, frameon=False)
    return figure, tips


def _by_method(found: Beside) -> dict[tuple[str, str], list[tuple[Point, str]]]:
    """Method and side → points, and what each is."""
    groups: dict[tuple[str, str], list[tuple[Point, str]]] = {}
    for pair, side in itertools.product(found.pairs, SIDES):
        point = getattr(pair, side)
        groups.setdefault((pair.method, side), []).extend([(point, pair.what)] if point else [])
    return groups


def _accuracy(point: Point) -> tuple[float, float] | None:
    return (point.relus, point.accuracy) if point.relus else None


def _change(point: Point) -> tuple[float, float] | None:
    return (100 * point.share, point.change) if point.share and point.change is not None else None


def _draw(axes: Axes, points: list[tuple[float, float, float]], colour: str, marker: str, *, hollow: bool) -> None:
    """The points of a method on one side, by rising ReLUs; (x, y, spread)."""
    x, y, spread = ([point[i] for point in points] for i in range(3))
    apart = all(right > 1.02 * left for left, right in itertools.pairwise(x))  # else no line is that of one frontier
    line: Any = {"linestyle": (0, (4, 3)) if hollow else "-", "linewidth": 1.2} if apart else {"linestyle": "none"}
    axes.plot(
        x,
        y,
        marker=marker,
        markersize=12 if marker == "*" else 7.5,
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markeredgecolor=colour,
        markeredgewidth=1.4,
        **line,
    )
    if any(spread):
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5)


def _set_axes(axes: Axes, found: Beside) -> None:
    """A log scale of ReLUs, or of their share in percent."""
    written: Callable[[float], str] = short if found.is_alike else lambda value: f"{value:.3g} %"
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
    axes.margins(y=0.08)
    axes.set_xlabel("ReLUs an image" if found.is_alike else "share of the network's ReLUs")
    axes.set_ylabel("test accuracy, %" if found.is_alike else "change from the baseline, points")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(looks: dict[str, tuple[str, str]]) -> list[Line2D]:
    """looks: method → its colour and form."""
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label="all ReLUs" if method == "baseline" else method)
        for method, (colour, marker) in looks.items()
    ]
    hollow: Any = {"markerfacecolor": "white", "linestyle": (0, (4, 3))}
    return [
        *handles,
        Line2D([], [], color=INK, marker="o", label="in the paper", **hollow),
        Line2D([], [], color=INK, marker="o", label="here"),
    ]


def _tip(point: Point, what: str, side: str) -> str:
    relus = "" if point.relus is None else f", {point.relus:,} ReLUs"
    squares = f", {point.squares:,} squares" if point.squares else ""
    share = "" if point.share is None else f" ({point.share:.1%})"
    change = "" if point.change is None else f", {point.change:+.1f} from the baseline"
    accuracy = plus_minus(point.accuracy, point.spread, point.seeds)
    return f"{what}\n{point.network} {side}{relus}{share}{squares}\n{accuracy} %{change}"
