"""Where elements lie in the polynomials of `hints`, as docs/wire-format.md says."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

DEGREE = 2048


@dataclass(frozen=True)
class Layer:
    """A `conv`, or a `linear` as one of a 1 × 1 map; number, source: of values."""

    number: int
    source: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def output_size(self) -> list[int]:
        each = zip(self.size, self.padding, self.kernel, self.stride, strict=True)
        return [(size + 2 * p - k) // s + 1 for size, p, k, s in each]

    @property
    def text(self) -> list:
        pairs = [[*pair] for pair in (self.size, self.kernel, self.stride, self.padding)]
        return [self.number, [self.inputs, self.outputs, *pairs, self.groups, [1, 1]]]


class Axis:
    """One direction of an upload's map."""

    def __init__(self, layers: list[Layer], d: int) -> None:
        size = layers[0].size[d]
        self.phases = math.gcd(*(layer.stride[d] for layer in layers))
        self.steps = [layer.stride[d] // self.phases for layer in layers]
        ends = [layer.output_size[d] - 1 for layer in layers]
        self.taps: list[list[tuple[int, int]]] = []  # of each layer, (phase, offset)
        for layer, end in zip(layers, ends, strict=True):
            starts = [tap - layer.padding[d] for tap in range(layer.kernel[d])]
            met = [s for s in starts if any(0 <= layer.stride[d] * i + s < size for i in range(end + 1))] or starts[:1]
            self.taps.append([(s % self.phases, s // self.phases) for s in met])
        furthest = [max(0, *(offset for _, offset in taps)) for taps in self.taps]
        self.last = max(s * e + f for s, e, f in zip(self.steps, ends, furthest, strict=True))
        self.data = min(-(-size // self.phases), self.last + 1)
        self.before = max(0, -min(offset for taps in self.taps for _, offset in taps))
        self.after = max(furthest)
        self.span = max(s * e for s, e in zip(self.steps, ends, strict=True)) + 1


class Upload:
    """One value in polynomials; most: M."""

    def __init__(self, layers: list[Layer], most: int) -> None:
        self.layers, self.most = layers, most
        y, x = self.y, self.x = Axis(layers, 0), Axis(layers, 1)
        self.pitch = x.data + max(x.before, x.last - x.data + 1)
        lead = y.before * self.pitch + x.before
        self.spacing = max(y.last * self.pitch + x.last + 1, lead + (y.data - 1) * self.pitch + x.data)
        self.whole = self.spacing <= DEGREE
        self.tiles, self.height, self.origin = 1, y.span, 0
        if not self.whole:
            unit = math.lcm(*y.steps)
            fits = ((DEGREE - 1 - x.before - x.last) // self.pitch - y.before - y.after + 1) // unit * unit
            if fits <= 0:
                raise ValueError("a map is too wide")
            self.height = -(-y.span // (-(-y.span // fits) * unit)) * unit
            self.tiles, self.origin = -(-y.span // self.height), lead
            self.spacing = lead + (self.height - 1 + y.after) * self.pitch + x.last + 1
        self.points = 1 << (most * self.spacing - 1).bit_length()
        self.classes = DEGREE // self.points
        pairs = {(a, b) for down, across in zip(y.taps, x.taps, strict=True) for a, _ in down for b, _ in across}
        self.phases = sorted(pairs)
        self.parts = layers[0].inputs * len(self.phases)
        self.polynomials = -(-self.parts // self.classes)
        self.readers = [Reader(self, at) for at in range(len(layers))]

    @property
    def text(self) -> dict:
        own = {"source": self.layers[0].source, "layers": [layer.text for layer in self.layers], "most": self.most}
        return {**own, "tiles": self.tiles, "points": self.points, "spacing": self.spacing}

    @cached_property
    def sent(self) -> np.ndarray:
        """The elements of a part that are sent."""
        found = set()
        for reader in self.readers:
            reads = (reader.base[:, None] + reader.offsets).reshape(-1)
            for d in range(1 - reader.per_row, reader.per_row):
                found |= set(((reads + d * self.spacing) % self.points).tolist())
        return np.array(sorted(found))

    def pack(self, values: np.ndarray) -> np.ndarray:
        """(C, H, W) → (tiles, parts, elements that are sent)."""
        height, width = self.layers[0].size
        out = np.zeros((self.tiles, self.parts, len(self.sent)), np.uint64)
        for t in range(self.tiles):
            i, j = np.divmod(self.sent - self.origin, self.pitch)
            i = i + t * self.height
            for f, (a, b) in enumerate(self.phases):
                row, column = self.y.phases * i + a, self.x.phases * j + b
                there = (i >= 0) & (i < self.y.data) & (j < self.x.data) & (row < height) & (column < width)
                out[t, f :: len(self.phases), there] = values[:, row[there], column[there]].T
        return out


class Reader:
    """A layer on its upload."""

    def __init__(self, upload: Upload, at: int) -> None:
        self.upload, self.layer = upload, upload.layers[at]
        layer, most = self.layer, upload.most
        together = min(layer.groups, max(1, most // (layer.outputs // layer.groups)))
        merged = -(-layer.groups // -(-layer.groups // together))
        outputs = merged * layer.outputs // layer.groups
        of_block = -(-outputs // most)
        self.per_row = -(-outputs // of_block)
        self.rows = -(-layer.groups // merged) * of_block
        self.matrices = 1 if upload.tiles > 1 else min(8, self.rows)
        step_y, step_x = upload.y.steps[at], upload.x.steps[at]
        self.tile_rows = layer.output_size[0] if upload.whole else upload.height // step_y
        i, j = (each.reshape(-1) for each in np.indices((self.tile_rows, layer.output_size[1])))
        self.base = upload.origin + step_y * i * upload.pitch + step_x * j
        down, across = upload.y.taps[at], upload.x.taps[at]
        self.offsets = np.array([u * upload.pitch + v for _, u in down for _, v in across])
        slots = []  # (row, tile, position, place in the output) of each element of an answer, in order
        for row in range(self.rows):
            block, within = divmod(row, of_block)
            firsts = [within * self.per_row + k for k in range(self.per_row)]
            own = [(k, block * outputs + o) for k, o in enumerate(firsts) if o < outputs]
            for t in range(upload.tiles):
                for k, output in own:
                    y = t * self.tile_rows + i
                    there = (y < layer.output_size[0]) & (output < layer.outputs)
                    places = (output * layer.output_size[0] + y) * layer.output_size[1] + j
                    positions = k * upload.spacing + self.base
                    both = zip(positions[there].tolist(), places[there].tolist(), strict=True)
                    slots += [(row, t, position, place) for position, place in both]
        self.slots = np.array(slots)


def plan(layers: list[Layer], stated: np.ndarray) -> list[Upload]:
    """Of what the server states, (layers, 2); raises ValueError where it is no plan."""
    uploads = []
    for number in range(int(stated[:, 0].max()) + 1):
        own = [layer for layer, (upload, _) in zip(layers, stated.tolist(), strict=True) if upload == number]
        most = set(stated[stated[:, 0] == number, 1].tolist())
        if not own or len({layer.source for layer in own}) != 1 or len(most) != 1 or not 1 <= min(most) <= 32:
            raise ValueError(f"upload {number} of the plan is none")
        uploads.append(Upload(own, *most))
        if uploads[-1].points > DEGREE:
            raise ValueError(f"upload {number} of the plan does not fit")
    return uploads
