"""How the elements of a map lie in the sequences that a plain convolution reads, for all its readers at once.

The greatest common divisor of the readers' strides cuts the map into phases, each a sequence. Rows stand one behind the
other; the zeros of the padding behind a row are those before the next, and what is read before the first row is at
negative indices, which are zeros at the sequence's end. A map that is larger than a polynomial is cut into tiles of
rows: each holds all that its outputs read, from index 0 on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from parelu.fusion.composition import Convolution

DEGREE = 2048


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Of one map under some layers.

    Attributes:
        shapes: the layers that read it; a matrix is a convolution of a 1×1 map.

    Raises:
        ValueError: they do not read one map, or it is too wide for a polynomial.
    """

    shapes: tuple[Convolution, ...]

    def __post_init__(self) -> None:
        if len({(shape.inputs, shape.size) for shape in self.shapes}) != 1:
            raise ValueError(f"{len(self.shapes)} layers do not read one map")
        if self.height < 1:
            raise ValueError(
                f"a map {self.shapes[0].size[1]} wide with a kernel of {max(s.kernel[0] for s in self.shapes)} rows "
                f"does not fit into polynomials of degree {DEGREE}; use smaller images"
            )

    @functools.cached_property
    def rows(self) -> Axis:
        return self._axis(0)

    @functools.cached_property
    def columns(self) -> Axis:
        return self._axis(1)

    def _axis(self, direction: int) -> Axis:
        read = [(s.kernel[direction], s.stride[direction], s.padding[direction]) for s in self.shapes]
        return Axis.of(self.shapes[0].size[direction], read)

    @functools.cached_property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of the phases that are read."""
        read = zip(self.rows.taps, self.columns.taps, strict=True)
        return tuple(sorted({(u.phase, v.phase) for down, across in read for u in down for v in across}))

    @property
    def pitch(self) -> int:
        """Elements from row to row; the zeros behind a row are those before the next."""
        axis = self.columns
        return axis.data + max(axis.before, axis.last - axis.data + 1)

    @functools.cached_property
    def is_whole(self) -> bool:
        return self._whole_spacing <= DEGREE

    @property
    def _whole_spacing(self) -> int:
        """What is read from index 0 on, and the data with what is read before index 0: neither may meet the other."""
        rows, columns = self.rows, self.columns
        lead = rows.before * self.pitch + columns.before
        data = (rows.data - 1) * self.pitch + columns.data
        return max(rows.last * self.pitch + columns.last + 1, lead + data)

    @functools.cached_property
    def height(self) -> int:
        """Rows of elements in a tile, counted where outputs are: a multiple of each layer's step. 0: none fits."""
        rows, columns = self.rows, self.columns
        if self.is_whole:
            return rows.span
        unit = math.lcm(*rows.steps)
        stored = (DEGREE - 1 - columns.before - columns.last) // self.pitch
        fits = (stored - rows.before - rows.after + 1) // unit * unit
        return -(-rows.span // (-(-rows.span // fits) * unit)) * unit if fits > 0 else 0

    @functools.cached_property
    def tiles(self) -> int:
        return -(-self.rows.span // self.height)

    @functools.cached_property
    def origin(self) -> int:
        """Index of the element of a tile's first output; what a whole map reads before it is at negative indices."""
        return 0 if self.is_whole else self.rows.before * self.pitch + self.columns.before

    @functools.cached_property
    def spacing(self) -> int:
        """S: elements from an output of a row to the next."""
        if self.is_whole:
            return self._whole_spacing
        return self.origin + (self.height - 1 + self.rows.after) * self.pitch + self.columns.last + 1


class Tap(NamedTuple):
    """A row or column of a kernel: at output i it reads element step·i + offset of this phase."""

    tap: int
    phase: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction of a map, cut into phases by the greatest common divisor of its readers' strides.

    Element e of phase a is position phases·e + a of the source.

    Attributes:
        data: elements of a phase that are stored.
        before: elements that are read before the first.
        after: the furthest that is read behind an output's own element.
        last: the last element that is read.
        span: elements from the first output's to the last one's, both included.
        steps: elements from output to output, for each reader.
        taps: for each reader, those that meet the map at some output.
    """

    phases: int
    data: int
    before: int
    after: int
    last: int
    span: int
    steps: tuple[int, ...]
    taps: tuple[tuple[Tap, ...], ...]

    @classmethod
    def of(cls, size: int, readers: Sequence[tuple[int, int, int]]) -> Axis:
        """readers: (kernel, stride, padding)."""
        phases = math.gcd(*(stride for _, stride, _ in readers))
        steps = [stride // phases for _, stride, _ in readers]
        ends = [(size + 2 * padding - kernel) // stride for kernel, stride, padding in readers]
        taps = []
        for (kernel, stride, padding), end in zip(readers, ends, strict=True):
            met = [tap for tap in range(kernel) if _meets(size, stride, tap - padding, end)] or [0]
            taps.append(tuple(Tap(tap, (tap - padding) % phases, (tap - padding) // phases) for tap in met))
        offsets = [tap.offset for read in taps for tap in read]
        furthest = [max(0, *(tap.offset for tap in read)) for read in taps]  # an output's own element counts as read
        last = max(step * end + offset for step, end, offset in zip(steps, ends, furthest, strict=True))
        return cls(
            phases=phases,
            data=min(-(-size // phases), last + 1),
            before=max(0, -min(offsets)),
            after=max(furthest),
            last=last,
            span=max(step * end for step, end in zip(steps, ends, strict=True)) + 1,
            steps=tuple(steps),
            taps=tuple(taps),
        )


def _meets(size: int, stride: int, start: int, end: int) -> bool:
    """Whether one of the positions start, start + stride, … start + stride·end is in [0, size)."""
    first = max(0, -(start // stride))
    return first <= end and start + stride * first < size
