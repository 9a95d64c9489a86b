"""Measured private inference of a run's networks: rows, text, and the second frontier plot."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from parelu.private.rows import Part
from parelu.report.grids import Column, Grid, Line, count, words
from parelu.report.plots import COLOURS, FAINT, INK, MARKERS, STYLE, Tip, svg_text
from parelu.report.private import PARTS, PARTS_NOTE, duration, size
from parelu.report.tables import candidates_of, frontier_rows, label_of
from parelu.runs import pareto
from parelu.runs.folder import Record


@dataclasses.dataclass(frozen=True)
class Measured:
    """One network's private inference.

    Attributes:
        test: float test accuracy; ring: that of the ring program, which private inference has; agreement: of their
            top-1; all in percent, over the test set.
        online, offline: seconds, median; online_bytes, offline_bytes: both ways. parts: as in `Costs`.
        hints_bytes: that come once a client, 0 where the offline mode has none.
        rounds: online; setting: engine, protocols and link; threat_model: whom the privacy rests on.
    """

    label: str
    name: str
    method: str
    relus: int
    squares: int
    test: float
    ring: float
    agreement: float
    overflow_rate: float
    online: float
    offline: float
    online_bytes: float
    offline_bytes: float
    hints_bytes: float
    rounds: float
    setting: str
    threat_model: str
    parts: Mapping[str, Mapping[str, Part]]

    @property
    def part_cells(self) -> list[str]:
        """Under the heads of `PART_HEADS`, of each the linear layers and the ReLUs."""
        return [
            text(figure(part)) if (part := self.parts.get(phase, {}).get(name)) else "–"
            for _, phase, figure, text in PART_HEADS
            for name in PARTS
        ]


SECONDS, BYTES = operator.attrgetter("seconds"), operator.attrgetter("bytes")
PART_HEADS: tuple[tuple[str, str, Callable[[Part], float], Callable[[float], str]], ...] = (
    ("online", "online", SECONDS, duration),
    ("offline", "offline", SECONDS, duration),
    ("online bytes", "online", BYTES, size),
    ("offline bytes", "offline", BYTES, size),
)


def names_to_measure(records: Sequence[Record], *, every: bool = False) -> list[str]:
    """The full-ReLU network, and those on the frontier, or every candidate."""
    if every:
        return [record.name for record in candidates_of(records)]
    full = [record.name for record in records if record.metrics.method == "train"]
    return list(dict.fromkeys((*full[:1], *(row.name for row in frontier_rows(records) if row.on_frontier))))


def measured_rows(records: Sequence[Record]) -> list[Measured]:
    """A row for each network that was measured, most ReLUs first."""
    rows = [_row(record) for record in candidates_of(records) if record.private]
    return sorted(rows, key=lambda row: (-row.relus, row.name))


def measured_grid(records: Sequence[Record]) -> Grid:
    """The rows as a table."""
    rows = measured_rows(records)
    has_hints, several = any(row.hints_bytes for row in rows), len({row.setting for row in rows}) > 1
    titles = ["ReLUs", "squares", "float test, %", "ring test, %", "same label, %", "out of range", "online"]
    titles += ["online bytes", "rounds", "offline", "offline bytes", *(["hints, once"] if has_hints else [])]
    columns: list[Column] = [("network", "long"), *((title, "number") for title in titles)]
    lines = [
        Line(
            [
                words(row.label),
                count(row.relus),
                count(row.squares),
                *((f"{share:.2f}", share) for share in (row.test, row.ring, row.agreement)),
                (f"{row.overflow_rate:.1e}" if row.overflow_rate else "none", row.overflow_rate),
                (duration(row.online), row.online),
                (size(row.online_bytes), row.online_bytes),
                (f"{row.rounds:g}", row.rounds),
                (duration(row.offline), row.offline),
                (size(row.offline_bytes), row.offline_bytes),
                *([(size(row.hints_bytes), row.hints_bytes)] if has_hints else []),
                *([words(row.setting)] if several else []),
            ],
            row.name,
            method=row.method,
        )
        for row in rows
    ]
    caption = (
        "Out of range: the share of ReLU inputs beyond the calibrated bits. Offline needs no image and is done ahead."
    )
    caption += " A client keeps hints for all its queries." if has_hints else ""
    return Grid(
        "measured", [*columns, *([("measured with", "text")] if several else [])], lines, caption, filtered=False
    )


def _row(record: Record) -> Measured:
    assert record.private
    ring, row = record.private.ring, record.private.row
    online, offline = row.costs.online, row.costs.offline
    assert online and offline, "of delphi"
    return Measured(
        label=label_of(record),
        name=record.name,
        method=record.metrics.method,
        relus=row.relus,
        squares=row.squares,
        test=ring.float_accuracy,
        ring=ring.accuracy,
        agreement=ring.agreement,
        overflow_rate=ring.overflow_rate,
        online=online.seconds,
        offline=offline.seconds,
        online_bytes=online.bytes,
        offline_bytes=offline.bytes,
        hints_bytes=row.costs.hints_bytes or 0,
        rounds=online.rounds,
        setting=row.setting,
        threat_model=row.threat_model,
        parts=row.costs.parts or {},
    )


def measured_text(records: Sequence[Record]) -> str:
    """The rows as text, then the parts of those that have them."""
    rows = measured_rows(records)
    lines = [f"{'ReLUs':>10}{'test %':>9}{'ring %':>9}{'online':>10}{'bytes':>10}{'rounds':>8}{'offline':>10}  network"]
    for r in rows:
        lines.append(
            f"{r.relus:>10,}{r.test:>9.1f}{r.ring:>9.1f}{duration(r.online):>10}{size(r.online_bytes):>10}"
            f"{r.rounds:>8g}{duration(r.offline):>10}  {r.label}"
        )
    for setting in dict.fromkeys(f"{r.setting} ({r.threat_model})" for r in rows):
        lines.append(setting)
    hints = [r.hints_bytes for r in rows if r.hints_bytes]
    if hints:
        lines.append(f"hints, which a client keeps: once {size(min(hints))} to {size(max(hints))} a network")
    return "\n".join(lines + _parts_lines([row for row in rows if row.parts]))


def _parts_lines(rows: Sequence[Measured]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{'':>10}" + "".join(f"{head:>20}" for head, *_ in PART_HEADS)]
    lines += [f"{'ReLUs':>10}" + "".join(f"{name:>10}" for name in PARTS.values()) * len(PART_HEADS) + "  network"]
    lines += [
        f"{row.relus:>10,}" + "".join(f"{cell:>10}" for cell in row.part_cells) + f"  {row.label}" for row in rows
    ]
    return [*lines, PARTS_NOTE]


def gained_text(records: Sequence[Record], truth: int) -> str:
    """What the frontier's knee, or all that was reduced, gains over the full-ReLU network, in three lines, after what
    they are measured on: the first test image, of class `truth`.
    """
    measured = {record.name: record for record in records if record.private}
    full = next(record for record in measured.values() if record.metrics.method == "train")
    rows = [row for row in frontier_rows(records) if row.on_frontier and row.name in measured]
    found = rows[pareto.knee([(row.relus, row.validation) for row in rows])].name
    others = [row.name for row in rows if row.name != full.name]
    knee = measured[others[-1] if found == full.name and others else found]
    before, after = _row(full), _row(knee)
    said = [record.private.row.labels[0] for record in (full, knee) if record.private]
    return "\n".join(
        [
            f"{label_of(knee)}, at the frontier's knee, beside all ReLUs: private inference by two processes",
            f"of test image 0, of class {truth}, they say {said[0]} and {said[1]}; {before.threat_model}",
            f"  ReLUs   {before.relus:,} → {after.relus:,} ({_fewer(before.relus, after.relus)} fewer); of the "
            f"test set right, in the ring: {before.ring:.1f} → {after.ring:.1f} % ({after.ring - before.ring:+.1f})",
            f"  online  {duration(before.online)} → {duration(after.online)}; {size(before.online_bytes)} → "
            f"{size(after.online_bytes)} ({_fewer(before.online_bytes, after.online_bytes)} fewer)",
            f"  ahead   {duration(before.offline)} → {duration(after.offline)}; {size(before.offline_bytes)} → "
            f"{size(after.offline_bytes)} ({_fewer(before.offline_bytes, after.offline_bytes)} fewer)",
        ]
    )


def _fewer(before: float, after: float) -> str:
    """As "12 times"."""
    ratio = before / after if after else math.inf
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def latency_svg(records: Sequence[Record]) -> str:
    """Ring accuracy against online seconds and against online bytes; the frontiers as steps."""
    rows = measured_rows(records)
    methods = list(dict.fromkeys(row.method for row in sorted(rows, key=lambda row: row.method)))
    styles = {
        method: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, method in enumerate(method for method in methods if method != "train")
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        tips = _panel(left, rows, [row.online for row in rows], styles, "online time an image", duration)
        tips += _panel(right, rows, [row.online_bytes for row in rows], styles, "online bytes an image", size)
        left.set_ylabel("test accuracy in the ring, %")
        handles, labels = left.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=6, frameon=False)
        return svg_text(figure, tips, "latency")


def _panel(
    axes: Axes, rows: Sequence[Measured], costs: Sequence[float], styles: dict[str, tuple[str, str]], title: str, short
) -> list[Tip]:
    tips: list[Tip] = []
    for row, cost in zip(rows, costs, strict=True):
        colour, marker = styles.get(row.method, (INK, "*"))
        label = "all ReLUs" if row.method == "train" else row.method
        axes.plot(
            cost,
            row.ring,
            marker,
            color=colour,
            markersize=14 if marker == "*" else 8,
            markeredgecolor="white",
            markeredgewidth=0.9,
            label=label,
        )
        tips.append(
            (
                axes,
                cost,
                row.ring,
                f"{row.label}\n{row.relus:,} ReLUs\nring {row.ring:.1f} %, float "
                f"{row.test:.1f} %\nonline {duration(row.online)}, {size(row.online_bytes)}",
            )
        )
    best = pareto.frontier(list(zip(costs, [row.ring for row in rows], strict=True)))
    axes.plot(
        [costs[i] for i in best],
        [rows[i].ring for i in best],
        "-",
        color=INK,
        linewidth=1.1,
        alpha=0.55,
        drawstyle="steps-post",
        zorder=1,
    )
    set_scale(axes, title, short)
    return tips


def set_scale(axes: Axes, title: str, short: Callable[[float], str]) -> None:
    """A log scale of a cost. short: a number for people."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()  # a narrow range has few of 1, 3, 10, …, and then labels too near to each other
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)) if high >= 8 * low else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.08)
    axes.set_xlabel(title)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
