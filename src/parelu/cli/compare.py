"""The command that puts runs beside a paper's table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from parelu.cli.inspection import open_runs
from parelu.cli.output import say

if TYPE_CHECKING:
    from parelu.api import Run


def resolve() -> None:
    """No type of its options is read off a registry."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Put runs beside a paper's table: published points and ours, and the ratios that the papers quote.

    parelu compare runs/deepreduce/table4/seed0

    parelu compare runs/mine --paper "AutoReP Table 3"
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, of one data set; those of several seeds and networks together"""
    paper: str = ""
    """the table, such as "AutoReP Table 3"; left out, the one that the runs' recipe names"""
    picture: Path | None = None
    """also draw it, as .png or .svg"""
    json: bool = False
    """print JSON"""

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.beside import beside_text
        from parelu.report.plots import check_picture

        if self.picture is not None:
            check_picture(self.picture)
        found = api.compare(open_runs(self.runs, "compare"), self.paper)
        print(json.dumps(found.to_json(), indent=1) if self.json else beside_text(found))
        if self.picture is not None:
            from parelu.report.compared import save_beside

            save_beside(found, self.picture)
            say(f"picture: {self.picture}")


def print_beside(runs: list[Run]) -> None:
    """Runs beside the table that their recipe names, if it names one."""
    from parelu.report.beside import Beside, beside_named, beside_text

    found = beside_named(runs)
    if isinstance(found, Beside):
        print(f"\n{found.source} beside these runs\n\n{beside_text(found)}")
    elif found:
        say(found)


COMMANDS: dict[str, type[Any]] = {"compare": Compare}
