"""A paper's table beside runs: pairs of points, what keeps these from being compared, and the ratios papers quote."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from parelu.errors import UserError
from parelu.published import Published, find
from parelu.published import rows as published_rows
from parelu.report.standing import Ours, Point, match, ours_of, paper_point, spec_in, standing
from parelu.report.tables import aligned, plus_minus
from parelu.runs import pareto
from parelu.runs.folder import Run

# The method that a paper is about, by the name that its rows have.
OF_PAPER = {
    "deepreduce": ("deepreduce",),
    "autorep": ("autorep", "autorep-linear"),
    "shallow-again": ("gated-branching", "gated-branching+akd"),
    "deepreshape": ("hybrenet", "thin+snl"),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row of a paper, a network of ours, or both.

    Attributes:
        method: as the papers' rows name it; what: the row's name, or what ours is; dataset: the row's, "" for none.
        reasons: figure → why the network as we write it has another.
    """

    method: str
    what: str
    paper: Point | None
    ours: Point | None
    dataset: str = ""
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A method against another one, over the points where both are.

    Attributes:
        points: least and most points of accuracy more at equal ReLUs; None where no ReLUs are common to both.
        factor: least and most times fewer ReLUs at equal accuracy; None likewise.
    """

    method: str
    other: str
    points: tuple[float, float] | None
    factor: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Beside:
    """A paper's table beside runs.

    Attributes:
        source: such as "AutoReP Table 3".
        differences: what keeps accuracies from being compared, a sentence each; () where nothing does.
        paper_ratios, our_ratios: of the paper's points, and of ours.
        claims: what the paper's text says of the table, in numbers.
        left_out: rows of networks that the runs do not have.
    """

    source: str
    pairs: tuple[Pair, ...]
    differences: tuple[str, ...]
    paper_ratios: tuple[Ratio, ...]
    our_ratios: tuple[Ratio, ...]
    claims: tuple[str, ...]
    left_out: int

    @property
    def is_alike(self) -> bool:
        """Whether data set and networks are the paper's, so that accuracies can be compared."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        for json, pair in zip(value["pairs"], self.pairs, strict=True):
            for side, point in (("paper", pair.paper), ("ours", pair.ours)):
                if point:
                    json[side] |= {"change": point.change, "per_kilorelu": point.per_kilorelu}
        return value


def table_of(runs: Sequence[Run]) -> str:
    """The table that the recipe of some runs names; "" for none."""
    return next((str(run.config["paper"]) for run in runs if run.config.get("paper")), "")


def beside(runs: Sequence[Run], paper: str = "") -> Beside:
    """Runs beside the rows of a table, such as "AutoReP Table 3"; left out, of the table that their recipe names.

    Raises:
        UserError: there is no such table or it has no accuracies, none is named, the runs are of different data, or
            their full-ReLU network is not there.
    """
    paper = paper or table_of(runs)
    if not paper:
        raise UserError('these runs name no table of a paper; say which: --paper "AutoReP Table 3"')
    rows = [row for row in find(paper) if row.accuracy is not None]
    if not rows:
        raise UserError(f"{paper} has no accuracies to compare with; AutoReP Table 3 has, for example")
    data = {str(run.config.get("data")) for run in runs}
    if len(data) > 1:
        raise UserError(f"these runs are of different data ({', '.join(sorted(data))}); give runs of one data set")
    of_data = [row for row in rows if row.dataset == data.copy().pop().replace("-", "")]
    specs, ours = ours_of(runs)
    stands = standing(specs, of_data or rows)
    shown = [row for row in of_data or rows if row.network in stands or not spec_in(row)]
    alike = bool(of_data) and all(spec_in(row) == specs[stands[row.network]] for row in shown if row.network in stands)
    pairs = _pairs(shown, ours, stands, by_share=not alike)
    own, is_whole = OF_PAPER[rows[0].paper], len({row.source for row in rows}) > 1
    return Beside(
        source=paper if is_whole else rows[0].source,
        pairs=tuple(pairs),
        differences=() if alike else tuple(_differences(data.pop(), rows, bool(of_data), specs, stands)),
        paper_ratios=tuple(_ratios(own, pairs, "paper")),
        our_ratios=tuple(_ratios(own, pairs, "ours")),
        claims=() if is_whole else tuple(_claims(rows[0])),
        left_out=len(of_data or rows) - len(shown),
    )


