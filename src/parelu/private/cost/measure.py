"""What a calibration measures: small programs, run by two processes as any network is, and what each took."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from parelu.private.cost.predict import Query, query
from parelu.private.cost.programs import Layer, lowered
from parelu.private.engines.base import Options
from parelu.private.engines.delphi import Delphi
from parelu.private.engines.parties import Parties
from parelu.private.fresh import noise
from parelu.private.offline.mode import Mode, modes, ring_for
from parelu.private.protocol.delphi import TRUNCATIONS
from parelu.private.protocol.relu import Relu, relus
from parelu.private.rows import Costs

QUERIES = 5  # of each program, after one that warms up
NODES = 1 << 24  # of the trees of comparisons that both parties grow, in one program
LINKS = ("lan", "wan")

LINEAR: dict[str, tuple[tuple[int, int, int], tuple[Layer, ...], int]] = {
    "few channels": ((3, 32, 32), (Layer(16), Layer(16)), 10),
    "16 channels": ((16, 32, 32), (Layer(16), Layer(32, stride=2), Layer(32)), 10),
    "64 channels": ((64, 8, 8), (Layer(64), Layer(128, stride=2), Layer(128)), 10),
    "pointwise": ((64, 16, 16), (Layer(128, kernel=1), Layer(64, kernel=1)), 100),
    "depthwise": ((32, 32, 32), (Layer(32, groups=32), Layer(64, kernel=1)), 10),
    "small maps": ((128, 4, 4), (Layer(128), Layer(256)), 100),
    "large maps": ((3, 64, 64), (Layer(16, kernel=7, stride=2), Layer(16, stride=2)), 10),
    "matrix": ((512, 1, 1), (), 512),
}
SITES, COUNTS, WIDTHS = (16, 32, 32), (16000, 4000, 500), (7, 10, 14, 20)
DEEP = (3, 8, 8), (Layer(8, relus=100, bits=10),) * 12, 10
SQUARES = {(1, 32, 32): 500, (2, 16, 16): 400}
MIXED = (
    (3, 32, 32),
    (Layer(16, relus=16000, bits=14), Layer(32, stride=2, relus=2000, bits=12), Layer(32, relus=300, bits=16)),
    10,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A program under some options, by a name for people."""

    name: str
    shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    classes: int
    options: Options


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a case's query does, and what that took."""

    case: Case
    query: Query
    costs: Costs


def cases(links: Sequence[str] = LINKS) -> list[Case]:
    """Every ReLU protocol and offline mode that is there, plugins among them, and all that a layer can be."""
    return [*_linear(), *_relus(), *_squares(), *_deep(), *_mixed(("loopback", *links))]


def _linear() -> Iterator[Case]:
    for name, (shape, layers, classes) in LINEAR.items():
        for offline in modes():
            yield Case(f"{name}, {offline}", shape, layers, classes, Options(offline=offline))


def _relus() -> Iterator[Case]:
    """Of each protocol, of several widths, by each way in which correlations are made."""
    ways = {mode.relus_by or mode.name: mode for mode in reversed(modes().values())}.values()
    for relu, mode, bits in itertools.product(relus().values(), ways, WIDTHS):
        for truncation in TRUNCATIONS if relu.truncates else TRUNCATIONS[:1]:
            options = Options(relu.name, mode.name, truncation=truncation)
            name = f"{relu.name} of {bits} bits, {truncation} truncation, {mode.name}"
            yield Case(name, SITES, _sites(relu, mode, bits, truncation), 10, options)


def _sites(relu: Relu, mode: Mode, bits: int, truncation: str) -> tuple[Layer, ...]:
    grown = relu.compares and not mode.third_party
    bits = min(bits, mode.most_bits) if relu.compares else bits
    most = NODES >> bits if grown else max(COUNTS)
    scale = min(1.0, most / max(COUNTS))
    outputs = 16 if truncation == "exact" else 0
    return tuple(Layer(outputs, kernel=1, groups=16, relus=int(scale * count), bits=bits) for count in COUNTS)


def _squares() -> Iterator[Case]:
    for mode in modes().values():
        for shape, count in SQUARES.items():
            layers = (Layer(singles=True, squares=count),)
            yield Case(f"{count} squares, {mode.name}", shape, layers, 10, Options(offline=mode.name))


def _deep() -> Iterator[Case]:
    """Many layers that are small: what each takes however little it does."""
    shape, layers, classes = DEEP
    for relu, offline in itertools.product(relus(), modes()):
        yield Case(f"deep, {relu}, {offline}", shape, layers, classes, Options(relu, offline))


def _mixed(links: Sequence[str]) -> Iterator[Case]:
    shape, layers, classes = MIXED
    for link in links:
        for offline in modes():
            yield Case(f"mixed, {offline}, {link}", shape, layers, classes, Options(offline=offline, link=link))


def observe(found: Sequence[Case], progress: Callable[[Observation], None]) -> list[Observation]:
    """Measure them one after another, in two processes. progress: is told of each."""
    observations: list[Observation] = []
    with Parties() as parties:
        for case in found:
            options = case.options
            ready = lowered(case.shape, case.layers, ring_for(options.offline), case.classes)
            measured = Delphi().measure(parties, ready, noise(QUERIES, case.shape, seed=0), options)
            observations.append(Observation(case, query(ready.program, options, ready), measured.costs))
            progress(observations[-1])
    return observations
