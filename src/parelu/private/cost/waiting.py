"""How long the client waits, of what both parties do: where one waits for the other, and where both work.

Online an activation's round has both at work: the server sends its message in parts while the client reads them, and
applies what it can of the next layer while the client answers. All else the client waits for. Offline both walk the
program, each ahead of the other where it can.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from parelu.private.cost.fit import Fit
from parelu.private.cost.work import Work
from parelu.private.offline.mode import Features
from parelu.private.transport.link import Link

LINK = "beside the link"  # the share of the shorter, of work and of bytes on the link, that is not hidden by the longer


class Busy(NamedTuple):
    """CPU seconds of each party in one layer, and bytes that it is sent there."""

    work: Work
    client: float
    server: float
    to_client: float = 0.0
    to_server: float = 0.0


def steps(layers: Sequence[Busy], how: str) -> list[tuple[Busy, Features]]:
    """For each step what the seconds of it are fitted on. how: the offline mode or the ReLU protocol, by which
    differs what is hidden."""
    beside: defaultdict[str, float] = defaultdict(float)
    for each in layers:
        if each.work.beside:
            beside[each.work.beside] += each.server
    found = []
    for each in layers:
        if each.work.beside:
            continue
        client, server = each.client, each.server + beside[each.work.layer]
        if each.work.together:
            features = {"longer": max(client, server), f"shorter, {how}": min(client, server)}
        else:
            features = {"in turn": client + server}
        found.append((each, {f"{each.work.phase}: {name}": n for name, n in features.items()} | {"step": 1.0}))
    return found


def parts(layers: Sequence[Busy], how: str, fit: Fit, link: Link, rounds: float) -> tuple[float, float]:
    """(seconds of what takes longer, of what goes on meanwhile): in each step work or the link. Round trips are the
    former's."""
    longer, shorter = rounds * link.round_trip, 0.0
    for each, features in steps(layers, how):
        both = fit.seconds(features), over(link, each)
        longer, shorter = longer + max(both), shorter + min(both)
    return longer, shorter


def seconds(layers: Sequence[Busy], how: str, fit: Fit, link: Link, rounds: float) -> float:
    """That the client waits over a link; rounds: messages there and back."""
    longer, shorter = parts(layers, how, fit, link, rounds)
    return longer + fit.coefficients.get(LINK, 1.0) * shorter


def over(link: Link, each: Busy) -> float:
    """Seconds that a layer's bytes take the link."""
    return 8 * (each.to_client + each.to_server) / link.bandwidth if link.bandwidth else 0.0


def summed(features: Sequence[Features]) -> Mapping[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for name, amount in itertools.chain.from_iterable(each.items() for each in features):
        total[name] += amount
    return total
