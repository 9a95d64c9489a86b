"""Budgets in seconds or bytes of a query, as people write them: 200ms, total:5s, 200ms+bytes:20MB."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from parelu.errors import UserError

ONLINE, OFFLINE, TOTAL, BYTES = "online", "offline", "total", "bytes"
TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
UNITS = {ONLINE: TIMES, OFFLINE: TIMES, TOTAL: TIMES, BYTES: SIZES}
PART = re.compile(r"(?:(?P<name>[a-z]+):)? *(?P<number>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?) *(?P<unit>[^\W\d_]*)", re.I)
RELUS = ("", "k", "m")  # units of a number of ReLUs
EXAMPLE = "write 200ms, offline:2s, total:5s, bytes:20MB, or several as 200ms+bytes:20MB"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a query may take at most. most: name of a limit → seconds, or bytes; one of them or several."""

    most: Mapping[str, float]

    def holds(self, price: Mapping[str, float]) -> bool:
        return all(price[name] <= most for name, most in self.most.items())

    def __str__(self) -> str:
        """What `parse_limits` reads; the time online has no name."""
        return "+".join(("" if name == ONLINE else f"{name}:") + shown(name, most) for name, most in self.most.items())

    @property
    def slug(self) -> str:
        """As a part of a folder's name."""
        return str(self).replace(":", "-")


def is_of_query(text: str) -> bool:
    """Whether a budget says seconds or bytes of a query, or tries to, and not a number of ReLUs."""
    found = [PART.fullmatch(part.strip()) for part in _parts(text)]
    return ":" in text or len(found) > 1 or any(part and part["unit"].lower() not in RELUS for part in found)


def parse_limits(text: str) -> Limits:
    """Of a budget as it is written; raises `UserError` for a name or unit that there is not, or a limit of nothing."""
    most: dict[str, float] = {}
    for part in _parts(text):
        found = PART.fullmatch(part.strip())
        if not found:
            raise UserError(f"budget {text!r}: {part!r} is no limit of a query; {EXAMPLE}")
        unit = found["unit"]
        name = (found["name"] or (BYTES if unit in SIZES else ONLINE)).lower()
        if name not in UNITS:
            raise UserError(f"budget {text!r}: {name!r} is no limit; known are {', '.join(UNITS)}")
        if unit not in UNITS[name]:
            given = f"{unit!r} is no unit of {name}" if unit else f"{part!r} has no unit"
            raise UserError(f"budget {text!r}: {given}; known are {', '.join(UNITS[name])}")
        if name in most:
            raise UserError(f"budget {text!r} has {name} twice; give one of the two")
        most[name] = _number(text, found["number"]) * UNITS[name][unit]
    return Limits(dict(sorted(most.items(), key=lambda one: list(UNITS).index(one[0]))))


def _parts(text: str) -> list[str]:
    """Of limits that + joins; the sign of an exponent joins nothing."""
    return re.split(r"(?<![0-9]e)\+", text, flags=re.IGNORECASE)


def _number(text: str, digits: str) -> float:
    try:
        value = float(digits)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"budget {text!r}: {digits} is no number above zero; {EXAMPLE}")
    return value


def shown(name: str, amount: float, digits: int = 6) -> str:
    """Seconds or bytes in the largest unit of which there is one at least: 83 ms as 83ms."""
    units = {unit: size for unit, size in UNITS[name].items() if unit not in ("µs", "min")}
    fitting = [unit for unit, size in units.items() if amount >= size] or [min(units, key=units.__getitem__)]
    unit = max(fitting, key=units.__getitem__)
    return f"{amount / units[unit]:.{digits}g}{unit}"
