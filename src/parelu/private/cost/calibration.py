"""What one kind of work takes on one machine: made by `parelu calibrate`, kept in a file, and one that ships."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import parelu
from parelu.errors import UserError, shown
from parelu.network import cache, storage
from parelu.network.machine import cores, processor
from parelu.private.cost.fit import Fit
from parelu.private.crypto.kernels import kernels

FORMAT = "parelu-calibration-3"
LARGEST = 1 << 20  # bytes of the file
NAME = "calibration.json"
SHIPPED = "calibration.json"  # beside this file


@dataclasses.dataclass(frozen=True)
class Machine:
    """What seconds depend on. kernels: of `crypto.kernels`."""

    processor: str
    cores: int
    kernels: str
    version: str

    def __str__(self) -> str:
        cores = f"{self.cores} core" + ("" if self.cores == 1 else "s")
        return f"{self.processor or 'an unnamed processor'} with {cores}, {self.kernels}, parelu {self.version}"


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement of a calibration beside what a fit says of it that has not seen its program. what: the case;
    seconds: the client's; slower: times longer than by this fit all work would have taken."""

    what: str
    phase: str
    measured: float
    predicted: float
    slower: float

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted


@dataclasses.dataclass(frozen=True)
class Calibration:
    """work: (phase, party) → its CPU seconds by kind of work; waiting: phase → the client's wall seconds by what
    `waiting.steps` makes of these; memory: (offline mode, party) → bytes of its process beside what is counted of a
    network; points: of the fit."""

    machine: Machine
    made: str
    work: Mapping[tuple[str, str], Fit]
    waiting: Mapping[str, Fit]
    memory: Mapping[tuple[str, str], float]
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        value = {
            "format": FORMAT,
            "machine": dataclasses.asdict(self.machine),
            "made": self.made,
            "work": {" ".join(of): dataclasses.asdict(fit) for of, fit in self.work.items()},
            "waiting": {phase: dataclasses.asdict(fit) for phase, fit in self.waiting.items()},
            "memory": {" ".join(of): count for of, count in self.memory.items()},
            "points": [dataclasses.asdict(point) for point in self.points],
        }
        return {**value, "sha256": storage.digest(value)}

    @classmethod
    def from_json(cls, value: Any) -> Calibration:
        """The inverse; raises ValueError with the reason for anything else."""
        try:
            found = value.pop("format", None)
            if found != FORMAT:
                raise ValueError(f"its format is {shown(str(found), 40)!r}, that of this version {FORMAT!r}")
            claimed = value.pop("sha256", None)
            if claimed != storage.digest({"format": FORMAT, **value}):
                raise ValueError("it was changed after it was written: its digest does not match")
            machine = Machine(**value["machine"])
            work = {_pair(of): _fit(fit) for of, fit in value["work"].items()}
            waiting = {phase: _fit(fit) for phase, fit in value["waiting"].items()}
            points = tuple(Point(**point) for point in value["points"])
            if not all(map(_is_seconds, points)) or not points:
                raise ValueError("its points are no seconds above zero")
            memory = {_pair(of): count for of, count in value["memory"].items()}
            _check(memory)
            return cls(machine, str(value["made"]), work, waiting, memory, points)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"malformed ({type(error).__name__}: {shown(str(error), 80)})") from error

    def save(self, path: Path) -> None:
        storage.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises UserError for a file that is none, or damaged."""
        if not path.is_file():
            raise UserError(f"{path} is not there; `parelu calibrate --out {path}` makes it")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB: it is no calibration")
        return _read(path.read_bytes(), str(path))


def _read(data: bytes, where: str) -> Calibration:
    try:
        return Calibration.from_json(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no calibration of this version ({error}); `parelu calibrate` makes one") from error


def _pair(of: str) -> tuple[str, str]:
    phase, party = of.split(" ")
    return phase, party


def _fit(value: Mapping[str, Any]) -> Fit:
    fit = Fit(**value)
    for numbers in (fit.coefficients, fit.errors):
        _check(numbers)
    return fit


def _is_seconds(point: Point) -> bool:
    return math.isfinite(point.measured + point.slower) and min(point.measured, point.predicted) > 0 <= point.slower


def _check(numbers: Mapping[Any, float]) -> None:
    if not all(type(n) is float and 0 <= n < math.inf for n in numbers.values()):
        raise ValueError("a coefficient is no number from zero")


def this_machine() -> Machine:
    return Machine(processor(), cores(), kernels.name, parelu.__version__)


def own_file() -> Path:
    """Where this user's calibration is kept."""
    return cache.data_folder() / NAME


def chosen(path: Path | None = None) -> Calibration:
    """The one in a file that is named; else this user's own; else the one that ships.

    Warns in one line where it is of another machine or version; raises `UserError` for a file that is none.
    """
    if path is not None:
        found = Calibration.load(path)
    elif own_file().is_file():
        found = Calibration.load(own_file())
    else:
        shipped = resources.files("parelu.private.cost") / SHIPPED
        found = _read(shipped.read_bytes(), "the calibration that ships")
    if line := warning_of(found):
        warnings.warn(line, stacklevel=2)
    return found


def warning_of(calibration: Calibration) -> str:
    """One line where it was made on another machine, or with another version; "" where it is this one's."""
    here = this_machine()
    if calibration.machine == here:
        return ""
    return f"seconds are those of {calibration.machine}; this is {here}: `parelu calibrate` measures it"
