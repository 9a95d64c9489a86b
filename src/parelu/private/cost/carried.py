"""What messages are to a party that receives them: bytes to copy, and a sleep before each that a link delays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from parelu.private.cost.traffic import LayerTraffic
from parelu.private.cost.work import ALL, Work
from parelu.private.offline.mode import Features
from parelu.private.transport.link import Link

WOKEN = "round after a sleep"
WARM = 3e-3  # seconds of sleep after which half of its cost is due
LONG = 1 << 24  # bytes of a message up to which memory for it is taken at once (`transport.channel`)


def carried(does: Sequence[Work], sent: Sequence[LayerTraffic], link: Link) -> list[Work]:
    """With what each party receives, and what it takes longer for after it has slept: its caches and its core have
    cooled down by then."""
    layers = {(each.phase, each.layer): [each] for each in sent}
    found = []
    for each in does:
        key = each.phase, each.layer
        own = [one for one in sent if one.phase == each.phase] if each.layer == ALL else layers.get(key, [])
        slept = {WOKEN: woken(link, sum(one.waits for one in own))}
        client = {**each.client, **_received([one.to_client for one in own], link), **slept}
        server = {**each.server, **_received([one.to_server for one in own], link), **slept}
        found.append(dataclasses.replace(each, client=client, server=server))
    return found


def woken(link: Link, waits: int) -> float:
    """Of so many round trips, how many a party has slept through: those of a short one are hardly a sleep."""
    return waits * link.round_trip / (link.round_trip + WARM)


def _received(counts: Sequence[int], link: Link) -> Features:
    """counts: bytes."""
    whole, long = sum(counts), sum(max(0, count - LONG) for count in counts)
    return {"byte": whole, "byte of a long message": long, "byte over a link": whole if link.bandwidth else 0}
