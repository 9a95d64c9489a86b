"""Which uploads a network makes in offline mode `hints`, and how many outputs share a hint: by what a query costs.

Outputs that share a hint save its bytes, once a client, and cost multiply-adds and uploads at every query: what is
best depends on how many queries a client will ask. The server plans, and states its plans; a client reads them
(`stated`) and takes the one that is best for it. Squares and weights of single positions are no layers here: an output
is a hint of 60 KB, where a product by oblivious transfer takes a few KB at most.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from parelu.fusion.composition import Convolution
from parelu.fusion.hint_geometry import DEGREE
from parelu.fusion.hint_layout import MATRICES, Layer, Reader, Upload

RANK = 3
KEPT_BITS, DROPPED_BITS = 3 * 26, 3 * 25  # of the primes that are in answers and hints, and of those that are dropped
KEPT, PRIMES = 3, 6
UPLOADED, ANSWERED = KEPT_BITS + DROPPED_BITS, KEPT_BITS  # bits of a coefficient
HINT = RANK * DEGREE * KEPT_BITS  # bits of a row
PUBLIC = RANK * DEGREE * UPLOADED  # bits for a secret of the client's under one matrix

# Picoseconds of one core, as `benchmarks/hints.py` measures them; for one prime where nothing else is said.
MAC = 45  # a multiply-add of float64 matrices
GATHER = 700  # an element of a matrix of columns
PRODUCT = 300  # of transforms
TRANSFORM = 200  # a point and one of log2(2n) levels
OUTPUT_SERVER, OUTPUT_CLIENT = 40_000, 8_000  # an output, all primes
COEFFICIENT = 40_000  # of a polynomial that is encrypted, all primes
RECEIVED = 12_000  # a coefficient that is sent, all primes: the server unpacks and checks it
BIT = 1_000  # at 1 Gb/s
ONLINE_MAC = 300  # of the server's integers, in the online phase

# Queries of a client that a server makes a plan for: once, and often. The better of the two costs at most a sixth more
# than a plan for the number asked, for any number and ResNets and MobileNetV2 from 32×32 to 224×224.
ONCE, OFTEN = 1, 100
MOST_OUTPUTS = 32  # of a row: their weights add up in the noise
UNFIT = 1 << 100  # weight of an upload that does not fit
MOST_TAPS = 4096  # of a kernel: a plan is made for whatever a server's program says
MOST_SHARING = 8  # more readers of a value do not share: the search is cubic in them


class Cost(NamedTuple):
    """Of one query: picoseconds of the server and the client, bits up and down; and bits of the hints, once."""

    server: int = 0
    client: int = 0
    up: int = 0
    down: int = 0
    hint: int = 0

    def plus(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def weight(self, queries: int) -> int:
        """Picoseconds of so many queries."""
        return queries * (self.server + self.client + BIT * (self.up + self.down)) + BIT * self.hint


def upload_cost(upload: Upload) -> Cost:
    """Of an upload with its readers; without the public parts of the client's secrets, which all uploads share."""
    client = COEFFICIENT * DEGREE * upload.polynomials * upload.tiles
    sent = len(upload.coefficients) * upload.parts * upload.tiles
    total = Cost(server=RECEIVED * sent, client=client, up=UPLOADED * sent)
    for reader in upload.readers:
        total = total.plus(_reader_cost(reader))
    return total


