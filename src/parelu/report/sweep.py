"""What a sweep shows: networks of several widths and multipliers, reduced, over ReLUs and over FLOPs.

DeepReShape's observation 5, the Capacity-Criticality trade-off: with many ReLUs left the widest network is the most
accurate, with few of them the one that had the largest share of its ReLUs in its least critical stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from parelu.network.count import stage_shares
from parelu.report.plots import COLOURS, FAINT, INK, MARKERS, save_figure, short
from parelu.report.tables import aligned
from parelu.runs.folder import Record, Run


def sweep_text(runs: Sequence[Run], budgets: Sequence[int]) -> str:
    """A row for each network and method: the test accuracy of the best validated candidate within each budget.

    runs: one a network, which has a row of its own where nothing reduced it; * marks the best of a column and method.
    """
    rows: list[tuple[str, str, list[str], list[float | None]]] = []
    for run in runs:
        full, *_ = [r for r in run.candidates() if r.metrics.role == "teacher"]
        about = [
            f"{full.metrics.relus_and_comparisons:,}",
            f"{full.metrics.flops / 1e6:,.1f} M",
            f"{_first_share(full):.1f}",
            f"{full.metrics.test_accuracy:.1f}",
        ]
        for method, candidates in (_by_method(run) or {"–": []}).items():
            rows.append((run.config["model"], method, about, [_best(candidates, budget) for budget in budgets]))
    best = {
        (method, i): max(row[3][i] or 0.0 for row in rows if row[1] == method)
        for _, method, _, _ in rows
        for i in range(len(budgets))
    }
    cells = [["ReLUs", "FLOPs", "S1 %", "all", *(f"≤ {short(budget)}" for budget in budgets), "method", "network"]]
    for network, method, about, found in rows:
        shown = [
            "–" if value is None else f"{'*' if value == best[method, i] else ''}{value:.1f}"
            for i, value in enumerate(found)
        ]
        cells.append([*about, *shown, method, network])
    return aligned(cells, left=2)


def _by_method(run: Run) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in run.candidates():
        if record.metrics.role == "candidate":
            found.setdefault(record.metrics.method, []).append(record)
    return found


def _best(candidates: Sequence[Record], budget: int) -> float | None:
    """Test accuracy of the best validated candidate of at most `budget` ReLUs."""
    within = [record.metrics for record in candidates if record.metrics.relus_and_comparisons <= budget]
    return max(within, key=lambda m: m.validation_accuracy).test_accuracy if within else None


def _first_share(record: Record) -> float:
    """Percent of the network's ReLUs that stand in S1, with the stem's: DeepReShape's distribution of ReLUs."""
    return stage_shares(record.metrics.stages_full).get("S1", 0.0)


def save_sweep(runs: Sequence[Run], path: Path) -> None:
    """Test accuracy over ReLUs and over FLOPs, a line for each network and method, as .png or .svg."""
    save_figure(path, lambda: _figure(runs))


def _figure(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    methods = sorted({method for run in runs for method in _by_method(run)})
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        full, *_ = [r for r in run.candidates() if r.metrics.role == "teacher"]
        for axes, cost in ((left, "relus_and_comparisons"), (right, "flops")):
            axes.plot(getattr(full.metrics, cost), full.metrics.test_accuracy, "*", color=colour, markersize=12)
        for method, candidates in _by_method(run).items():
            marker = MARKERS[methods.index(method) % len(MARKERS)]
            _line(left, candidates, "relus_and_comparisons", colour, marker)
            _line(right, candidates, "flops", colour, marker)
    _axis(left, "ReLUs an image")
    _axis(right, "FLOPs an image")
    left.set_ylabel("test accuracy, %")
    figure.legend(handles=_legend(runs, methods), loc="outside upper left", ncols=3, frameon=False)
    return figure


def _colours(number: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(number)]


def _line(axes: Axes, candidates: Sequence[Record], cost: str, colour: str, marker: str) -> None:
    """By falling ReLUs; a network without ReLUs has no place on the log scale."""
    points = [(x, r.metrics.test_accuracy) for r in candidates if (x := getattr(r.metrics, cost))]
    if points:
        x, y = zip(*points, strict=True)
        style = "-" if cost == "relus_and_comparisons" else "none"
        axes.plot(x, y, linestyle=style, marker=marker, color=colour, markersize=7, markeredgecolor="white")


def _axis(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(runs: Sequence[Run], methods: Sequence[str]) -> list[Line2D]:
    """A colour a network, a marker a method, a star for networks with all ReLUs."""
    handles = []
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        full, *_ = [r for r in run.candidates() if r.metrics.role == "teacher"]
        label = f"{run.config['model']}, {_first_share(full):.0f} % in S1"
        handles.append(Line2D([], [], color=colour, linewidth=3, label=label))
    for i, method in enumerate(methods):
        handles.append(Line2D([], [], color=INK, marker=MARKERS[i % len(MARKERS)], linestyle="", label=method))
    return [*handles, Line2D([], [], color=INK, marker="*", linestyle="", markersize=11, label="all ReLUs")]
