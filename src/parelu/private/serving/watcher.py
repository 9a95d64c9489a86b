"""What a server tells of its work to whoever counts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from parelu.private.transport.traffic import Traffic

Traffics = Mapping[tuple[str, str], Traffic]
# How a connection ended: as it should; without a word; in TLS; as there was no turn; as this client may not; as the
# protocol was broken, or the connection; cut by this server's end; by a fault of this program.
SERVED, PROBE, TLS, BUSY, REFUSED, PROTOCOL, CUT, INTERNAL = ENDS = (
    "served",
    "probe",
    "tls",
    "busy",
    "refused",
    "protocol",
    "cut",
    "internal",
)


@dataclasses.dataclass(frozen=True)
class Standing:
    """Of one process, now. prepared: inferences made ahead in memory, by model; material: those that wait in
    sessions."""

    clients: int
    waiting: int
    material: int
    prepared: Mapping[str, int]


class Watcher:
    """Is told, from the threads of the connections, and does nothing with it.

    model: the name that it is served by, "" for one that has none. seconds: as the server's clock has them, the
    client's share of the work and the link among them.
    """

    def ended(self, how: str) -> None:
        """A connection, one of `ENDS`."""

    def prepared(self, model: str, seconds: float) -> None:
        """The offline phase of one inference is done."""

    def inferred(self, model: str, count: int, seconds: float) -> None:
        """The online phase of so many inferences together is done."""

    def passed(self, model: str, traffic: Traffics) -> None:
        """What passed since the last query: after each, and when the connection ends."""


NOBODY = Watcher()
