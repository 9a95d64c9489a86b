"""Accuracy over the online seconds of a query, link by link: predicted, beside it what was measured, and budgets."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parelu.methods.limits import ONLINE, parse_limits
from parelu.methods.limits import shown as in_unit
from parelu.private.cost.predict import spread
from parelu.report.grids import Grid, count, words
from parelu.report.latency import set_scale
from parelu.report.live import line
from parelu.report.plots import INK, SOFT, STYLE, Tip, styles, svg_text
from parelu.report.predicted import NONE, cells, heads, note, numbers
from parelu.report.private import duration
from parelu.report.tables import Row, by_network, plus_minus, row_of
from parelu.runs import pareto
from parelu.runs.folder import Record
from parelu.runs.predictions import Queries

FULL = INK, "*"  # colour and marker of the full-ReLU network
COLUMNS = 2  # of panels


@dataclasses.dataclass(frozen=True)
class Point:
    """One network. measured: link → online seconds as `bench` measured them, means over the seeds."""

    row: Row
    measured: Mapping[str, float]

    @property
    def links(self) -> list[str]:
        return list(dict.fromkeys([*self.row.by_link, *self.measured]))


def with_links(queries: Queries, records: Sequence[Record]) -> Queries:
    """Over the links too that budgets are about, and that measurements went over."""
    asked = [record.query.split(", ")[0] for record in records if record.metrics.limits and record.query]
    measured = [link for record in records if (found := _measured(record, queries)) for link in found]
    return dataclasses.replace(queries, links=tuple(dict.fromkeys((*queries.links, *asked, *measured))))


def _measured(record: Record, queries: Queries) -> dict[str, float]:
    """Link → online seconds, of a network that was measured as it is predicted."""
    row = record.private.row if record.private else None
    asked = queries.options
    wanted = asked.relu, asked.offline, asked.batch, asked.truncation, asked.queries
    if not row or (row.relu, row.offline_mode, row.batch, row.truncation, row.queries) != wanted:
        return {}
    return {row.link: row.costs.online.seconds} if row.costs.online else {}


def points(records: Sequence[Record], queries: Queries) -> list[Point]:
    """Of all networks for which something is known."""
    found = []
    for group in by_network(records):
        each = [one for record in group if (one := _measured(record, queries))]
        links = dict.fromkeys(link for one in each for link in one)
        measured = {link: statistics.mean(one[link] for one in each if link in one) for link in links}
        found.append(Point(row_of(group), measured))
    return [point for point in found if point.links]


def seconds_grid(records: Sequence[Record], rows: Sequence[Row], queries: Queries) -> Grid:
    """A line for each network. rows: of all, which say which are on the frontier."""
    found, on = points(records, queries), {row.key for row in rows if row.on_frontier}
    has_measured = any(point.measured for point in found)
    titles = ["ReLUs", "test, %", *heads(queries.links), *(["measured online"] if has_measured else [])]
    lines = []
    for point in found:
        row = point.row
        row = dataclasses.replace(row, on_frontier=row.key in on)
        said = ", ".join(f"{duration(seconds)} {link}" for link, seconds in point.measured.items()) or NONE
        test = plus_minus(row.test, row.spread, row.seeds), row.test
        shown = zip(cells(row.by_link, queries.links), numbers(row.by_link, queries.links), strict=True)
        measured = [(said, min(point.measured.values(), default=None))] if has_measured else []
        lines.append(line(row, words(row.label), count(row.relus), test, *shown, *measured))
    return Grid("seconds", [("network", "long"), *((title, "number") for title in titles)], lines)


def caption(records: Sequence[Record], queries: Queries) -> list[str]:
    """Sentences under the picture: how queries run, whose seconds they are, and how sure they are."""
    low, high = spread(queries.calibration.points, "online")
    whys = [record.predicted.why for record in records if record.predicted]
    said = [f"{line}." for line in note(queries, whys).splitlines()]
    sure = f"Nine of ten online seconds of that calibration are {low:.2f} to {high:.2f} times what it predicts."
    signs = "Filled: predicted; hollow, and joined to it: measured."
    return [*said, sure, *([signs] if any(point.measured for point in points(records, queries)) else [])]


def seconds_svg(records: Sequence[Record], queries: Queries, rows: Sequence[Row] = ()) -> str:
    """A panel for each link; budgets of online seconds are upright lines; "" where nothing is known.

    rows: of all networks of the page, so that a method looks the same everywhere; those of the records if left out.
    """
    found = points(records, queries)
    links = [link for link in queries.links if any(link in point.links for point in found)]
    if not links:
        return ""
    known, budgets = styles(rows or [point.row for point in found]), _budgets(records)
    lines = math.ceil(len(links) / COLUMNS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.4 + 4.0 * lines), layout="constrained")
        grid = figure.subplots(lines, min(COLUMNS, len(links)), sharey=True, squeeze=False)
        panels = list(grid.flat)
        tips = [tip for axes, link in zip(panels, links, strict=False) for tip in _panel(axes, found, link, known)]
        for axes, link in zip(panels, links, strict=False):
            _draw_budgets(axes, budgets.get(link, ()))
        for axes in panels[len(links) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("test accuracy, %")
        handles, labels = panels[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=6, frameon=False)
        return svg_text(figure, tips, "seconds")


def _budgets(records: Sequence[Record]) -> dict[str, list[float]]:
    """Link → online seconds that networks were limited to."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record.metrics.limits and record.query:
            most = parse_limits(record.metrics.limits).most.get(ONLINE)
            here = found.setdefault(record.query.split(", ")[0], [])
            if most is not None and most not in here:
                here.append(most)
    return found