def _reader_cost(reader: Reader) -> Cost:
    upload = reader.upload
    level = upload.points * (2 * upload.points).bit_length() * TRANSFORM
    row = upload.tiles * (RANK * DEGREE * PRODUCT + level)
    return Cost(
        server=PRIMES * (MAC * reader.macs + GATHER * reader.gathered + row * reader.rows)
        + OUTPUT_SERVER * reader.count,
        client=KEPT * row * reader.rows + OUTPUT_CLIENT * reader.count,
        down=ANSWERED * reader.count,
        hint=HINT * reader.rows,
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The uploads of a network, in order of their sources."""

    uploads: tuple[Upload, ...]

    @functools.cached_property
    def readers(self) -> dict[int, Reader]:
        """The number of a linear op's value → the op on its upload."""
        return {reader.number: reader for upload in self.uploads for reader in upload.readers}

    @property
    def secrets(self) -> int:
        """Of the client's in a query: tile t of any upload is under secret t."""
        return max((upload.tiles for upload in self.uploads), default=0)

    @property
    def public_parts(self) -> tuple[tuple[int, int], ...]:
        """(secret, matrix): for each the client sends a public part."""
        pairs = {
            (secret, matrix)
            for reader in self.readers.values()
            for secret in range(reader.upload.tiles)
            for matrix in range(reader.matrices)
        }
        return tuple(sorted(pairs))

    @property
    def rows(self) -> int:
        """Hint polynomials."""
        return sum(reader.rows for reader in self.readers.values())

    @functools.cached_property
    def cost(self) -> Cost:
        total = Cost(up=PUBLIC * len(self.public_parts))
        for upload in self.uploads:
            total = total.plus(upload_cost(upload))
        return total

    @functools.cached_property
    def stated(self) -> tuple[tuple[int, int], ...]:
        """Of each layer in order the number of its upload, and its M: what `stated` reads."""
        found = {
            layer.number: (number, upload.most) for number, upload in enumerate(self.uploads) for layer in upload.layers
        }
        return tuple(found[number] for number in sorted(found))

    @property
    def text(self) -> str:
        """Canonical: what a digest of the layout covers; plans that do the same are equal in it."""
        uploads = [
            {
                "source": upload.source,
                "layers": [[layer.number, dataclasses.astuple(layer.shape)] for layer in upload.layers],
                "most": upload.most,
                "tiles": upload.tiles,
                "points": upload.points,
                "spacing": upload.spacing,
            }
            for upload in self.uploads
        ]
        header = {"format": "parelu-hint-plan-1", "degree": DEGREE, "matrices": MATRICES}
        return json.dumps({**header, "uploads": uploads}, sort_keys=True, separators=(",", ":"))


def plans(layers: Iterable[Layer]) -> tuple[Plan, ...]:
    """What a server offers: a plan for clients that ask once and one for those that ask often, where they differ.

    Raises:
        ValueError: a map is too wide for a polynomial.
    """
    return _plans(tuple(layers))


@functools.lru_cache(64)  # a search for masks asks for the same again and again
def _plans(layers: tuple[Layer, ...]) -> tuple[Plan, ...]:
    once, often = plan(layers, ONCE), plan(layers, OFTEN)
    # Uploads are planned one by one, without the secrets' public parts, which may cost more than what is saved.
    return (once,) if once.cost.weight(OFTEN) <= often.cost.weight(OFTEN) else (once, often)


def stated(layers: Iterable[Layer], uploads: Sequence[Sequence[int]]) -> Plan:
    """The plan that a server states: of each layer in order the number of its upload, and how many outputs a row holds.

    Raises ValueError where that is no plan of these layers.
    """
    shared: dict[int, list[Layer]] = {}
    most: dict[int, int] = {}
    for layer, (number, outputs) in zip(layers, uploads, strict=True):
        _check_taps(layer)
        shared.setdefault(number, []).append(layer)
        if most.setdefault(number, outputs) != outputs or shared[number][0].source != layer.source:
            raise ValueError(f"upload {number} is not one")
    if sorted(shared) != [*range(len(shared))] or max(map(len, shared.values()), default=0) > MOST_SHARING:
        raise ValueError(f"{len(shared)} uploads of which some are missing or too large")
    if not all(1 <= outputs <= MOST_OUTPUTS for outputs in most.values()):
        raise ValueError(f"rows of other than 1 to {MOST_OUTPUTS} outputs")
    return Plan(tuple(Upload(of[0].source, tuple(of), most[number]) for number, of in sorted(shared.items())))


def _check_taps(layer: Layer) -> None:
    if math.prod(layer.shape.kernel) > MOST_TAPS:
        raise ValueError(f"a kernel of {layer.shape.kernel} has more than {MOST_TAPS} taps")


def best(offered: Sequence[Plan], queries: int) -> int:
    """Which of them is the cheapest for a client that will ask so many queries."""
    return min(range(len(offered)), key=lambda number: offered[number].cost.weight(queries))


def plan(layers: Iterable[Layer], queries: int) -> Plan:
    """The cheapest uploads of a network for a client that asks so many queries.

    Raises:
        ValueError: a map is too wide for a polynomial.
    """
    sources: dict[int, list[Layer]] = {}
    for layer in sorted(layers):
        _check_taps(layer)
        sources.setdefault(layer.source, []).append(layer)
    return Plan(
        tuple(upload for source in sorted(sources) for upload in _uploads(source, tuple(sources[source]), queries))
    )


def _uploads(source: int, layers: tuple[Layer, ...], queries: int) -> list[Upload]:
    """From an upload for each reader on, the two whose union saves most are made one."""
    groups: list[tuple[Layer, ...]] = [(layer,) for layer in layers]
    while len(layers) <= MOST_SHARING:
        pairs = [(first, second, tuple(sorted(first + second))) for first, second in itertools.combinations(groups, 2)]
        saved = [
            _weight(first, queries) + _weight(second, queries) - _weight(both, queries) for first, second, both in pairs
        ]
        if max(saved, default=0) <= 0:
            break
        first, second, both = pairs[saved.index(max(saved))]
        groups = sorted([both, *(group for group in groups if group not in (first, second))])
    return [Upload(source, group, _cheapest(_shapes(group), queries)[1]) for group in groups]


def _weight(group: tuple[Layer, ...], queries: int) -> int:
    try:
        return _cheapest(_shapes(group), queries)[0]
    except ValueError:
        if len(group) == 1:
            raise
        return UNFIT


def _shapes(layers: tuple[Layer, ...]) -> tuple[Convolution, ...]:
    return tuple(layer.shape for layer in layers)


@functools.lru_cache(maxsize=4096)
def _cheapest(shapes: tuple[Convolution, ...], queries: int) -> tuple[int, int]:
    """(weight, M) of one upload for these; raises ValueError where it does not fit."""
    layers = tuple(Layer(number, 0, shape) for number, shape in enumerate(shapes))
    spacing, outputs = Upload(0, layers).spacing, max(shape.outputs for shape in shapes)
    return min((upload_cost(Upload(0, layers, most)).weight(queries), most) for most in _candidates(spacing, outputs))


def _candidates(spacing: int, outputs: int) -> list[int]:
    """Numbers of outputs in a row: what fills a power of two, and some between."""
    most = min(outputs, DEGREE // spacing, MOST_OUTPUTS)
    powers = [1 << k for k in range(DEGREE.bit_length())]
    numbers = {most, *(power // spacing for power in powers), *powers, *(3 * power for power in powers)}
    return sorted(number for number in numbers if 1 <= number <= most)


def seconds(layer: Convolution) -> float:
    """What fusion weighs: a layer's offline query, of a client that asks many, and its online multiply-adds.

    A map that is too wide for a polynomial costs infinitely much.
    """
    try:
        weight, _ = _cheapest((layer,), OFTEN)
    except ValueError:
        return math.inf
    return 1e-12 * (weight / OFTEN + ONLINE_MAC * layer.macs)
