"""How long the client waits, of what both parties do: where one waits for the other, and where both work.

Online in the round of an activation the server opens, the client answers and the server closes; meanwhile the server
applies what it can of the next layer. Offline both walk the program, each ahead of the other where it can; a dealer
makes all of it first. All else the client waits for, and in each step for the other's process to wake up, longer where
a link has let it sleep.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from parelu.private.cost.carried import WOKEN, woken
from parelu.private.cost.fit import Fit
from parelu.private.cost.work import RELUS, Work
from parelu.private.offline.mode import Features
from parelu.private.transport.link import Link

WAITED = "waited for"  # seconds that the client waits for as they are
STEP = "step"
LINK = "beside the link"  # the share of the shorter, of work and of bytes on the link, that is not hidden by the longer


class Busy(NamedTuple):
    """CPU seconds of each party in one layer, and bytes that it is sent there; waits: round trips that the client waits
    for in it."""

    work: Work
    client: float
    server: float
    to_client: float = 0.0
    to_server: float = 0.0
    waits: int = 0

    @property
    def bytes(self) -> float:
        """Both ways."""
        return self.to_client + self.to_server


class Step(NamedTuple):
    """What the client waits for in one layer.

    before: seconds of work, by what they are fitted on; during: of what goes on while bytes are on the link; beside:
    the server's seconds meanwhile, waited for only where they are longer than all of the latter.
    """

    layer: Busy
    before: Features
    during: Features
    beside: float = 0.0

    @property
    def at_once(self) -> Features:
        """All of it, where there is no link."""
        longer = max(self.during.get(WAITED, 0.0), self.beside)
        return summed([self.before, {**self.during, **({WAITED: longer} if longer else {})}])


def steps(layers: Sequence[Busy], how: Mapping[str, str]) -> list[Step]:
    """how: phase, or the ReLUs of one, → offline mode or ReLU protocol, by which differs what is hidden."""
    beside: defaultdict[str, float] = defaultdict(float)
    for each in layers:
        if each.work.beside:
            beside[each.work.beside] += each.server
    return [_step(each, named(each.work, how), beside[each.work.layer]) for each in layers if not each.work.beside]


def named(work: Work, how: Mapping[str, str]) -> str:
    return how[work.layer] if work.layer == RELUS else how[work.phase]


def _step(layer: Busy, how: str, beside: float) -> Step:
    shorter, longer = sorted((layer.client, layer.server))
    if not layer.work.together:
        return Step(layer, {STEP: 1.0, WAITED: layer.server}, {WAITED: layer.client})
    if layer.work.phase == "online":
        return Step(layer, {STEP: 1.0, f"server, {how}": layer.server}, {WAITED: layer.client}, beside)
    if layer.work.layer == RELUS:
        return Step(layer, {WAITED: longer, f"shorter, {how}": shorter}, {})
    return Step(layer, {STEP: 1.0}, {f"longer, {how}": longer, f"shorter, {how}": shorter})


def parts(
    layers: Sequence[Busy], how: Mapping[str, str], fit: Fit, link: Link, waits: int, slower: float = 1.0
) -> tuple[float, dict[str, float]]:
    """(seconds of what takes longer, of what goes on meanwhile, by name, with the rounds that a party has slept
    through): in each step work or the link. waits: of the phase; slower: times that all work takes, but not the link.
    """
    longer, shorter = 0.0, defaultdict[str, float](float, {WOKEN: slower * woken(link, waits)})
    for step in steps(layers, how):
        work, bytes_ = slower * fit.seconds(step.during), over(link, step.layer.bytes)
        waited = max(slower * step.beside, max(work, bytes_) + step.layer.waits * link.round_trip)
        longer += slower * fit.seconds(step.before) + waited
        shorter[f"{LINK}, {named(step.layer.work, how)}"] += min(work, bytes_)
        waits -= step.layer.waits
    return longer + waits * link.round_trip, dict(shorter)


def seconds(
    layers: Sequence[Busy], how: Mapping[str, str], fit: Fit, link: Link, waits: int, slower: float = 1.0
) -> float:
    """That the client waits over a link; waits, slower: as `parts` takes them."""
    longer, shorter = parts(layers, how, fit, link, waits, slower)
    longer += fit.seconds({WOKEN: shorter.pop(WOKEN)})
    return longer + sum(fit.coefficients.get(name, 1.0) * each for name, each in shorter.items())


def over(link: Link, count: float, waits: int = 0) -> float:
    """Seconds that so many bytes and round trips take a link."""
    return (8 * count / link.bandwidth if link.bandwidth else 0.0) + waits * link.round_trip


def summed(features: Sequence[Features]) -> Mapping[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for each in features:
        for name, amount in each.items():
            total[name] += amount
    return total