def beside_named(runs: Sequence[Run]) -> Beside | str:
    """Runs beside the table that their recipe names; else why that cannot be, "" where it names none."""
    paper = table_of(runs)
    try:
        return beside(runs, paper) if paper else ""
    except UserError as error:
        return f"{paper}: {error}"


def _pairs(rows: Sequence[Published], ours: Sequence[Ours], stands: Mapping[str, str], *, by_share: bool) -> list[Pair]:
    """The rows in the paper's order, then what of ours stands for none."""
    pairs, taken = [], set()
    for row in rows:
        point = paper_point(row, _baseline(row, rows))
        found = None
        if point and row.network in stands:
            found = match(row, point, stands[row.network], ours, by_share=by_share)
        taken.add(id(found))
        pairs.append(Pair(row.method, row.row, point, found.point if found else None, row.dataset, row.exception))
    several = len({one.point.network for one in ours}) > 1
    for one in ours:
        if id(one) not in taken:
            what = ", ".join(filter(None, (one.steps if one.steps != "none" else "all ReLUs", one.note))) or "mask"
            pairs.append(Pair(one.kind, f"{one.point.network}: {what}" if several else what, None, one.point))
    return pairs


def _baseline(row: Published, rows: Sequence[Published]) -> float | None:
    """Accuracy of a row's full-ReLU network: the row's own, else the table's, else the paper's; of a row that quotes
    DeepReDuce, DeepReDuce's."""
    paper = "deepreduce" if row.method == "deepreduce" else row.paper
    known = [r for r in (*rows, *published_rows()) if r.method == "baseline" and r.paper == paper]
    of_network = (r.accuracy for r in known if (r.network, r.dataset) == (row.network, row.dataset))
    return row.accuracy_baseline or next(filter(None, of_network), None)


def _differences(
    data: str, rows: Sequence[Published], same_data: bool, specs: Mapping[str, Any], stands: Mapping[str, str]
) -> list[str]:
    there = ", ".join(dict.fromkeys(row.dataset for row in rows if row.dataset))
    found = [] if same_data else [f"The data set is {data} here and {there} in the paper."]
    shapes = sorted({"x".join(map(str, spec.input)) for spec in specs.values()})
    others = [f"{own} stands for {name}" for name, own in stands.items() if own != name]
    if others or same_data:
        found.append(f"Of the networks, on images of {', '.join(shapes)}, {', '.join(others) or 'none is the same'}.")
    if not stands:
        found.append(f"No network here ({', '.join(specs)}) is one of the table's or narrower by one factor.")
    return [
        *found,
        "So accuracies are not comparable: compare the change from the baseline at the same share of the ReLUs.",
    ]


def _claims(row: Published) -> list[str]:
    """What the text of a row's paper says of the row's table: rows of the text name it as T4."""
    number = row.table.replace("Table ", "T").replace("Figure ", "Fig ")
    return [
        f"{one.row}: {one.notes.removeprefix('text; ').removeprefix('caption; ').removeprefix('claim: ')}"
        for one in published_rows()
        if one.paper == row.paper
        and one.table in ("text", "caption")
        and re.search(rf"\b{number}\b", f"{one.row} {one.notes}")
        and re.search(r"fewer|points|less|more than|x the", one.notes)
    ]


