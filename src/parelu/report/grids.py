"""Tables of the page: what stands in the document, and what its script turns over, sorts and filters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

FEW = 100  # rows, or networks of a figure, that are all in the document; of more, those that are on a frontier

Kind = Literal["number", "text", "long", "share"]
Column = tuple[str, Kind]  # its title
Cell = tuple[str, float | None]  # as it is shown, and by what it is sorted where that is a number


@dataclasses.dataclass(frozen=True)
class Line:
    """A row. name: what its tip says; is_chosen: whether it is in the document however many there are.

    is_on: shaded; method, network: by which it is filtered.
    """

    cells: Sequence[Cell]
    name: str = ""
    is_chosen: bool = True
    is_on: bool = False
    method: str = ""
    network: str = ""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table. columns: titles and kinds; shares are percents, which shade their cells.

    filtered: whether its rows are networks, which the filter of the page leaves out.
    """

    id: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    caption: str = ""
    filtered: bool = True

    @property
    def standing(self) -> Sequence[Line]:
        """The rows in the document."""
        if len(self.lines) <= FEW:
            return self.lines
        return [line for line in self.lines if line.is_chosen][:FEW]

    def to_json(self) -> dict[str, Any]:
        """As table.js reads it."""
        lines = [
            [
                line.name,
                line.is_on,
                line.method,
                line.network,
                [text if value is None else [text, value] for text, value in line.cells],
            ]
            for line in self.lines
        ]
        return {"columns": [list(column) for column in self.columns], "lines": lines}


def words(text: str) -> Cell:
    """A cell that is sorted by what it says."""
    return text, None


def count(number: int) -> Cell:
    return f"{number:,}", number
