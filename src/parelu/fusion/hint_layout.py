"""Convolutions and matrices as plain convolutions of ciphertext coefficients, for offline mode `hints`.

A ciphertext is a polynomial of Z[X]/(X^2048 + 1). With Y = X^K it holds K sequences of n = 2048/K elements, one of
each class v + K·i, and a product's class 0 is the sum of the products of the sequences modulo Y^n + 1. An input
channel takes one sequence for each phase that its readers' strides cut the map into; its rows stand one behind the
other with the padding's zeros between them, those before the first row at negative indices. So an output is a sum over
channels and taps at a fixed distance from a position of its own: what the server computes on coefficients of the
client's ciphertexts, of which only those that are read are ever sent.

Layers that read one value share an upload. A hint polynomial (a row) may hold M outputs, S elements from one another:
then hints are M times fewer, and each output also reads where the others' weights meet zeros, at M times the
multiply-adds. Maps larger than a polynomial are cut into tiles of rows.

Sources: coefficient packing after Huang et al., Cheetah (USENIX Security 2022), section 4; on ciphertext coefficients,
Jaguar (2026).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parelu.fusion.composition import Convolution
from parelu.fusion.hint_geometry import DEGREE, Geometry

MATRICES = 8  # public matrices under which the rows of a layer share a secret of the server's

Ints = NDArray[np.int64]
Indices = NDArray[np.int32]
Floats = NDArray[np.float64]


class Layer(NamedTuple):
    """A linear op of a program: the number of the value that it makes, of the one that it reads, and its shape."""

    number: int
    source: int
    shape: Convolution


@dataclasses.dataclass(frozen=True)
class Upload:
    """One value in ciphertexts, for all layers that read it there.

    Attributes:
        source: number of the value.
        layers: its readers; a matrix is a convolution of a 1×1 map.
        most: M, the most outputs that a row of theirs holds.

    Raises:
        ValueError: the map is too wide for a polynomial, or M outputs are too many.
    """

    source: int
    layers: tuple[Layer, ...]
    most: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.most <= DEGREE // self.spacing:
            raise ValueError(f"{self.most} outputs of {self.spacing} elements in a row of {DEGREE}")

    @functools.cached_property
    def geometry(self) -> Geometry:
        return Geometry(tuple(layer.shape for layer in self.layers))

    @property
    def channels(self) -> int:
        return self.layers[0].shape.inputs

    @property
    def tiles(self) -> int:
        return self.geometry.tiles

    @property
    def spacing(self) -> int:
        """S."""
        return self.geometry.spacing

    @property
    def parts(self) -> int:
        """V: sequences of the source; part c·phases + f is phase f of channel c."""
        return self.channels * len(self.geometry.phases)

    @functools.cached_property
    def points(self) -> int:
        """n: elements of a sequence, a power of two."""
        return 1 << (self.most * self.spacing - 1).bit_length()

    @property
    def classes(self) -> int:
        """K: part v is class v mod K of polynomial v div K."""
        return DEGREE // self.points

    @property
    def polynomials(self) -> int:
        """Of one tile."""
        return -(-self.parts // self.classes)

    @functools.cached_property
    def readers(self) -> tuple[Reader, ...]:
        return tuple(Reader(self, place) for place in range(len(self.layers)))

    @functools.cached_property
    def coefficients(self) -> Ints:
        """The positions in [0, n) that are read of any part, ascending: what is sent of each part and tile."""
        used = np.zeros(self.points, bool)
        for reader in self.readers:
            reads = np.zeros(self.points, bool)  # of an output alone in its row
            for offset in reader.offsets:
                reads[(reader.base + offset) % self.points] = True
            for reach in range(1 - reader.per_row, reader.per_row):
                used |= np.roll(reads, reach * self.spacing)
        return np.flatnonzero(used)

    def pack(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The flattened source → (tiles, V, coefficients): the message at each, 0 in the padding."""
        maps = values.reshape(self.channels, -1)
        maps = np.concatenate([maps, np.zeros((self.channels, 1), np.uint64)], 1)  # −1 takes the zero
        taken = maps[:, self._sources].transpose(1, 0, 2, 3)
        return np.ascontiguousarray(taken).reshape(self.tiles, self.parts, -1)

    @functools.cached_property
    def _sources(self) -> Ints:
        """(tiles, phases, coefficients): position in the source's map, −1 for a zero."""
        height, width = self.layers[0].shape.size
        row, column = np.divmod(self.coefficients - self.geometry.origin, self.geometry.pitch)
        row = row + np.arange(self.tiles)[:, None] * self.geometry.height
        stored = (row >= 0) & (row < self.geometry.rows.data) & (column < self.geometry.columns.data)
        places = []
        for a, b in self.geometry.phases:
            y, x = row * self.geometry.rows.phases + a, column * self.geometry.columns.phases + b
            places.append(np.where(stored & (y < height) & (x < width), y * width + x, -1))
        return np.stack(places, 1)


