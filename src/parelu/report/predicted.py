"""What a query is predicted to take, for people: a block under a network, and columns of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from parelu.private.cost.predict import Estimate, Predicted, Prediction
from parelu.report.private import duration, size
from parelu.runs.predictions import Queries

ByLink = Mapping[str, Prediction]
SHOWN = ("online", "offline")  # phases in a table
NONE = "–"  # in a cell of a network without a prediction


def predicted_lines(found: Predicted, queries: Queries) -> list[str]:
    """Of one network: what does not depend on the link, a line for each link, and whose seconds they are."""
    if not found.by_link:
        return [f"  a query, {queries.how}: {found.why}"]
    one = next(iter(found.by_link.values()))
    lines = [
        f"  a query, predicted: {queries.how}, {one.online.rounds:g} rounds, {size(one.online.bytes)} online, "
        f"{size(one.offline.bytes)} offline; once {size(one.setup.bytes)}",
        f"  peak memory of the client {size(one.memory['client'])}, of the server {size(one.memory['server'])}",
        "",
    ]
    phases = ("online", "offline", "setup")
    cells = [["", "online", "offline", "once"]]
    cells += [[link, *(_interval(getattr(each, phase)) for phase in phases)] for link, each in found.by_link.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return [*lines, f"  {queries.by}"]


def _interval(estimate: Estimate) -> str:
    return f"{duration(estimate.seconds)} ({duration(estimate.low)} to {duration(estimate.high)})"


def predicted_json(found: Predicted, queries: Queries) -> dict[str, Any]:
    """The same as JSON values."""
    said = {"queries": queries.how, "calibration": str(queries.calibration.machine)}
    return {**said, **dataclasses.asdict(found)}


def heads(links: Sequence[str]) -> list[str]:
    """Of `columns`."""
    return [*(f"{phase} {link}" for link in links for phase in SHOWN), "sent"]


def cells(by_link: ByLink, links: Sequence[str]) -> list[str]:
    """Seconds of both phases over each link, and bytes of both."""
    found = [getattr(by_link[link], phase) if link in by_link else None for link in links for phase in SHOWN]
    seconds = [duration(each.seconds) if each else NONE for each in found]
    one = next(iter(by_link.values()), None)
    return [*seconds, size(one.online.bytes + one.offline.bytes) if one else NONE]


def numbers(by_link: ByLink, links: Sequence[str]) -> list[float | None]:
    """Of `cells`, what they are sorted by."""
    found = [getattr(by_link[link], phase) if link in by_link else None for link in links for phase in SHOWN]
    one = next(iter(by_link.values()), None)
    return [*(each.seconds if each else None for each in found), one.online.bytes + one.offline.bytes if one else None]


def note(queries: Queries, whys: Sequence[str] = ()) -> str:
    """Under such columns. whys: of networks without a prediction."""
    lines = [f"predicted of a query: {queries.how}; sent in both phases; {queries.by}"]
    return "\n".join([*lines, *(f"{NONE} {why}" for why in dict.fromkeys(filter(None, whys)))])