def _ratios(own: Sequence[str], pairs: Sequence[Pair], side: Literal["paper", "ours"]) -> list[Ratio]:
    """Of the paper's methods against each of the others, of one side; the baselines are no method.

    Points of several data sets are never compared: ours are of one.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for pair in pairs:
        point: Point | None = getattr(pair, side)
        if point and point.relus and pair.method not in ("baseline", "only-stage"):
            of_data = curves.setdefault(pair.dataset if side == "paper" else "", {})
            of_data.setdefault(pair.method, []).append((point.relus, point.accuracy))
    found: dict[tuple[str, str], list[Ratio]] = {}
    for of_data in curves.values():
        best = {method: [points[i] for i in pareto.frontier(points)] for method, points in of_data.items()}
        for a, b in itertools.permutations(best, 2):
            if a in own and (b not in own or own.index(a) < own.index(b)):
                found.setdefault((a, b), []).append(_ratio(a, b, best[a], best[b]))
    joined = (_joined(ratios) for ratios in found.values())
    return [ratio for ratio in joined if ratio.points or ratio.factor]


def _joined(ratios: Sequence[Ratio]) -> Ratio:
    """Of several data sets: the range over all."""
    points = [end for ratio in ratios if ratio.points for end in ratio.points]
    factors = [end for ratio in ratios if ratio.factor for end in ratio.factor]
    return dataclasses.replace(
        ratios[0],
        points=(min(points), max(points)) if points else None,
        factor=(min(factors), max(factors)) if factors else None,
    )


def _ratio(method: str, other: str, a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> Ratio:
    """a, b: (ReLUs, accuracy) of both, by rising ReLUs and accuracy."""
    logs_a, logs_b = ([(math.log(relus), accuracy) for relus, accuracy in curve] for curve in (a, b))
    gains = [y - there for x, y in logs_a if (there := _between(logs_b, x)) is not None]
    gains += [there - y for x, y in logs_b if (there := _between(logs_a, x)) is not None]
    turned_a, turned_b = ([(y, x) for x, y in curve] for curve in (logs_a, logs_b))
    factors = [math.exp(there - x) for y, x in turned_a if (there := _between(turned_b, y)) is not None]
    factors += [math.exp(x - there) for y, x in turned_b if (there := _between(turned_a, y)) is not None]
    return Ratio(
        method,
        other,
        (min(gains), max(gains)) if gains else None,
        (min(factors), max(factors)) if factors else None,
    )


def _between(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """The value at x on the line through points of rising x; None outside of it."""
    for (x0, y0), (x1, y1) in itertools.pairwise([*curve, curve[-1]]):
        if x0 <= x <= x1:
            return y0 if x0 == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def beside_text(found: Beside) -> str:
    """The table as text, with a line for each thing to know about it."""
    lines = [*found.differences, *([""] if found.differences else []), aligned(cells(found), left=2)]
    reasons = dict.fromkeys(f"{figure}: {why}" for p in found.pairs for figure, why in p.reasons.items() if p.paper)
    lines += ["", *ratio_lines(found)] if found.paper_ratios or found.our_ratios else []
    lines += (
        ["", *(f"{found.source}, {reason}" for reason in reasons if not reason.startswith("steps"))] if reasons else []
    )
    lines += [f"The paper's text, {claim}" for claim in found.claims]
    if found.left_out:
        lines.append(f"{found.left_out} rows of networks that are not in these runs are left out.")
    return "\n".join(lines)


def cells(found: Beside) -> list[list[str]]:
    """A heading and a row for each pair, the paper's figure before ours; numbers first, then method and name."""
    share = not found.is_alike
    heads = [
        "ReLUs",
        "ours",
        *(["share", "ours"] if share else []),
        "test %",
        "ours",
        "change",
        "ours",
        "%/kReLU",
        "ours",
    ]
    lines = [[*heads, "method", f"row of {found.source}"]]
    for pair in found.pairs:
        sides = (pair.paper, pair.ours)
        lines.append(
            [
                *(f"{one.relus:,}" if one and one.relus is not None else "–" for one in sides),
                *(f"{one.share:.1%}" if one and one.share is not None else "–" for one in sides if share),
                *(plus_minus(one.accuracy, one.spread, one.seeds) if one else "–" for one in sides),
                *(_change(one) if one and one.change is not None else "–" for one in sides),
                *(_short(one.per_kilorelu) if one and one.per_kilorelu else "–" for one in sides),
                pair.method,
                pair.what,
            ]
        )
    return lines


def ratio_lines(found: Beside) -> list[str]:
    """The ratios of the paper's points beside ours."""
    ours = {(ratio.method, ratio.other): ratio for ratio in found.our_ratios}
    paper = {(ratio.method, ratio.other): ratio for ratio in found.paper_ratios}
    return [
        f"{method} against {other}: {_ratio_words(paper.get((method, other)))} in the paper, "
        f"{_ratio_words(ours.get((method, other)))} here"
        for method, other in dict.fromkeys([*paper, *ours])
    ]


def _ratio_words(ratio: Ratio | None) -> str:
    if ratio is None:
        return "no common points"
    words = []
    if ratio.points:
        words.append(f"{_range(*map(_signed, ratio.points))} points at equal ReLUs")
    if ratio.factor:
        words.append(f"{_range(*(f'{factor:.2g}' for factor in ratio.factor))}× fewer ReLUs at equal accuracy")
    return " and ".join(words)


def _range(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _change(point: Point) -> str:
    spread = f" ± {point.change_spread:.1f}" if point.change_spread else ""
    return _signed(point.change or 0.0) + spread


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def _signed(number: float) -> str:
    return f"{number:+.1f}".replace("-", "−")
