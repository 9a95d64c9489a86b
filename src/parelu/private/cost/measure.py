"""What a calibration measures: small programs, run by two processes as any network is, and what each took."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from parelu.network import machine
from parelu.private.cost.predict import Query, query
from parelu.private.cost.programs import Layer, drawn, lowered
from parelu.private.engines.base import Options
from parelu.private.engines.delphi import Delphi
from parelu.private.engines.parties import Parties
from parelu.private.fresh import noise
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline.mode import Mode, modes, ring_for
from parelu.private.protocol.delphi import TRUNCATIONS
from parelu.private.protocol.relu import Relu, relus
from parelu.private.rows import Costs
from parelu.private.transport.link import link_of

QUERIES = 5  # of each program, after one that warms up
SLOW = 0.01  # seconds of a round trip, from which on fewer queries do: most of their time is the link's
QUERIES_SLOW = 3
TRIES = 3  # of a measurement that was disturbed
OTHERS, SLOWER = 0.1, 0.15  # the share of the cores that others may have, and how much slower the machine may be
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
SITES, COUNTS, WIDTHS = (16, 32, 32), (16000, 4000, 500), (7, 12, 18)
DEEP = (3, 8, 8), (Layer(8, relus=100, bits=10),) * 12, 10
SQUARES = {(1, 32, 32): 500, (2, 16, 16): 400}
LARGE = (16, 64, 64), (Layer(16, relus=40000, bits=14),), 10
LARGE_SQUARES = (16, 32, 32), (Layer(singles=True, squares=16000), Layer(singles=True, squares=8000)), 10
ALONE = (3, 32, 32), (Layer(16, relus=4000, bits=14), Layer(16, relus=4000, bits=14)), 10
MOST, MOST_SLOW = 20_000, 2_000  # ReLUs of a network that is drawn, and of one for a link that is slow
GROWN = 12  # bits of its ReLUs at most, where both parties grow trees


@dataclasses.dataclass(frozen=True)
class Case:
    """A program under some options, by a name for people. alone: in processes of its own, whose peak memory is its."""

    name: str
    shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    classes: int
    options: Options
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a case's query does, and what that took; disturbed: other times, when something else had the machine."""

    case: Case
    query: Query
    costs: Costs
    disturbed: tuple[Costs, ...] = ()


def cases(links: Sequence[str] = LINKS, times: int = 1) -> list[Case]:
    """Every ReLU protocol and offline mode that is there, plugins among them, and all that a layer can be.

    But for those whose memory is measured, once, their order is drawn, each time another, so that how fast the machine
    is from minute to minute is nothing that kinds differ in.
    """
    found = [*_linear(), *_relus(), *_squares(), *_deep(), *_large(), *_networks(("loopback", *links))]
    rng = random.Random(0)
    orders = (rng.sample(found, len(found)) for _ in range(times))
    return [*_alone(), *itertools.chain(*orders)]


def _alone() -> Iterator[Case]:
    """Of each mode something of all that its process loads and needs meanwhile; protocols hardly differ."""
    for mode in modes():
        yield Case(f"alone, {mode}", *ALONE, Options(offline=mode), alone=True)


def _linear() -> Iterator[Case]:
    for name, (shape, layers, classes) in LINEAR.items():
        for offline in sorted(modes(), key=lambda name: not modes()[name].third_party):
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


def _large() -> Iterator[Case]:
    """Where material is larger than caches are."""
    shape, layers, classes = LARGE
    for relu in relus():
        yield Case(f"large, {relu}, dealer", shape, layers, classes, Options(relu, "dealer"))
    yield Case("large, squares, dealer", *LARGE_SQUARES, Options(offline="dealer"))


def _networks(links: Sequence[str]) -> Iterator[Case]:
    """All together, as networks have it: each protocol and mode on each link, each time another one."""
    asked = itertools.product(links, modes().values(), relus().values())
    for seed, (link, mode, relu) in enumerate(asked):
        most, grown = MOST_SLOW if _is_slow(link) else MOST, relu.compares and not mode.third_party
        if grown and _is_slow(link):
            continue  # a round for each bit of each site: minutes
        shape, layers = drawn(seed, min(most, NODES >> GROWN), GROWN) if grown else drawn(seed, most)
        options = Options(relu.name, mode.name, link)
        yield Case(f"network {seed}, {relu.name}, {mode.name}, {link}", shape, layers, 10, options)


def _is_slow(link: str) -> bool:
    return link_of(link).round_trip > SLOW


def observe(given: Sequence[Case], progress: Callable[[Observation], None]) -> list[Observation]:
    """Measure them one after another, in two processes. progress: is told of each."""
    observations: list[Observation] = []
    with Parties() as parties:
        together = Undisturbed(parties)
        for case in given:
            if case.alone:
                with Parties() as own:
                    observations.append(_observed(case, Undisturbed(own)))
            else:
                observations.append(_observed(case, together))
            progress(observations[-1])
    return observations


def _observed(case: Case, measuring: Undisturbed) -> Observation:
    options = case.options
    ready = lowered(case.shape, case.layers, ring_for(options.offline), case.classes)
    count = QUERIES_SLOW if _is_slow(options.link) else QUERIES
    found = measuring(ready, noise(count, case.shape, seed=0), options)
    return Observation(case, query(ready.program, options, ready), found.costs, found.disturbed)


@dataclasses.dataclass(frozen=True)
class Measured:
    """others: share of the cores that other processes had meanwhile; pace: seconds that a fixed piece of work took
    right before or after, of the fewest that it ever took. disturbed: what was measured, and is not taken."""

    costs: Costs
    others: float
    pace: float
    disturbed: tuple[Costs, ...] = ()

    @property
    def disturbance(self) -> float:
        """1 where as much as may be."""
        return max(self.others / OTHERS, (self.pace - 1) / SLOWER)


class Undisturbed:
    """Measures a program, at most `TRIES` times, until nothing else had much of the machine: what others have of a
    processor that is shared by several machines, only its pace tells. The least disturbed counts."""

    def __init__(self, parties: Parties) -> None:
        self.parties, self._fastest = parties, machine.pace()

    def __call__(self, lowered: Lowered, images: Tensor, options: Options) -> Measured:
        found: list[Measured] = []
        while len(found) < TRIES and not any(each.disturbance <= 1 for each in found):
            found.append(self._once(lowered, images, options))
        best, *others = sorted(found, key=lambda each: each.disturbance)
        return dataclasses.replace(best, disturbed=tuple(each.costs for each in others))

    def _once(self, lowered: Lowered, images: Tensor, options: Options) -> Measured:
        before, start, whole, own = machine.pace(), time.monotonic(), machine.worked(), self._own()
        costs = Delphi().measure(self.parties, lowered, images, options).costs
        own, whole = self._own() - own, machine.worked() - whole
        others = max(0.0, whole - own) / (time.monotonic() - start) / machine.cores()
        after = machine.pace()
        self._fastest = min(self._fastest, before, after)
        return Measured(costs, others, max(before, after) / self._fastest)

    def _own(self) -> float:
        return machine.worked_by((os.getpid(), *self.parties.ids))
