"""Piecewise linear functions of ReLUs for smooth ones: as few knots as an error takes, and lines for tails.

A function that comes close to a line on either side lies in a tunnel, between itself less an error and itself plus it.
The fewest pieces of a path through it are found from left to right: each piece goes as far as any does that begins on
the one before (S. Suri, A linear time algorithm for minimum link paths inside a simple polygon, 1986). The first is the
left line and the last the right one, so that large numbers come out as exactly as they should.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parelu.errors import UserError

Line = tuple[float, float]  # slope, offset
Kept = Literal["left", "middle", "right"]
Array = NDArray[np.float64]

GRID = 4001  # places at which a function is looked at
MOST = 128  # knots
_MORE = 8  # knots than are the fewest on the grid, until the error holds between its places too; not at a jump
_NARROWER = 16  # tunnels, of which the narrowest has so small a part of the error
BITS = 12  # of the largest change of slope, so that fixed point has all of them exactly
_FARTHEST = 1e9  # from 0: where a function is close to its lines, if it is anywhere
_TAIL = 2.0**-6  # of the error: what a function may still be off its lines where it is not looked at


@dataclasses.dataclass(frozen=True)
class Knots:
    """line + Σ changes·relu(directions·(x − places)), continuous and piecewise linear.

    The ReLUs all stand in the piece that is kept: where each is the identity instead, its line is left.

    Attributes:
        line: what is there besides the ReLUs.
        places: of the knots, from left to right; changes: of the slope there.
        directions: 1 of a ReLU that is 0 on the left of its knot, −1 of one that is 0 on its right.
        error: the most that it is off by.
    """

    line: Line
    places: tuple[float, ...]
    changes: tuple[float, ...]
    directions: tuple[int, ...]
    error: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        places, changes, directions = (
            torch.tensor(values, dtype=x.dtype) for values in (self.places, self.changes, self.directions)
        )
        return self.line[0] * x + self.line[1] + torch.relu(directions * (x[..., None] - places)) @ changes

    @property
    def left(self) -> Line:
        """The line that is there where each ReLU is the identity."""
        terms = list(zip(self.changes, self.directions, self.places, strict=True))
        slope = self.line[0] + sum(change * direction for change, direction, _ in terms)
        return slope, self.line[1] - sum(change * direction * place for change, direction, place in terms)


def knots(function: Callable[[Array], Array], left: Line, right: Line, largest_error: float, kept: Kept) -> Knots:
    """As few as an error takes, and at the places where it is least then.

    left, right: lines that the function comes close to. kept: the piece that stands without ReLUs; the middle one is
    that at 0.
    """
    seen = _Seen(function, left, right, largest_error)
    # A wide tunnel can hold a piece that goes by the right line, where a narrower one has none.
    tried = (seen.pieces(largest_error * (1 - part / _NARROWER), MOST) for part in range(_NARROWER))
    fewest = next((pieces for pieces in tried if pieces is not None), None)
    for number in [] if fewest is None else range(len(fewest) + 1, len(fewest) + 1 + _MORE):
        low, high = 0.0, largest_error
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if seen.pieces(middle, number) is None else (low, middle)
        pieces = seen.pieces(high, number)
        if pieces is None:
            continue
        found = _joined(pieces, left, right, kept)
        error = _error(found, function, seen.bound)
        if error <= largest_error:
            return dataclasses.replace(found, error=error)
    raise UserError(f"no {MOST} ReLUs are as close as {largest_error:g} to the function; allow a larger error")


class _Seen:
    """A function at places of a grid, with 0 among them, that leaves its lines alone."""

    def __init__(self, function: Callable[[Array], Array], left: Line, right: Line, error: float) -> None:
        self.left, self.right = left, right
        self.bound = 1.0
        while self.bound < _FARTHEST and any(
            abs(float(function(np.array([x]))[0]) - _at(line, x)) > _TAIL * error
            for x, line in ((-self.bound, left), (self.bound, right))
        ):
            self.bound *= 1.25
        if self.bound >= _FARTHEST:
            raise UserError("the function does not come close to the lines on its sides; use its usual options")
        self.x = np.linspace(-self.bound, self.bound, GRID)
        self.y = function(self.x)

    def pieces(self, error: float, number: int) -> list[Line] | None:
        """The lines of the pieces between so many knots at the most; None where they do not reach the right line."""
        first = self._closes(self.right, error)
        line, begins, (end, is_up) = self.left, -self.bound, self._leaves(self.left, 0, error)
        found: list[Line] = []
        before = line, begins, end
        while end < first:
            if len(found) == number - 1:
                return None
            before = line, begins, end
            begins, line = self._next(line, begins, end, error, is_up)
            end, is_up = self._leaves(line, self._after(begins), error)
            found.append(line)
        if line[0] != self.right[0] and first - 1e-9 <= _meeting(line, self.right) <= end + 1e-9:
            return found
        last = self._through(*before, first, error)  # the farthest went by the right line
        found = [*found[:-1], *last]
        return found if last and len(found) < number else None

    def _through(self, line: Line, begins: float, end: float, first: float, error: float) -> list[Line]:
        """One from a line to where the right one begins, in the tunnel, if there is any."""
        y1 = _at(self.right, first)
        for x0 in np.linspace(end, begins, 60):
            slope = float((y1 - _at(line, x0)) / (first - x0)) if x0 < first else math.nan
            between = slice(self._after(x0), self._after(first))
            off = np.abs(y1 + slope * (self.x[between] - first) - self.y[between])
            if off.size and off.max() <= error * (1 + 1e-6):
                return [(slope, y1 - slope * first)]
        return []

    def _next(self, line: Line, begins: float, end: float, error: float, is_up: bool) -> tuple[float, Line]:
        """The farthest piece that begins on a line, and where it does.

        One that leaves the tunnel by the side by which the line does begins at its end. One that leaves by the other
        touches both sides on its way, and begins as early as it can do so.
        """
        found, side = self._farthest(line, end, error)
        if side == is_up:
            return end, found
        low, high = begins, end
        for _ in range(30):
            middle = (low + high) / 2
            other, other_side = self._farthest(line, middle, error)
            low, high, found = (low, middle, other) if other_side == side else (middle, high, found)
        return high, found

    def _farthest(self, line: Line, x0: float, error: float) -> tuple[Line, bool]:
        """The line through a place on another that stays in the tunnel longest; whether it leaves it above."""
        after = self._after(x0)
        y0 = _at(line, x0)
        run, rise = self.x[after:] - x0, self.y[after:] - y0
        lowest, highest = np.maximum.accumulate((rise - error) / run), np.minimum.accumulate((rise + error) / run)
        closed = lowest > highest
        last = int(closed.argmax()) if closed[-1] else len(run)  # the first place where it is left
        is_up = bool(last < len(run) and highest[last] < highest[last - 1])
        slope = float(lowest[last - 1] if is_up else highest[last - 1])
        return (slope, y0 - slope * x0), is_up

    def _leaves(self, line: Line, start: int, error: float) -> tuple[float, bool]:
        """Where a line leaves the tunnel, seen from a place of the grid in it; whether above."""
        off = _at(line, self.x[start:]) - self.y[start:]
        out = np.abs(off) > error * (1 + 1e-9)
        if not out.any():
            return self.bound, False
        last = int(out.argmax())
        is_up = bool(off[last] > 0)
        if not last:
            return float(self.x[start]), is_up
        before, after = (abs(float(off[i])) if (off[i] > 0) == is_up else -abs(float(off[i])) for i in (last - 1, last))
        part = (error - before) / (after - before)
        return float(self.x[start + last - 1] + part * (self.x[1] - self.x[0])), is_up

    def _closes(self, line: Line, error: float) -> float:
        """From where on a line is in the tunnel."""
        off = np.abs(_at(line, self.x) - self.y)
        last = int(np.flatnonzero(off > error)[-1]) if (off > error).any() else 0
        part = max(off[last] - error, 0) / (off[last] - off[last + 1])
        return float(self.x[last] + part * (self.x[1] - self.x[0]))

    def _after(self, x0: float) -> int:
        """The first place of the grid behind another."""
        return min(int(np.searchsorted(self.x, x0 + 1e-9)), GRID - 1)


def _joined(pieces: list[Line], left: Line, right: Line, kept: Kept) -> Knots:
    """Pieces with slopes of few bits, each turned about the middle of where it stands, and knots where two meet."""
    lines = [left, *pieces, right]
    ends = [_meeting(*pair) for pair in itertools.pairwise(lines)]
    step = 2.0 ** (math.frexp(max(abs(after[0] - before[0]) for before, after in itertools.pairwise(lines)))[1] - BITS)
    turned = lines
    for finer in range(BITS):  # until no two neighbours are alike
        about = [((a + b) / 2, step / 2**finer) for a, b in itertools.pairwise(ends)]
        turned = [left, *(_turned(line, *where) for line, where in zip(pieces, about, strict=True)), right]
        if all(before[0] != after[0] for before, after in itertools.pairwise(turned)):
            break
    places = [_meeting(*pair) for pair in itertools.pairwise(turned)]
    changes = [after[0] - before[0] for before, after in itertools.pairwise(turned)]
    middle = sum(place < 0 for place in places)
    forward = {"left": 0, "middle": middle, "right": len(places)}[kept]  # knots on the left of the piece that is kept
    directions = [1] * forward + [-1] * (len(places) - forward)
    backward = list(zip(changes[forward:], places[forward:], strict=True))
    slope = left[0] + sum(change for change, _ in backward)
    offset = left[1] - sum(change * place for change, place in backward)
    return Knots((slope, offset), tuple(places), tuple(changes), tuple(directions))


def _turned(line: Line, about: float, step: float) -> Line:
    slope = round(line[0] / step) * step
    return slope, _at(line, about) - slope * about


def _meeting(first: Line, second: Line) -> float:
    return (second[1] - first[1]) / (first[0] - second[0])


def _at(line: Line, x: Any) -> Any:
    return line[0] * x + line[1]


def _error(found: Knots, function: Callable[[Array], Array], bound: float) -> float:
    """The largest on a finer grid, which also has 0."""
    x = np.linspace(-bound, bound, 8 * (GRID - 1) + 1)
    return float(np.abs(found(torch.from_numpy(x)).numpy() - function(x)).max())
