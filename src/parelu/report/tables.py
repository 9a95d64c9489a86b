"""What the records of runs say, as rows: candidates, means over seeds, and methods at equal ReLUs."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from parelu.errors import UserError
from parelu.network.metrics import Metrics
from parelu.private.cost.predict import Predicted, Prediction, averaged
from parelu.private.rows import Cost
from parelu.report import predicted
from parelu.report.private import duration, size
from parelu.runs import pareto
from parelu.runs.bars import bar
from parelu.runs.folder import Record, Run
from parelu.runs.predictions import Queries

OURS = "deepreduce"
OWN_ROLES = ("teacher", "candidate")  # of networks that stand for themselves
Axis = Literal["relus", "macs", "depth", "latency", "bytes", "predicted"]
MEASURED = ("latency", "bytes")
PRICED = (*MEASURED, "predicted")  # axes that squares count in too
WORDS = {
    "macs": "multiply-adds",
    "depth": "convolutions in a row",
    "latency": "online time",
    "bytes": "online bytes",
    "predicted": "predicted online time",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One network, or the same network of several seeds.

    Attributes:
        label: the steps, or the method whose mask it is; name: its folder in the run, the first seed's.
        validation, test: mean accuracies in percent; …spread: their standard deviations over the seeds, 0 for one.
        relus: with the comparisons of max-pools, which run as ReLUs do; comparisons: these; relus_without_stem:
            neither them nor the stem's.
        low, high: the range of `test`.
        latency, bytes: online seconds and bytes both ways of private inference, means over the seeds that were
            measured; None where none was.
        on_frontier: by validation accuracy and the axis asked for. A square costs a secure multiplication, so networks
            with squares are compared with each other, unless the axis is measured and has paid for them.
        network: that it was made of, where there are several.
        by_link: link → what a query is predicted to take, means over the seeds; without where none is: why.
    """

    method: str
    label: str
    name: str
    relus: int
    relus_without_stem: int
    comparisons: int
    squares: int
    macs: int
    depth: int
    validation: float
    validation_spread: float
    test: float
    spread: float
    low: float
    high: float
    seeds: int
    latency: float | None
    bytes: float | None
    on_frontier: bool
    network: str = ""
    by_link: Mapping[str, Prediction] = dataclasses.field(default_factory=dict)
    why: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the other networks of its runs."""
        return self.method, self.label, self.relus

    @property
    def predicted(self) -> float | None:
        """Online seconds over the first link."""
        first = next(iter(self.by_link.values()), None)
        return first.online.seconds if first else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Test accuracy of a method's network less another method's, of one network at equal ReLUs, paired by seed.

    Attributes:
        label: of the method's network; network: that both were made of, where there are several.
        ours, theirs: mean test accuracies in percent over the seeds that have both.
        difference: their mean difference; spread: the standard deviation of the differences, 0 for one seed.
    """

    method: str
    other: str
    relus: int
    label: str
    ours: float
    theirs: float
    difference: float
    spread: float
    seeds: int
    network: str = ""


def records_of(runs: Sequence[Run], queries: Queries | None = None) -> list[Record]:
    """The finished networks of runs; where these are about several networks, each record says about which.

    queries: that are predicted of those that stand for themselves.
    """
    several = len({run.network for run in runs}) > 1
    found = [(run, record) for run in runs for record in run.candidates()]
    records = [dataclasses.replace(record, network=run.network) if several else record for run, record in found]
    return foretold(records, queries) if queries else records


def foretold(records: Sequence[Record], queries: Queries) -> list[Record]:
    """Records with what queries of them will take, of those that stand for themselves."""
    with bar("predicting queries", len(records)) as progress:
        found = []
        for record in records:
            if record.metrics.role in OWN_ROLES and record.folder:
                record = dataclasses.replace(record, predicted=queries.candidate(record.folder))
            found.append(record)
            progress(1)
    return found


def label_of(record: Record) -> str:
    m = record.metrics
    limits = f"{m.limits} over {record.query}" if m.limits and record.query else m.limits
    note = "".join(f", {words}" for words in (limits, m.note) if words)
    network = f"{record.network}: " if record.network else ""
    return network + (m.steps or (f"{m.method} mask" if m.is_mask else "all ReLUs")) + note


def candidates_of(records: Iterable[Record]) -> list[Record]:
    """Those that stand for themselves: the full-ReLU networks and the methods' candidates."""
    chosen = [record for record in records if record.metrics.role in OWN_ROLES]
    if not chosen:
        raise UserError("no network is finished in these runs yet; run the same command again to go on")
    return chosen


