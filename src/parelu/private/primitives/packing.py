"""Convolutions and matrices as products of polynomials modulo X^N + 1: coefficient packing without rotations.

After Huang et al., Cheetah (USENIX Security 2022), section 4. A polynomial holds Vw input channels, one behind the
other; another holds the kernels of Mw outputs, reversed, so that the product has each output at a coefficient of its
own. Three things differ from the paper. The zeros of the padding are shared: those behind a row serve the next row
too, those behind a channel the next channel, so that a 4×4 map under a 3×3 kernel takes 25 coefficients and not 36. A
stride cuts the input into phases, which become channels of a convolution of stride 1; phases that no tap reads are
dropped. And Vw and Mw are chosen for each layer by what products, uploads and downloads cost.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from numpy.typing import NDArray

from parelu.private.program import Conv, Linear, Shape
from parelu.private.ring import Ring

# Microseconds a polynomial at N = 8192 and three primes, of both parties together, and bytes at 1 Gb/s: what
# `benchmarks/he.py` measures. Only their ratios matter.
PRODUCT, UPLOAD, DOWNLOAD = 1300, 7500, 14000

NOWHERE = -(1 << 40)  # a row or column outside of every map


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """How a layer's input, weights and output lie in polynomials of degree N.

    Attributes:
        degree: N.
        inputs: (tiles, V, S): of each coefficient of a channel its position in the flattened source, −1 for a zero.
        taps: (V, T): of each channel its columns in a weight of shape (outputs, columns), −1 for none.
        shifts: (T,): where a tap goes in the channel's block of the kernel's polynomial.
        outputs: (tiles, Q): of each output coefficient of a block its position in an output channel's map, −1 for none.
        places: (Q,): the coefficient of that output in the block.
        group: (V,): the group that a channel belongs to; outputs are (M, positions of a map).
        channels: Vw, input channels a polynomial; kernels: Mw, outputs a polynomial.
    """

    degree: int
    inputs: NDArray[np.int64]
    taps: NDArray[np.int64]
    shifts: NDArray[np.int64]
    outputs: NDArray[np.int64]
    places: NDArray[np.int64]
    group: NDArray[np.int64]
    groups: int
    maps: tuple[int, int]  # M, positions of a map
    channels: int
    kernels: int

    @property
    def size(self) -> int:
        """S, coefficients of a channel."""
        return self.inputs.shape[2]

    @property
    def uploads(self) -> int:
        return len(self.inputs) * self.input_blocks

    @property
    def downloads(self) -> int:
        return len(self.inputs) * self.output_blocks

    @property
    def input_blocks(self) -> int:
        return -(-self.inputs.shape[1] // self.channels)

    @property
    def output_blocks(self) -> int:
        return -(-self.maps[0] // self.kernels)

    def pack_input(self, values: Ring) -> Ring:
        """values: the flattened source → (uploads, N), tile by tile."""
        tiles, _, size = self.inputs.shape
        flat = np.append(values, np.uint64(0))[self.inputs]  # −1 takes the zero
        out = np.zeros((tiles, self.input_blocks, self.degree), np.uint64)
        for block in range(self.input_blocks):
            taken = flat[:, block * self.channels : (block + 1) * self.channels]
            out[:, block, : taken.shape[1] * size] = taken.reshape(tiles, -1)
        return out.reshape(-1, self.degree)

    def products(self, output_block: int) -> list[int]:
        """The input blocks that an output block reads."""
        per_group = self.maps[0] // self.groups
        if self.groups == 1:
            return list(range(self.input_blocks))
        first = output_block * self.kernels // per_group
        last = (min(self.maps[0], (output_block + 1) * self.kernels) - 1) // per_group
        read = np.flatnonzero((self.group >= first) & (self.group <= last)) // self.channels
        return sorted(set(read.tolist()))

    def pack_weight(self, weight: NDArray[np.int64], output_block: int, input_block: int) -> NDArray[np.int64]:
        """weight: (M, columns), integers → (N,), the kernels of one block of outputs on one block of inputs."""
        outputs = np.arange(output_block * self.kernels, min(self.maps[0], (output_block + 1) * self.kernels))
        inputs = np.arange(input_block * self.channels, min(len(self.taps), (input_block + 1) * self.channels))
        taps = self.taps[inputs]
        own = self.group[inputs] == (outputs * self.groups // self.maps[0])[:, None]
        values = np.where((taps >= 0) & own[:, :, None], weight[outputs[:, None, None], taps], 0)
        blocks = self.channels * (outputs - outputs[0])[:, None] + self.channels - 1 - (inputs - inputs[0])
        out = np.zeros(self.degree, np.int64)
        out[blocks[:, :, None] * self.size + self.shifts] = values
        return out

    def needed(self, output_block: int, tile: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(coefficients, positions in the flattened output) of what one polynomial of the result holds."""
        first = output_block * self.kernels
        outputs = np.arange(first, min(self.maps[0], first + self.kernels))[:, None]
        there = self.outputs[tile] >= 0
        base = ((outputs - first) * self.channels + self.channels - 1) * self.size
        positions = outputs * self.maps[1] + self.outputs[tile][there]
        return (base + self.places[there]).reshape(-1), positions.reshape(-1)


@functools.lru_cache(maxsize=512)
def packing(op: Conv | Linear, source: Shape, degree: int) -> Packing:
    """The cheapest packing of an op on a source of this shape; raises ValueError where a map is too wide for it."""
    if isinstance(op, Linear):
        one = np.zeros((1, 1), np.int64)
        columns = np.arange(source[0]).reshape(-1, 1)
        grid = Packing(degree, columns[None], columns, one[0], one, one[0], columns[:, 0] * 0, 1, (op.outputs, 1), 1, 1)
    else:
        grid = _grid(op, source, degree)
    found = [_with_blocks(grid, channels) for channels in _widths(grid)]
    return min(found, key=cost)