@dataclasses.dataclass(frozen=True)
class Reader:
    """One layer on an upload, as a plain convolution; it is computed tile by tile.

    Slot (m, i, j) of a row is output m of the row at position (i, j) of the tile. Column (m', c, t) is channel c of
    the group of output m' at tap t; so a row of the matrix holds the weights of its outputs one behind the other.

    Attributes:
        place: in the upload's layers.
    """

    upload: Upload
    place: int

    @property
    def layer(self) -> Convolution:
        return self.upload.layers[self.place].shape

    @property
    def number(self) -> int:
        return self.upload.layers[self.place].number

    @property
    def merged(self) -> int:
        """Groups of the layer whose outputs share a row, where a group has fewer outputs than a row could hold."""
        groups = self.layer.groups
        most = min(groups, max(1, self.upload.most // (self.layer.outputs // groups)))
        return -(-groups // -(-groups // most))

    @property
    def _outputs(self) -> int:
        """Of a group of rows."""
        return self.merged * self.layer.outputs // self.layer.groups

    @property
    def group_rows(self) -> int:
        return -(-self._outputs // self.upload.most)

    @property
    def per_row(self) -> int:
        """Outputs of a row: no more than the number of rows asks for."""
        return -(-self._outputs // self.group_rows)

    @property
    def groups(self) -> int:
        """Of rows that read the same parts."""
        return -(-self.layer.groups // self.merged)

    @property
    def rows(self) -> int:
        """Hint polynomials."""
        return self.groups * self.group_rows

    @property
    def matrices(self) -> int:
        """G: row j is masked with public matrix j mod G and the server's secret j div G.

        1 where there are tiles: each has a secret of the client's own, and a public part for each matrix in use.
        """
        return 1 if self.upload.tiles > 1 else min(MATRICES, self.rows)

    @property
    def _steps(self) -> tuple[int, int]:
        return self.upload.geometry.rows.steps[self.place], self.upload.geometry.columns.steps[self.place]

    @property
    def tile_size(self) -> tuple[int, int]:
        """(rows, columns) of the output in a tile."""
        rows, columns = self.layer.output_size
        return (rows if self.upload.geometry.is_whole else self.upload.geometry.height // self._steps[0]), columns

    @property
    def slots(self) -> int:
        """Of a row in one tile."""
        return self.per_row * math.prod(self.tile_size)

    @functools.cached_property
    def base(self) -> Ints:
        """Index of each position of an output in a tile."""
        i, j = np.indices(self.tile_size).reshape(2, -1)
        return self.upload.geometry.origin + self._steps[0] * i * self.upload.geometry.pitch + self._steps[1] * j

    @functools.cached_property
    def positions(self) -> Ints:
        """(slots,): index of each slot, in [0, n): its place in class 0 of the ring product."""
        return (np.arange(self.per_row)[:, None] * self.upload.spacing + self.base).reshape(-1)

    @functools.cached_property
    def _taps(self) -> tuple[Ints, Ints, Ints]:
        """(column of a kernel's weights, phase, offset) of each tap that meets the map."""
        taps, numbers = [], {phase: number for number, phase in enumerate(self.upload.geometry.phases)}
        for down in self.upload.geometry.rows.taps[self.place]:
            for across in self.upload.geometry.columns.taps[self.place]:
                phase = numbers[down.phase, across.phase]
                offset = down.offset * self.upload.geometry.pitch + across.offset
                taps.append((down.tap * self.layer.kernel[1] + across.tap, phase, offset))
        number, phases, offsets = np.array(taps, np.int64).T
        return number, phases, offsets

    @property
    def offsets(self) -> Ints:
        """How far from an output's index each tap reads."""
        return self._taps[2]

    @property
    def columns(self) -> int:
        """Of a row of the matrix."""
        return self.per_row * self.layer.inputs // self.layer.groups * len(self.offsets)

    @property
    def macs(self) -> int:
        """Multiply-adds of a query for one prime."""
        return self.rows * self.columns * self.slots * self.upload.tiles

    @property
    def gathered(self) -> int:
        """Elements of all columns of a query for one prime."""
        return self.groups * self.columns * self.slots * self.upload.tiles

    @functools.cached_property
    def parts(self) -> Indices:
        """(groups, columns): the part that a column reads."""
        of_group = self.layer.inputs // self.layer.groups
        own = np.arange(self.per_row) * self.layer.groups // self.layer.outputs if self.merged > 1 else 0
        group = np.arange(self.groups)[:, None] * self.merged + np.broadcast_to(own, self.per_row)
        group = np.minimum(group, self.layer.groups - 1)[:, :, None, None]  # beyond the last one weights are 0
        channel = group * of_group + np.arange(of_group)[:, None]
        return (channel * len(self.upload.geometry.phases) + self._taps[1]).reshape(self.groups, -1).astype(np.int32)

    @functools.cached_property
    def taps(self) -> Indices:
        """(columns,): row of `index` that a column reads by."""
        inputs, count = self.layer.inputs // self.layer.groups, len(self.offsets)
        taps = np.arange(self.per_row)[:, None, None] * count + np.arange(count)
        return np.broadcast_to(taps, (self.per_row, inputs, count)).reshape(-1).astype(np.int32)

    @functools.cached_property
    def _range(self) -> tuple[int, int]:
        """The least and the largest index that is read."""
        reach = (self.per_row - 1) * self.upload.spacing
        least = self.base.min() + self.offsets.min() - reach
        return int(least), int(self.base.max() + self.offsets.max() + reach)

    @functools.cached_property
    def entries(self) -> tuple[Indices, Floats]:
        """(place in the upload's coefficients, sign) of the indices from the least to the largest that is read.

        The sign is −1 for a negative index, which lies at index mod n. Some indices between may not be read, nor sent;
        their place is 0.
        """
        least, largest = self._range
        index = np.arange(least, largest + 1)
        sent = self.upload.coefficients
        place = np.minimum(np.searchsorted(sent, index % self.upload.points), len(sent) - 1)
        place[sent[place] != index % self.upload.points] = 0
        return place.astype(np.int32), np.where(index < 0, -1.0, 1.0)

    @functools.cached_property
    def index(self) -> Indices:
        """(M·taps, slots): the entry that tap (m', t) reads for each slot."""
        shift = np.arange(self.per_row)[:, None] * self.upload.spacing
        taps = (self.offsets - shift).reshape(-1, 1)
        return (self.positions + taps - self._range[0]).astype(np.int32)

    def sequences(self, coefficients: NDArray[np.number]) -> NDArray[np.number]:
        """(…, coefficients) → (…, entries): each entry with its sign."""
        places, signs = self.entries
        return coefficients[..., places] * signs.astype(coefficients.dtype)

    def gather(self, coefficients: NDArray[np.number], group: int) -> NDArray[np.number]:
        """(L, V, coefficients) of one tile → (columns, L, slots), what a group's matrix is multiplied with."""
        sequences = self.sequences(coefficients)
        found = sequences[:, self.parts[group][:, None], self.index[self.taps]]
        return found.transpose(1, 0, 2)

    @functools.cached_property
    def row_outputs(self) -> Ints:
        """(rows, M): the output that each is, −1 for none."""
        within = np.arange(self.group_rows * self.per_row)
        outputs = np.arange(self.groups)[:, None] * self._outputs + within
        exists = (within < self._outputs) & (outputs < self.layer.outputs)
        return np.where(exists, outputs, -1).reshape(self.rows, self.per_row)

    def matrix(self, weight: NDArray[np.integer] | Floats) -> Floats:
        """(outputs, inputs / groups, …) → (groups, rows of a group, columns)."""
        taps = weight.reshape(self.layer.outputs, -1, math.prod(self.layer.kernel))[:, :, self._taps[0]]
        taken = np.where(self.row_outputs[:, :, None, None] >= 0, taps[self.row_outputs], 0)
        return taken.reshape(self.groups, self.group_rows, self.columns).astype(np.float64)

    def polynomials(self, matrix: Floats, rows: slice) -> Floats:
        """(2048, polynomials, rows): w with class 0 of Σ_i b_i·w_i the plain convolution; by these hints are made.

        matrix: of `matrix`.
        """
        matrix = matrix.reshape(self.rows, -1)[rows]
        numbers = np.arange(self.rows)[rows]
        upload = self.upload
        shift = np.arange(self.per_row)[:, None, None] * upload.spacing
        inputs = self.layer.inputs // self.layer.groups
        offset = np.broadcast_to(self.offsets - shift, (self.per_row, inputs, len(self.offsets))).reshape(-1)
        polynomial, v = np.divmod(self.parts[numbers // self.group_rows].astype(np.int64), upload.classes)
        power = -(v + upload.classes * offset) % (2 * DEGREE)
        out = np.zeros((DEGREE, upload.polynomials, len(numbers)))
        values = np.where(power >= DEGREE, -matrix, matrix)
        np.add.at(out, (power % DEGREE, polynomial, np.arange(len(numbers))[:, None]), values)
        return out

    @functools.cached_property
    def places(self) -> Ints:
        """(rows, tiles, slots): position in the flattened output, −1 for none."""
        height, width = self.layer.output_size
        i, x = np.indices(self.tile_size).reshape(2, -1)
        y = np.arange(self.upload.tiles)[:, None, None] * self.tile_size[0] + i
        output = self.row_outputs[:, None, :, None]
        place = np.where((output >= 0) & (y < height), (output * height + y) * width + x, -1)
        return place.reshape(self.rows, self.upload.tiles, self.slots)

    @property
    def used(self) -> NDArray[np.bool_]:
        """(rows, tiles, slots): those that are outputs; only they are sent."""
        return self.places >= 0

    @property
    def count(self) -> int:
        """Elements of the output."""
        return self.layer.outputs * math.prod(self.layer.output_size)

    def outputs(self, answer: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """(rows, tiles, slots) → the flattened output."""
        out = np.empty(self.count, answer.dtype)
        out[self.places[self.used]] = answer[self.used]
        return out

    def rows_of(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The inverse of `outputs`; 0 in slots that are no output."""
        return np.append(values, np.zeros(1, values.dtype))[self.places]