def by_network(records: Sequence[Record]) -> list[list[Record]]:
    """The candidates, those together that differ in their seed only; most ReLUs first."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in candidates_of(records):
        m = record.metrics
        key = (-m.relus_and_comparisons, m.method, label_of(record), m.budget or 0, m.relus_full, m.macs, m.params)
        groups.setdefault(key, []).append(record)
    return [groups[key] for key in sorted(groups)]


def frontier_rows(records: Sequence[Record], x: Axis = "relus") -> list[Row]:
    """A row for each network, those that cost most on the axis first; the seeds of one network make one row.

    Raises:
        UserError: the axis is a measured one, and nothing was measured; or nothing can be predicted.
    """
    rows = [row_of(group) for group in by_network(records)]
    on = on_frontier(rows, x)
    costs = [cost if (cost := getattr(row, x)) is not None else -1 for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -costs[i])
    return [dataclasses.replace(rows[i], on_frontier=i in on) for i in order]


def on_frontier(rows: Sequence[Row], x: Axis) -> set[int]:
    """Indices of the rows that are on the frontier over an axis; raises as `frontier_rows` does."""
    costs: list[float | None] = [getattr(row, x) for row in rows]
    if all(cost is None for cost in costs):
        if x in MEASURED:
            raise UserError(f"no network of these runs has a measured {x}; run parelu bench RUN first")
        why = "; ".join(dict.fromkeys(row.why for row in rows if row.why))
        raise UserError(f"no query of these runs' networks can be predicted: {why}")
    chosen: set[int] = set()
    for squares in (False, True):
        board = [i for i, row in enumerate(rows) if x in PRICED or bool(row.squares) == squares]
        points = [(cost, rows[i].validation, i) for i in board if (cost := costs[i]) is not None]
        best = pareto.frontier([(cost, accuracy) for cost, accuracy, _ in points])
        chosen |= {points[i][2] for i in best}
    return chosen


def key_of(record: Record) -> tuple[str, str, int]:
    """That of its row."""
    return record.metrics.method, label_of(record), record.metrics.relus_and_comparisons


def row_of(group: Sequence[Record]) -> Row:
    """Of one network in its seeds, as on no frontier."""
    first, tests = group[0].metrics, [record.metrics.test_accuracy for record in group]
    validations = [record.metrics.validation_accuracy for record in group]
    return Row(
        method=first.method,
        label=label_of(group[0]),
        name=group[0].name,
        relus=first.relus_and_comparisons,
        relus_without_stem=first.relus_without_stem,
        comparisons=first.comparisons,
        squares=first.squares,
        macs=first.macs,
        depth=first.depth,
        validation=statistics.mean(validations),
        validation_spread=_deviation(validations),
        test=statistics.mean(tests),
        spread=_deviation(tests),
        low=min(tests),
        high=max(tests),
        seeds=len({record.metrics.seed for record in group}),
        latency=_online(group, lambda online: online.seconds),
        bytes=_online(group, lambda online: online.bytes),
        on_frontier=False,
        network=group[0].network,
        by_link=_by_link(found := [record.predicted for record in group if record.predicted]),
        why=next((one.why for one in found if one.why), ""),
    )


def _by_link(found: Sequence[Predicted]) -> dict[str, Prediction]:
    links = dict.fromkeys(link for each in found for link in each.by_link)
    return {link: averaged([each.by_link[link] for each in found if link in each.by_link]) for link in links}


def _online(group: Sequence[Record], figure: Callable[[Cost], float]) -> float | None:
    """The mean of a figure of the online phase over the measured."""
    measured = [online for record in group if record.private and (online := record.private.row.costs.online)]
    return statistics.mean(map(figure, measured)) if measured else None


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def compare(records: Sequence[Record], ours: str = OURS) -> list[Comparison]:
    """A method's networks beside each other method's where a seed has both at equal ReLUs.

    Where a method has several networks of one ReLU count, the one stands for it that shares the most seeds with the
    other, then the best validated. Where no network is of `ours`, the first method by name takes its place.
    """
    found: dict[tuple[str, int, str], dict[str, dict[int, Record]]] = {}
    for record in (r for r in records if r.metrics.role == "candidate"):
        m = record.metrics
        key = (m.method, m.relus_and_comparisons, record.network)
        found.setdefault(key, {}).setdefault(label_of(record), {})[m.seed] = record
    methods = sorted({method for method, _, _ in found})
    first = ours if ours in methods or not methods else methods[0]
    rows = []
    for (other, relus, network), theirs in sorted(found.items(), key=lambda one: (one[0][0], -one[0][1], one[0][2])):
        pairs = [
            (label, [(mine[seed], its[seed]) for seed in sorted(mine.keys() & its.keys())])
            for (label, mine), its in itertools.product(found.get((first, relus, network), {}).items(), theirs.values())
        ]
        if other != first and any(shared for _, shared in pairs):
            label, shared = max(
                pairs, key=lambda pair: (len(pair[1]), *_means(pair[1], lambda m: m.validation_accuracy))
            )
            mine, its = _means(shared, lambda m: m.test_accuracy)
            differences = [a.metrics.test_accuracy - b.metrics.test_accuracy for a, b in shared]
            spread = _deviation(differences)
            rows.append(Comparison(first, other, relus, label, mine, its, mine - its, spread, len(shared), network))
    return rows


def _means(pairs: Sequence[tuple[Record, Record]], figure: Callable[[Metrics], float]) -> tuple[float, float]:
    if not pairs:
        return 0.0, 0.0
    mine, its = (statistics.mean(figure(record.metrics) for record in side) for side in zip(*pairs, strict=True))
    return mine, its


Column = tuple[str, Callable[[Row], str]]


def _predicted_columns(links: Sequence[str]) -> list[Column]:
    def column(at: int) -> Callable[[Row], str]:
        return lambda row: predicted.cells(row.by_link, links)[at]

    return [(head, column(at)) for at, head in enumerate(predicted.heads(links))] if links else []


def frontier_text(records: Sequence[Record], x: Axis = "relus", queries: Queries | None = None) -> str:
    """The rows and the comparisons as text; * marks the frontier on the axis. queries: that were predicted."""
    rows = frontier_rows(records, x)
    columns: list[Column] = [
        ("", lambda r: "*" if r.on_frontier else " "),
        ("ReLUs", lambda r: f"{r.relus:,}"),
        *([("of max-pools", lambda r: f"{r.comparisons:,}")] if any(row.comparisons for row in rows) else []),
        ("test %", lambda r: plus_minus(r.test, r.spread, r.seeds)),
        ("validation %", lambda r: plus_minus(r.validation, r.validation_spread, r.seeds)),
        *([("squares", lambda r: f"{r.squares:,}")] if any(row.squares for row in rows) else []),
        ("MACs", lambda r: f"{r.macs / 1e6:,.1f} M"),
        *([("depth", lambda r: str(r.depth))] if x == "depth" else []),
        *([("online", lambda r: "–" if r.latency is None else duration(r.latency))] if x == "latency" else []),
        *([("bytes", lambda r: "–" if r.bytes is None else size(r.bytes))] if x == "bytes" else []),
        *_predicted_columns(list(dict.fromkeys(link for row in rows for link in row.by_link))),
        ("method", lambda r: r.method),
        ("network", lambda r: r.label),
    ]
    text = aligned([[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)], left=2)
    text += f"\n* on the frontier{'' if x == 'relus' else f' over {WORDS[x]}'}, chosen by validation accuracy"
    apart = any(row.squares for row in rows) and x not in PRICED
    text += "; networks with squares have one of their own" if apart else ""
    if queries:
        text += "\n" + predicted.note(queries, [record.predicted.why for record in records if record.predicted])
    compared = compare(records)
    if compared:
        cells = [["ReLUs", compared[0].method, "other", "difference", "seeds", "method"]]
        for c in compared:
            difference = f"{c.difference:+.1f}" + (f" ± {c.spread:.1f}" if c.seeds > 1 else "")
            other = f"{c.other}, {c.network}" if c.network else c.other
            cells.append([f"{c.relus:,}", f"{c.ours:.1f}", f"{c.theirs:.1f}", difference, str(c.seeds), other])
        text += "\n\nat equal ReLUs, test accuracy in percent, paired by seed\n" + aligned(cells, left=1)
    return text


def with_comparisons(row: Row) -> str:
    """What stands behind a number of ReLUs that has those of max-pools in it."""
    return f" ({row.comparisons:,} of them in max-pools)" if row.comparisons else ""


def plus_minus(mean: float, spread: float, seeds: int) -> str:
    return f"{mean:.1f} ± {spread:.1f}" if seeds > 1 else f"{mean:.1f}"


def aligned(cells: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width; the last `left` of them flush left."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    flush = len(widths) - left
    lines = [
        "  ".join(
            cell.ljust(width) if i >= flush else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
