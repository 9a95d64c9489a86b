"""Convolutions and matrices as products of polynomials modulo X^N + 1: coefficient packing without rotations.

After Huang et al., Cheetah (USENIX Security 2022), section 4. A polynomial holds Vw input channels, one behind the
other; another holds the kernels of Mw outputs, reversed, so that the product has each output at a coefficient of its
own. Three things differ from the paper. The zeros of the padding are shared: those behind a row serve the next row
too, those behind a channel the next channel, so that a 4×4 map under a 3×3 kernel takes 25 coefficients and not 36. A
stride cuts the input into phases, which become channels of a convolution of stride 1; phases that no tap reads are
dropped. And Vw and Mw are chosen for each layer by what products, uploads and downloads cost.

The homomorphic offline phase packs with it; fusion asks what a layer would cost there, on shapes alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from numpy.typing import NDArray

from parelu.fusion.composition import Convolution

DEGREE = 8192  # N

UPLOADED, ANSWERED = 19, 12  # bytes of a coefficient, for primes of 48, 48 and 56 bits; the last one is dropped

NOWHERE = -(1 << 40)  # a row or column outside of every map

Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Prices:
    """Microseconds of both parties together, by default as `benchmarks/he.py` measures them.

    product, upload, download: of a polynomial at N = 8192 and three primes, with bytes at 1 Gb/s; mac: of the server's
    multiply-add online, 13 ms for ResNet20.
    """

    product: float = 1300
    upload: float = 7500
    download: float = 14000
    mac: float = 3e-4


PRICES = Prices()


@dataclasses.dataclass(frozen=True)
class Packing:
    """How a layer's input, weights and output lie in polynomials.

    Large maps are cut into tiles of output rows. V is the number of channels with their phases.

    Attributes:
        layer: a matrix is a convolution of a 1×1 map.
        degree: N.
        channels: Vw, input channels a polynomial; kernels: Mw, outputs a polynomial.

    Raises:
        ValueError: the map is too wide for a polynomial.
    """

    layer: Convolution
    degree: int
    channels: int = 1
    kernels: int = 1

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(
                f"a map {self.layer.size[1]} wide with a kernel of {self.layer.kernel[0]} rows does not fit into "
                f"polynomials of degree {self.degree}; use smaller images"
            )

    @functools.cached_property
    def rows(self) -> _Axis:
        return _Axis.of(*(pair[0] for pair in self._axes))

    @functools.cached_property
    def columns(self) -> _Axis:
        return _Axis.of(*(pair[1] for pair in self._axes))

    @property
    def _axes(self) -> tuple[tuple[int, int], ...]:
        return self.layer.size, self.layer.kernel, self.layer.stride, self.layer.padding

    @property
    def whole(self) -> bool:
        """Whether a channel fits into a polynomial."""
        return self.rows.stored * self.columns.stored <= self.degree

    @property
    def tile(self) -> int:
        """Output rows of a tile."""
        return self.rows.outputs if self.whole else self.degree // self.columns.stored - self.rows.reach + 1

    @property
    def tiles(self) -> int:
        return -(-self.rows.outputs // self.tile)

    @property
    def stored(self) -> int:
        """Rows of a channel's block."""
        return self.rows.stored if self.whole else self.tile + self.rows.reach - 1

    @property
    def size(self) -> int:
        """Coefficients of a channel."""
        return self.stored * self.columns.stored

    @property
    def phases(self) -> int:
        return self.rows.phases * self.columns.phases

    @property
    def parts(self) -> int:
        """V."""
        return self.layer.inputs * self.phases

    @property
    def positions(self) -> int:
        """Of an output's map."""
        return self.rows.outputs * self.columns.outputs

    @property
    def input_blocks(self) -> int:
        return -(-self.parts // self.channels)

    @property
    def output_blocks(self) -> int:
        return -(-self.layer.outputs // self.kernels)

    @property
    def uploads(self) -> int:
        return self.tiles * self.input_blocks

    @property
    def downloads(self) -> int:
        return self.tiles * self.output_blocks

    @property
    def products(self) -> int:
        """Of a ciphertext and a plaintext."""
        if self.layer.groups == 1:
            return self.tiles * self.input_blocks * self.output_blocks
        return self.tiles * sum(len(self.reads(block)) for block in range(self.output_blocks))

    @property
    def bytes(self) -> int:
        """Up and down, for the usual primes."""
        answered = self.downloads * self.degree + self.layer.outputs * self.positions
        return UPLOADED * self.degree * self.uploads + ANSWERED * answered

    def microseconds(self, prices: Prices = PRICES) -> float:
        """Of an offline phase, both parties together."""
        return prices.product * self.products + prices.upload * self.uploads + prices.download * self.downloads

    def reads(self, output_block: int) -> range:
        """The input blocks that an output block reads."""
        groups, outputs = self.layer.groups, self.layer.outputs
        first = output_block * self.kernels * groups // outputs
        last = (min(outputs, (output_block + 1) * self.kernels) - 1) * groups // outputs
        parts = self.parts // groups  # of a group
        return range(first * parts // self.channels, -(-(last + 1) * parts // self.channels))

    def pack_input(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """values: the flattened source → (uploads, N), tile by tile."""
        flat = np.append(values, np.uint64(0))[self._sources]  # −1 takes the zero
        out = np.zeros((self.tiles, self.input_blocks, self.degree), np.uint64)
        for block in range(self.input_blocks):
            taken = flat[:, block * self.channels : (block + 1) * self.channels]
            out[:, block, : taken.shape[1] * self.size] = taken.reshape(self.tiles, -1)
        return out.reshape(-1, self.degree)

    def pack_weight(self, weight: Ints, output_block: int, input_block: int) -> Ints:
        """weight: (outputs, columns), integers → (N,), the kernels of one block of outputs on one block of inputs."""
        outputs = np.arange(output_block * self.kernels, min(self.layer.outputs, (output_block + 1) * self.kernels))
        inputs = np.arange(input_block * self.channels, min(self.parts, (input_block + 1) * self.channels))
        taps = self._taps[inputs]
        group = inputs * self.layer.groups // self.parts
        own = group == (outputs * self.layer.groups // self.layer.outputs)[:, None]
        values = np.where((taps >= 0) & own[:, :, None], weight[outputs[:, None, None], taps], 0)
        blocks = self.channels * (outputs - outputs[0])[:, None] + self.channels - 1 - (inputs - inputs[0])
        out = np.zeros(self.degree, np.int64)
        shifts = self._shifts
        out[blocks[:, :, None] * self.size + shifts.max() - shifts] = values
        return out

    def needed(self, output_block: int, tile: int) -> tuple[Ints, Ints]:
        """(coefficients, positions in the flattened output) of what one polynomial of the result holds."""
        first = output_block * self.kernels
        outputs = np.arange(first, min(self.layer.outputs, first + self.kernels))[:, None]
        i, j = _grid(self.tile, self.columns.outputs)
        row = tile * self.tile + i
        i, j, row = (values[row < self.rows.outputs] for values in (i, j, row))
        base = ((outputs - first) * self.channels + self.channels - 1) * self.size
        places = self._shifts.max() + i * self.columns.stored + j
        positions = outputs * self.positions + row * self.columns.outputs + j
        return (base + places).reshape(-1), positions.reshape(-1)

    @functools.cached_property
    def _sources(self) -> Ints:
        """(tiles, V, size): of each coefficient of a channel its position in the flattened source, −1 for a zero."""
        layer, (height, width) = self.layer, self.layer.size
        stored, across = np.arange(self.stored), np.arange(self.columns.stored)
        start = self.rows.start if self.whole else 0
        y = np.arange(self.tiles)[:, None] * self.tile + stored + start
        y = np.where(self.whole & (stored >= self.rows.data), NOWHERE, y)
        x = np.where(across < self.columns.data, across + self.columns.start, NOWHERE)
        phases = []
        for a, b in self._phases:
            row, column = layer.stride[0] * y + a - layer.padding[0], layer.stride[1] * x + b - layer.padding[1]
            inside = ((row >= 0) & (row < height))[..., None] & ((column >= 0) & (column < width))
            phases.append(np.where(inside, row[..., None] * width + column, -1))
        places = np.stack(phases, 1)[:, None]
        offsets = np.arange(layer.inputs).reshape(-1, 1, 1, 1) * height * width
        return np.where(places >= 0, places + offsets, -1).reshape(self.tiles, self.parts, self.size)

    @functools.cached_property
    def _taps(self) -> Ints:
        """(V, T): of each channel its columns in a weight of shape (outputs, columns), −1 for none."""
        (rows, columns), (down, across) = self.layer.kernel, self.layer.stride
        i, j = _grid(self.rows.reach, self.columns.reach)
        read = [(a + down * i, b + across * j) for a, b in self._phases]
        taps = np.stack([np.where((u < rows) & (v < columns), u * columns + v, -1) for u, v in read])
        inputs = self.layer.inputs
        within = np.arange(inputs) % (inputs // self.layer.groups) * math.prod(self.layer.kernel)
        return np.where(taps >= 0, taps + within[:, None, None], -1).reshape(self.parts, -1)

    @functools.cached_property
    def _shifts(self) -> Ints:
        """(T,): how far behind an output's first coefficient the one that a tap reads stands."""
        i, j = _grid(self.rows.reach, self.columns.reach)
        start = self.rows.start if self.whole else 0
        return (i - start) * self.columns.stored + j - self.columns.start

    @property
    def _phases(self) -> list[tuple[int, int]]:
        return [(a, b) for a in range(self.rows.phases) for b in range(self.columns.phases)]


@functools.lru_cache(maxsize=4096)
def packing(layer: Convolution, degree: int = DEGREE) -> Packing:
    """The cheapest packing of a layer at the usual prices: the server's choice, which the client is told.

    Raises ValueError where its map is too wide for a polynomial.
    """
    one = Packing(layer, degree)
    most = min(one.parts, degree // one.size)
    widths = {-(-one.parts // blocks) for blocks in _splits(one.parts, -(-one.parts // most))}
    return min((_with_channels(one, width) for width in sorted(widths)), key=lambda found: found.microseconds())


def stated(layer: Convolution, channels: int, degree: int = DEGREE) -> Packing:
    """The packing with so many input channels a polynomial, as a server states it.

    Raises ValueError where they are none, or do not fit.
    """
    one = Packing(layer, degree)
    if not 1 <= channels <= min(one.parts, degree // one.size):
        raise ValueError(f"{channels} channels a polynomial, where there are {one.parts} of {one.size} coefficients")
    return _with_channels(one, channels)


def seconds(layer: Convolution, prices: Prices = PRICES) -> float:
    """What fusion weighs: seconds of a layer's offline products and messages and of its online multiply-adds.

    prices: of the machines and the link that it is fused for. A map that is too wide for a polynomial costs infinitely
    much.
    """
    try:
        return 1e-6 * (packing(layer).microseconds(prices) + prices.mac * layer.macs)
    except ValueError:
        return math.inf


def _splits(parts: int, fewest: int) -> range | list[int]:
    """Numbers of blocks, from the fewest, that each leave another number of parts a block."""
    root = math.isqrt(parts)
    return sorted(
        {
            blocks
            for blocks in (*range(1, root + 1), *(-(-parts // one) for one in range(1, root + 2)))
            if blocks >= fewest
        }
    )


def _with_channels(one: Packing, channels: int) -> Packing:
    outputs = one.layer.outputs
    most = min(outputs, one.degree // (channels * one.size))
    return dataclasses.replace(one, channels=channels, kernels=-(-outputs // -(-outputs // most)))


def _grid(rows: int, columns: int) -> tuple[Ints, Ints]:
    i, j = np.indices((rows, columns)).reshape(2, -1)
    return i, j


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
