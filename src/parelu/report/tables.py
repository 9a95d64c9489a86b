"""What the records of runs say, as rows: candidates, means over seeds, and methods at equal ReLUs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from parelu import pareto
from parelu.errors import UserError
from parelu.run import Record

OURS = "deepreduce"


@dataclasses.dataclass(frozen=True)
class Row:
    """One network, or the same network of several seeds.

    Attributes:
        label: the steps, or the method whose mask it is.
        validation, test: mean accuracies in percent; spread: standard deviation of `test` over the seeds, 0 for one.
        low, high: the range of `test`.
        on_frontier: by validation accuracy, among all rows.
    """

    method: str
    label: str
    relus: int
    relus_without_stem: int
    squares: int
    macs: int
    depth: int
    validation: float
    test: float
    spread: float
    low: float
    high: float
    seeds: int
    on_frontier: bool

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Test accuracy of `OURS` less another method's at equal ReLUs, in points, paired by seed."""

    other: str
    relus: int
    label: str
    ours: float
    theirs: float
    difference: float
    spread: float
    seeds: int


def label_of(record: Record) -> str:
    m = record.metrics
    return m["steps"] or (f"{m['method']} mask" if m["budget"] else "all ReLUs")


def candidates_of(records: Iterable[Record]) -> list[Record]:
    """Those that stand for themselves: the full-ReLU networks and the methods' candidates."""
    chosen = [record for record in records if record.metrics["role"] != "criticality"]
    if not chosen:
        raise UserError("no network is finished in these runs yet; run the same command again to go on")
    return chosen


def frontier_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each network, most ReLUs first; the seeds of one network make one row."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in candidates_of(records):
        groups.setdefault((record.metrics["method"], label_of(record), record.metrics["relus"]), []).append(record)
    rows = [_row(method, label, group) for (method, label, _), group in groups.items()]
    chosen = set(pareto.frontier([(row.relus, row.validation) for row in rows]))
    rows = [dataclasses.replace(row, on_frontier=i in chosen) for i, row in enumerate(rows)]
    return sorted(rows, key=lambda row: (-row.relus, row.method, row.label))


def _row(method: str, label: str, group: Sequence[Record]) -> Row:
    first, tests = group[0].metrics, [record.metrics["test_accuracy"] for record in group]
    return Row(
        method=method,
        label=label,
        **{key: first[key] for key in ("relus", "relus_without_stem", "squares", "macs", "depth")},
        validation=statistics.mean(record.metrics["validation_accuracy"] for record in group),
        test=statistics.mean(tests),
        spread=statistics.stdev(tests) if len(tests) > 1 else 0.0,
        low=min(tests),
        high=max(tests),
        seeds=len(group),
        on_frontier=False,
    )


def compare(records: Sequence[Record]) -> list[Comparison]:
    """`OURS` beside each other method where a seed has both at equal ReLUs; of several of ours the best validated."""
    groups: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    reduced = [r for r in records if r.metrics["role"] == "candidate"]
    for other in (r for r in reduced if r.metrics["method"] != OURS):
        m = other.metrics
        equal = [
            r for r in reduced
            if r.metrics["method"] == OURS and (r.metrics["seed"], r.metrics["relus"]) == (m["seed"], m["relus"])
        ]  # fmt: skip
        if equal:
            ours = max(equal, key=lambda r: r.metrics["validation_accuracy"])
            key = (m["method"], m["relus"], label_of(ours))
            groups.setdefault(key, []).append((ours.metrics["test_accuracy"], m["test_accuracy"]))
    rows = []
    for (method, relus, label), pairs in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1], item[0][2])):
        differences = [a - b for a, b in pairs]
        ours, theirs = (statistics.mean(side) for side in zip(*pairs, strict=True))
        spread = statistics.stdev(differences) if len(pairs) > 1 else 0.0
        rows.append(Comparison(method, relus, label, ours, theirs, ours - theirs, spread, len(pairs)))
    return rows


def frontier_text(records: Sequence[Record]) -> str:
    """The rows and the comparisons as text; * marks the frontier."""
    rows = frontier_rows(records)
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("", lambda r: "*" if r.on_frontier else " "),
        ("ReLUs", lambda r: f"{r.relus:,}"),
        ("test %", lambda r: plus_minus(r.test, r.spread, r.seeds)),
        ("validation %", lambda r: f"{r.validation:.1f}"),
        ("MACs", lambda r: f"{r.macs / 1e6:,.1f} M"),
        ("method", lambda r: r.method),
        ("network", lambda r: r.label),
    ]
    text = _aligned([[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)], left=2)
    text += "\n* on the frontier, chosen by validation accuracy"
    compared = compare(records)
    if compared:
        cells = [["ReLUs", OURS, "other", "difference", "seeds", "method"]]
        for c in compared:
            difference = f"{c.difference:+.1f}" + (f" ± {c.spread:.1f}" if c.seeds > 1 else "")
            cells.append([f"{c.relus:,}", f"{c.ours:.1f}", f"{c.theirs:.1f}", difference, str(c.seeds), c.other])
        text += "\n\nat equal ReLUs, test accuracy in percent, paired by seed\n" + _aligned(cells, left=1)
    return text


def plus_minus(mean: float, spread: float, seeds: int) -> str:
    return f"{mean:.1f} ± {spread:.1f}" if seeds > 1 else f"{mean:.1f}"


def _aligned(cells: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width; the last `left` of them flush left."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    flush = len(widths) - left
    lines = [
        "  ".join(cell.ljust(width) if i >= flush else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)