def cost(packing: Packing) -> int:
    """Microseconds, roughly, of a layer."""
    products = len(packing.inputs) * sum(len(packing.products(block)) for block in range(packing.output_blocks))
    return PRODUCT * products + UPLOAD * packing.uploads + DOWNLOAD * packing.downloads


def _widths(grid: Packing) -> list[int]:
    """Numbers of input channels a polynomial that divide the channels evenly into ever fewer blocks."""
    channels = grid.inputs.shape[1]
    most = min(channels, grid.degree // grid.size)
    return sorted({-(-channels // blocks) for blocks in range(-(-channels // most), channels + 1)})


def _with_blocks(grid: Packing, channels: int) -> Packing:
    most = min(grid.maps[0], grid.degree // (channels * grid.size))
    return dataclasses.replace(grid, channels=channels, kernels=-(-grid.maps[0] // -(-grid.maps[0] // most)))


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One direction of a convolution, cut into phases by its stride.

    Output i reads, of each phase, the elements i, i + 1, … i + reach − 1 of a sequence; `start` of them stand before
    the first one that is stored, and are 0, as those behind the `data` stored ones are.
    """

    phases: int
    reach: int
    start: int
    data: int
    outputs: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, padding: int) -> _Axis:
        outputs = (size + 2 * padding - kernel) // stride + 1
        reach = -(-kernel // stride)
        phases = min(stride, kernel)
        # Element y of phase a is position stride·y + a − padding of the source.
        first = min(max(0, -(-(padding - a) // stride)) for a in range(phases))
        last = max((size - 1 + padding - a) // stride for a in range(phases))
        start = min(first, reach - 1)
        return cls(phases, reach, start, min(last, outputs + reach - 2) - start + 1, outputs)

    @property
    def stored(self) -> int:
        """Elements with the zeros behind the data, as many as are read beyond either end."""
        return self.data + max(self.start, self.outputs + self.reach - 1 - self.start - self.data)


def _grid(op: Conv, source: Shape, degree: int) -> Packing:
    """The geometry of a convolution; blocks of one channel and one kernel."""
    channels, height, width = source
    rows = _Axis.of(height, op.kernel[0], op.stride[0], op.padding[0])
    columns = _Axis.of(width, op.kernel[1], op.stride[1], op.padding[1])
    pitch = columns.stored
    if rows.stored * pitch <= degree:
        height_of_tile, stored, start = rows.outputs, rows.stored, rows.start
    else:  # tiles of output rows, each with all the rows that it reads
        height_of_tile = degree // pitch - rows.reach + 1
        stored, start = height_of_tile + rows.reach - 1, 0
        if height_of_tile < 1:
            raise ValueError(f"a map {width} wide with a kernel of {op.kernel[0]} rows does not fit into polynomials "
                             f"of degree {degree}; use smaller images")  # fmt: skip
    tiles = -(-rows.outputs // height_of_tile)
    first = np.arange(tiles) * height_of_tile  # output row
    y = first[:, None] + np.arange(stored) + start
    unread = tiles == 1 and (np.arange(stored) >= rows.data)
    y, x = (
        np.where(unread, NOWHERE, y),
        np.where(np.arange(pitch) < columns.data, np.arange(pitch) + columns.start, NOWHERE),
    )
    phases = [(a, b) for a in range(rows.phases) for b in range(columns.phases)]
    sources = np.stack([_positions(y, x, op, a, b, source) for a, b in phases], 1)[:, None]
    inputs = np.where(sources >= 0, sources + np.arange(channels).reshape(-1, 1, 1, 1) * height * width, -1)
    u, v = (grid.reshape(-1) for grid in np.meshgrid(np.arange(rows.reach), np.arange(columns.reach), indexing="ij"))
    taps = np.stack([_tap(a + op.stride[0] * u, b + op.stride[1] * v, op.kernel) for a, b in phases])
    within = np.arange(channels) % (channels // op.groups) * math.prod(op.kernel)
    taps = np.where(taps >= 0, taps + within[:, None, None], -1)
    shift = (u - start) * pitch + v - columns.start
    i, j = (g.reshape(-1) for g in np.meshgrid(np.arange(height_of_tile), np.arange(columns.outputs), indexing="ij"))
    places = int(shift.max()) + i * pitch + j
    row = first[:, None] + i
    outputs = np.where(row < rows.outputs, row * columns.outputs + j, -1)
    group = np.repeat(np.arange(channels) // (channels // op.groups), len(phases))
    maps = (op.outputs, rows.outputs * columns.outputs)
    inputs, taps = inputs.reshape(tiles, -1, stored * pitch), taps.reshape(len(group), -1)
    return Packing(degree, inputs, taps, int(shift.max()) - shift, outputs, places, group, op.groups, maps, 1, 1)


def _positions(
    y: NDArray[np.int64], x: NDArray[np.int64], op: Conv, a: int, b: int, source: Shape
) -> NDArray[np.int64]:
    """(tiles, rows, columns) in a channel's map of phase (a, b); −1 outside of it."""
    _, height, width = source
    row, column = op.stride[0] * y + a - op.padding[0], op.stride[1] * x + b - op.padding[1]
    inside = ((row >= 0) & (row < height))[..., None] & ((column >= 0) & (column < width))
    return np.where(inside, row[..., None] * width + column, -1)


def _tap(u: NDArray[np.int64], v: NDArray[np.int64], kernel: tuple[int, int]) -> NDArray[np.int64]:
    return np.where((u < kernel[0]) & (v < kernel[1]), u * kernel[1] + v, -1)
