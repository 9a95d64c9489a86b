"""A run's networks on several engines: rows, text, and the figure of what a ReLU cut buys on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from parelu.private.rows import Cost, Row
from parelu.report.grids import Column, Grid, Line, count, words
from parelu.report.plots import COLOURS, FAINT, MARKERS, STYLE, Tip, short, svg_text
from parelu.report.private import duration, size
from parelu.report.tables import candidates_of, label_of
from parelu.runs.folder import Record


@dataclasses.dataclass(frozen=True)
class EngineRow:
    """What an image cost one network on one engine: the whole of it, or the part that is online.

    seconds: median; bytes: to all parties; error: of a logit, against the float network; ring: against the ring
    reference; agreement: of the label with the float network, percent.
    """

    label: str
    relus: int
    engine: str
    part: str
    seconds: float
    bytes: float
    rounds: float
    error: float
    ring: float
    agreement: float
    threat_model: str


def engine_rows(records: Sequence[Record]) -> list[EngineRow]:
    """The rows of each network that several engines ran, most ReLUs first."""
    found = []
    for record in sorted(candidates_of(records), key=lambda r: (-r.metrics.relus_and_comparisons, r.name)):
        if record.private and record.private.others:
            for row in record.private.rows:
                parts = {"online": row.costs.online, "whole": row.costs.total}
                found += [_row(label_of(record), row, part, cost) for part, cost in parts.items() if cost]
    return found


def engines_grid(records: Sequence[Record]) -> Grid:
    """The rows as a table."""
    numbers = ("time", "bytes", "rounds", "from float", "from ring", "same label, %")
    columns: list[Column] = [
        ("network", "long"),
        ("ReLUs", "number"),
        ("engine", "text"),
        *((title, "number") for title in numbers),
    ]
    lines = [
        Line(
            [
                words(row.label),
                count(row.relus),
                words(f"{row.engine}, {row.part}"),
                (duration(row.seconds), row.seconds),
                (size(row.bytes), row.bytes),
                (f"{row.rounds:g}", row.rounds),
                *((f"{error:.4f}", error) for error in (row.error, row.ring)),
                (f"{row.agreement:.0f}", row.agreement),
                words(row.threat_model),
            ]
        )
        for row in engine_rows(records)
    ]
    caption = "From float, from ring: the largest difference of a logit from the float network and the ring reference."
    return Grid("engines", [*columns, ("threat model", "long")], lines, caption, filtered=False)


def _row(label: str, row: Row, part: str, cost: Cost) -> EngineRow:
    return EngineRow(
        label=label,
        relus=row.relus,
        engine=row.engine,
        part=part,
        seconds=cost.seconds,
        bytes=cost.bytes,
        rounds=cost.rounds,
        error=row.max_error,
        ring=row.ring.largest,
        agreement=100 * row.agreement,
        threat_model=row.threat_model,
    )


def engines_text(records: Sequence[Record]) -> str:
    """The rows as text; empty where no network was run on several engines."""
    rows = engine_rows(records)
    if not rows:
        return ""
    lines = [f"\n{'ReLUs':>10}  {'engine':<20}{'seconds':>10}{'bytes':>10}{'rounds':>8}{'error':>9}  threat model"]
    lines += [
        f"{row.relus:>10,}  {f'{row.engine}, {row.part}':<20}{duration(row.seconds):>10}{size(row.bytes):>10}"
        f"{row.rounds:>8g}{row.error:>9.4f}  {row.threat_model}"
        for row in rows
    ]
    return "\n".join(lines)


def engines_svg(records: Sequence[Record]) -> str:
    """Seconds and bytes over ReLUs, a line for each engine."""
    rows = engine_rows(records)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        tips = _panel(left, rows, [row.seconds for row in rows], "time an image", duration)
        tips += _panel(right, rows, [row.bytes for row in rows], "bytes an image", size)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False)
        return svg_text(figure, tips, "engines")


def _panel(axes: Axes, rows: Sequence[EngineRow], costs: Sequence[float], title: str, text) -> list[Tip]:
    tips: list[Tip] = []
    names = list(dict.fromkeys(row.engine for row in rows))
    for line in dict.fromkeys((row.engine, row.part) for row in rows):
        engine, part = line
        points = [
            (max(row.relus, 1), cost, row)
            for row, cost in zip(rows, costs, strict=True)
            if (row.engine, row.part) == line
        ]
        index = names.index(engine)
        axes.plot(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="-" if part == "online" else "--",
            linewidth=1.3,
            label=f"{engine}, {part}",
        )
        tips += [(axes, x, y, f"{row.label}\n{row.relus:,} ReLUs\n{engine}, {part}: {text(y)}") for x, y, row in points]
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, tick in ((axes.xaxis, short), (axes.yaxis, text)):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _, tick=tick: tick(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(title)
    axes.set_xlabel("ReLUs an image")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return tips