def _draw_budgets(axes: Axes, budgets: Sequence[float]) -> None:
    for seconds in budgets:
        axes.axvline(seconds, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"≤ {in_unit(ONLINE, seconds, 3)}",
            (seconds, 0),
            (3, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            fontsize=9.5,
            color=SOFT,
            rotation=90,
        )


def _panel(axes: Axes, found: Sequence[Point], link: str, known: Mapping[str, tuple[str, str]]) -> list[Tip]:
    tips: list[Tip] = []
    for point in found:
        row, (colour, marker) = point.row, known.get(point.row.method, FULL)
        expected, measured = row.by_link.get(link), point.measured.get(link)
        style = {"color": colour, "markersize": 14 if marker == "*" else 8, "markeredgewidth": 0.9}
        if expected and measured:
            axes.plot([expected.online.seconds, measured], [row.test] * 2, "-", color=colour, linewidth=1)
        if expected:
            label = "all ReLUs" if row.method == "train" else row.method
            axes.plot(expected.online.seconds, row.test, marker, markeredgecolor="white", label=label, **style)
            tips.append((axes, expected.online.seconds, row.test, _tip(point, link)))
        if measured:
            axes.plot(measured, row.test, marker, markerfacecolor="white", markeredgecolor=colour, **style)
            tips.append((axes, measured, row.test, _tip(point, link)))
    placed = [(each.online.seconds, point.row) for point in found if (each := point.row.by_link.get(link))]
    best = pareto.frontier([(seconds, row.validation) for seconds, row in placed])
    steps = [placed[i] for i in best]
    line = {"color": INK, "linewidth": 1.1, "alpha": 0.55, "drawstyle": "steps-post", "zorder": 1}
    axes.plot([seconds for seconds, _ in steps], [row.test for _, row in steps], "-", **line)
    set_scale(axes, f"online time of a query over {link}, predicted", duration)
    return tips


def _tip(point: Point, link: str) -> str:
    row, lines = point.row, [point.row.label, f"{point.row.relus:,} ReLUs, test {point.row.test:.1f} %"]
    if expected := row.by_link.get(link):
        online, offline = expected.online, expected.offline
        lines.append(f"{link}, predicted: online {duration(online.seconds)}, offline {duration(offline.seconds)}")
    if measured := point.measured.get(link):
        lines.append(f"measured: online {duration(measured)}")
    return "\n".join(lines)
