"""The command that measures what private inference takes on this machine, for predictions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from parelu.cli.output import say
from parelu.errors import UserError


def resolve() -> None:
    """No type of its options is read off a registry."""


@dataclasses.dataclass(frozen=True)
class Calibrate:
    """Measure what each ReLU, layer and byte takes on this machine, in minutes: seconds are predicted from it.

    parelu calibrate

    parelu calibrate --link 50Mb/s,20ms --picture fit.svg
    """

    link: str | None = None
    """a link to measure on, shaped on this machine, as bench has it; left out, lan and wan"""
    times: int = 1
    """that each program is measured, five minutes each time: what a machine is in the middle, where its pace changes"""
    out: Path | None = None
    """where it is kept; left out, this user's own, which predictions take from then on"""
    picture: Path | None = None
    """also draw what was measured beside what is predicted, as .png or .svg"""
    json: bool = False
    """print JSON"""

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.calibrated import calibration_text, save_calibration

        if self.picture is not None and self.picture.suffix not in (".png", ".svg"):
            raise UserError(f"{self.picture} is neither .png nor .svg; give a path with one of these endings")
        found = api.calibrate(None if self.link is None else [self.link], self.times)
        path = self.out or api.own_calibration()
        found.save(path)
        print(json.dumps(found.to_json(), indent=1) if self.json else calibration_text(found))
        say(f"calibration: {path}")
        if self.picture is not None:
            save_calibration(found, self.picture)
            say(f"picture: {self.picture}")


COMMANDS: dict[str, type[Any]] = {"calibrate": Calibrate}
