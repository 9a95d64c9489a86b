"""What the papers print: every row of their tables, and what their texts state, from published.csv.

    for row in find("DeepReDuce Table 4"):
        print(row.steps, row.relus, row.accuracy)

Columns: paper, table, row (how the paper names it); network, dataset and steps in our language where they can be
written, method and distillation; relus, and `printed` as it stands in the paper; squares, macs_m, flops_m (millions),
depth, conv (convolutions, merged ones as one); accuracy and accuracy_baseline in percent; latency_s (online) and
latency_offline_s under `protocol`; stated: other figures of the row, name=value; exception: which of its figures the
network as we write it does not have, and why, "figure: reason | …"; notes: remarks, corrections, claims.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from collections.abc import Mapping
from importlib.resources import files

from parelu.errors import UserError

TITLES = {
    "deepreduce": "DeepReDuce",  # Jha, Ghodsi, Garg, Reagen, ICML 2021
    "autorep": "AutoReP",  # Peng et al., ICCV 2023
    "shallow-again": "Shallow-Again",  # Kundu, Zhang, Chen, Beerel, CVPR workshops 2023
    "deepreshape": "DeepReShape",  # Jha, Reagen, TMLR 2024
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One row; see the module. A number that the paper does not give is None, a text "".

    Attributes:
        table: "Table 4", "Figure 21", "text" or "caption".
        stated: name → figure as it is printed.
        exception: figure → why ours is another; "network" and "steps": why they cannot be written.
    """

    paper: str
    table: str
    row: str
    network: str
    dataset: str
    method: str
    steps: str
    distillation: str
    relus: int | None
    printed: str
    squares: int | None
    macs_m: float | None
    flops_m: float | None
    depth: int | None
    conv: int | None
    accuracy: float | None
    accuracy_baseline: float | None
    latency_s: float | None
    latency_offline_s: float | None
    protocol: str
    stated: Mapping[str, str]
    exception: Mapping[str, str]
    notes: str

    @property
    def source(self) -> str:
        """Such as "DeepReDuce Table 4"."""
        return f"{TITLES[self.paper]} {self.table}"

    @property
    def per_kilorelu(self) -> float | None:
        """Accuracy in percent for each thousand ReLUs, the papers' measure of efficiency."""
        return 1000 * self.accuracy / self.relus if self.accuracy and self.relus else None


@functools.cache
def rows() -> tuple[Published, ...]:
    """Every row, in the order of the papers."""
    text = (files("parelu.published") / "published.csv").read_text(encoding="utf-8")
    return tuple(map(_row, csv.DictReader(text.splitlines())))


def _row(line: Mapping[str, str]) -> Published:
    values: dict[str, object] = {}
    for name, text in line.items():
        hint = Published.__annotations__[name]
        if name == "stated":
            values[name] = dict(pair.split("=") for pair in text.split())
        elif name == "exception":
            values[name] = dict(reason.split(": ", 1) for reason in text.split(" | ") if reason)
        elif hint == "str":
            values[name] = text
        else:
            values[name] = (int if hint.startswith("int") else float)(text) if text else None
    return Published(**values)  # pyright: ignore[reportArgumentType]


def tables(paper: str) -> list[str]:
    """The tables of a paper, a key of `TITLES`, that have rows."""
    return list(dict.fromkeys(row.table for row in rows() if row.paper == paper))


def find(text: str) -> tuple[Published, ...]:
    """The rows of a table such as "DeepReDuce Table 4", also written "deepreduce T4"; of a paper, all of them.

    Raises:
        UserError: there is no such paper or table; the line names those that there are.
    """
    paper, table = _read(text)
    found = tuple(row for row in rows() if row.paper == paper and table in ("", row.table))
    if not found:
        known = ", ".join(tables(paper))
        raise UserError(f"{table} of {TITLES[paper]} has no published rows here; there are {known}")
    return found


def _read(text: str) -> tuple[str, str]:
    """Paper and table, "" for all, that a text means."""
    letters = {re.sub("[^a-z]", "", paper): paper for paper in TITLES}
    words = " ".join(text.lower().split())
    match = re.match("|".join("[ -]?".join(name) for name in letters), words)
    if match is None:
        example = f"{TITLES['deepreduce']} Table 4"
        raise UserError(f"no paper {text!r}; known are {', '.join(TITLES.values())}, with a table such as {example!r}")
    table = words[match.end() :].strip(" :,;.-")
    number = re.fullmatch(r"(?:(tables?|tab|t)|(?:figures?|fig|f))[ .]*(\d+)", table)
    if number:
        table = f"{'Table' if number[1] else 'Figure'} {number[2]}"
    return letters[re.sub("[^a-z]", "", match[0])], table
