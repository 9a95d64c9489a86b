"""A calibration for people: how far its measurements are from what was predicted without them, as text and picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from parelu.private.cost.calibration import Calibration, Point
from parelu.private.cost.predict import PHASES, spread
from parelu.report.plots import COLOURS, FAINT, INK, MARKERS, save_figure
from parelu.report.private import duration

WORST = 5  # measurements that are named


def calibration_text(calibration: Calibration) -> str:
    """On what it was made, how well it predicts what it has not seen, and what each kind of work takes."""
    lines = [f"made {calibration.made} on {calibration.machine}", ""]
    for phase in PHASES:
        points = _of(calibration, phase)
        errors = [abs(point.ratio - 1) for point in points]
        low, high = spread(calibration.points, phase)
        lines.append(
            f"{phase}: {len(points)} measurements, each predicted without its program: off by "
            f"{statistics.median(errors):.1%} in the median, {max(errors):.1%} at most; "
            f"in nine of ten, work took {low:.2f} to {high:.2f} times what it is fitted to"
        )
    worst = sorted(calibration.points, key=lambda point: abs(point.ratio - 1), reverse=True)[:WORST]
    lines += ["", "furthest off", *(f"  {_text(point)}" for point in worst), "", "CPU seconds of one, by kind of work"]
    for (phase, party), fit in calibration.work.items():
        lines.append(f"  {phase}, {party}")
        for name, each in fit.coefficients.items():
            if each:
                lines.append(f"    {name:<28}{each:>10.3g} ± {fit.errors[name]:.2g}")
    return "\n".join(lines)


def _of(calibration: Calibration, phase: str) -> list[Point]:
    return [point for point in calibration.points if point.phase == phase]


def _text(point: Point) -> str:
    return (
        f"{point.what}, {point.phase}: {duration(point.measured)} measured, {duration(point.predicted)} predicted "
        f"({point.ratio:.2f} times)"
    )


def save_calibration(calibration: Calibration, path: Path) -> None:
    """As .png or .svg; raises `UserError` for another ending."""
    save_figure(path, lambda: _figure(calibration))


def _figure(calibration: Calibration) -> Figure:
    """Above, measured over predicted seconds; below, how much longer than fitted work would have taken."""
    figure = Figure(figsize=(12.6, 6.4), layout="constrained")
    rows = figure.subplots(2, len(PHASES), sharex="col", height_ratios=(3, 2))
    for column, phase in enumerate(PHASES):
        above, below = rows[0][column], rows[1][column]
        points = _of(calibration, phase)
        low, high = spread(calibration.points, phase)
        _measured(above, points, COLOURS[column], MARKERS[column])
        _quotients(below, points, COLOURS[column], MARKERS[column], (low, high))
        above.set_title(f"{phase}: nine of ten from {low:.2f} to {high:.2f}")
    rows[0][0].set_ylabel("seconds, measured")
    rows[1][0].set_ylabel("work ÷ fitted")
    figure.suptitle(f"{calibration.machine}, {calibration.made}", x=0.01, ha="left", fontsize=10)
    return figure


def _measured(axes: Axes, points: Sequence[Point], colour: str, marker: str) -> None:
    ends = [pick(seconds for point in points for seconds in (point.measured, point.predicted)) for pick in (min, max)]
    axes.plot(ends, ends, color=INK, linewidth=1, zorder=1)
    axes.plot([p.predicted for p in points], [p.measured for p in points], marker, color=colour, markersize=5)
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        axis.set_major_locator(LogLocator())
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds)))
    axes.grid(color=FAINT, linewidth=0.6)


def _quotients(axes: Axes, points: Sequence[Point], colour: str, marker: str, interval: tuple[float, float]) -> None:
    """On a log scale: twice as long is as far off as half as long."""
    axes.axhspan(*interval, color=FAINT, zorder=0)
    axes.axhline(1, color=INK, linewidth=1)
    axes.plot([p.predicted for p in points], [p.slower for p in points], marker, color=colour, markersize=5)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda quotient, _: f"{quotient:g}"))
    axes.set_xlabel("seconds, predicted")
    axes.grid(color=FAINT, linewidth=0.6)
