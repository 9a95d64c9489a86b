"""What the page's script draws, filters and hands out: the figures of all networks, and the curves of some."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from parelu.errors import UserError
from parelu.report.grids import FEW, Column, Grid, Line, count, words
from parelu.report.plots import styles
from parelu.report.tables import Axis, Row, key_of, label_of, on_frontier, plus_minus
from parelu.runs.folder import Record

Kind = Literal["text", "count", "percent", "seconds", "bytes", "flag"]
FULL_STYLE = None, "*"  # colour, that of the text, and marker of the full-ReLU networks
DRAWN: tuple[Axis, ...] = ("relus", "macs", "latency", "predicted")  # of many networks, the frontiers over these


@dataclasses.dataclass(frozen=True)
class Figure:
    """A column of what is handed out. is_cost: whether accuracy is drawn over it, and priced: squares count in it."""

    key: str
    title: str
    kind: Kind
    is_cost: bool = False
    priced: bool = False


def figures(links: Sequence[str]) -> list[Figure]:
    """Of a network; the first four say which it is."""
    by_link = [
        Figure(f"{phase}_seconds_{link}", f"{phase} over {link}, predicted", "seconds", phase == "online", True)
        for link in links
        for phase in ("online", "offline")
    ]
    return [
        *(Figure(key, key, "text") for key in ("label", "name", "network", "method")),
        Figure("relus", "ReLUs", "count", is_cost=True),
        Figure("relus_without_stem", "ReLUs without the stem's", "count"),
        Figure("comparisons", "of max-pools", "count"),
        Figure("squares", "squares", "count"),
        Figure("macs", "multiply-adds", "count", is_cost=True),
        Figure("depth", "convolutions in a row", "count", is_cost=True),
        Figure("validation", "validation", "percent"),
        Figure("validation_spread", "its standard deviation", "percent"),
        Figure("test", "test", "percent"),
        Figure("test_spread", "its standard deviation", "percent"),
        Figure("test_lowest", "lowest", "percent"),
        Figure("test_highest", "highest", "percent"),
        Figure("seeds", "seeds", "count"),
        Figure("on_frontier", "on the frontier", "flag"),
        Figure("online_seconds", "online, measured", "seconds", is_cost=True, priced=True),
        Figure("online_bytes", "online bytes, measured", "bytes", is_cost=True, priced=True),
        *by_link,
        Figure("bytes", "bytes of both phases, predicted", "bytes", is_cost=True, priced=True),
    ]


def values(row: Row) -> dict[str, Any]:
    """Figure → its value; without those that there are not."""
    found: dict[str, Any] = {**dataclasses.asdict(dataclasses.replace(row, by_link={}))}
    found |= {"online_seconds": row.latency, "online_bytes": row.bytes, "bytes": None}
    found |= {"test_spread": row.spread, "test_lowest": row.low, "test_highest": row.high}
    if row.seeds == 1:
        found |= dict.fromkeys(("validation_spread", "test_spread", "test_lowest", "test_highest"))
    for link, each in row.by_link.items():
        found |= {f"{phase}_seconds_{link}": getattr(each, phase).seconds for phase in ("online", "offline")}
        found["bytes"] = each.online.bytes + each.offline.bytes
    return found


def live(rows: Sequence[Row], curves: Sequence[Record], grids: Sequence[Grid]) -> dict[str, Any]:
    """The page's data. curves: the records of which training is drawn."""
    all_of = [values(row) for row in rows]
    wanted = figures(list(dict.fromkeys(link for row in rows for link in row.by_link)))
    known = [one for one in wanted if any(each.get(one.key) is not None for each in all_of)]
    accuracies = [{"key": key, "title": f"{key} accuracy, %", "kind": "percent"} for key in ("test", "validation")]
    costs = [dataclasses.asdict(one) | {"log": one.key != "depth"} for one in known if one.is_cost]
    on = {row.key for row in rows if row.on_frontier}
    return {
        "networks": {
            "columns": [[one.key, one.title, one.kind] for one in known],
            "rows": [[each.get(one.key) for one in known] for each in all_of],
        },
        "axes": {"x": costs, "y": accuracies},
        "styles": {**styles(rows), "train": FULL_STYLE},
        "curves": [_curve(record, on) for record in curves],
        "grids": {grid.id: grid.to_json() for grid in grids},
    }


def _curve(record: Record, on: set[tuple[str, str, int]]) -> dict[str, Any]:
    m, history = record.metrics, record.history
    return {
        "label": label_of(record),
        "name": record.name,
        "network": record.network,
        "method": m.method,
        "relus": m.relus_and_comparisons,
        "seed": m.seed,
        "on": key_of(record) in on,
        "epoch": [epoch.epoch for epoch in history],
        "validation_accuracy": [round(epoch.validation_accuracy, 4) for epoch in history],
        "loss": [float(f"{epoch.loss:.5g}") for epoch in history],
    }


def drawn(records: Sequence[Record], rows: Sequence[Row]) -> list[Record]:
    """Of few networks all; of many those with all ReLUs, and those on a frontier over any of `DRAWN`."""
    if len(records) <= FEW:
        return list(records)
    chosen = {row.key for row in rows if row.method == "train"}
    for axis in DRAWN:
        with contextlib.suppress(UserError):  # of an axis that no network has
            chosen |= {rows[i].key for i in on_frontier(rows, axis)}
    return [record for record in records if key_of(record) in chosen]


def line(row: Row, *cells: tuple[str, float | None]) -> Line:
    """A network's row of a table."""
    return Line(cells, row.name, row.on_frontier or row.method == "train", row.on_frontier, row.method, row.network)


def networks_grid(rows: Sequence[Row]) -> Grid:
    """A row a network: its counts and accuracies."""
    several = any(row.seeds > 1 for row in rows)
    columns: list[Column] = [
        ("network", "long"),
        ("method", "text"),
        *((title, "number") for title in ("ReLUs", "without stem", "squares", "MACs, M", "depth")),
        *((title, "number") for title in ("validation, %", "test, %", *(["seeds"] if several else []))),
    ]
    lines = [
        line(
            row,
            words(row.label),
            words(row.method),
            count(row.relus),
            count(row.relus_without_stem),
            count(row.squares),
            (f"{row.macs / 1e6:,.1f}", row.macs / 1e6),
            count(row.depth),
            (plus_minus(row.validation, row.validation_spread, row.seeds), row.validation),
            (plus_minus(row.test, row.spread, row.seeds), row.test),
            *([count(row.seeds)] if several else []),
        )
        for row in rows
    ]
    caption = (
        "Shaded: on the frontier. ReLUs an image, the stem's included; those of max-pools are among them, not among "
        "those without the stem; squares are counted apart."
    )
    return Grid(
        "networks", columns, lines, caption + (" ± is the standard deviation over the seeds." if several else "")
    )
