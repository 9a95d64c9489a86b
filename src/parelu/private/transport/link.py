"""Links to measure on: bandwidth and delay of a network between two machines."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Network:
    """bandwidth: bits a second each way, 0 for no limit; round_trip: seconds."""

    bandwidth: float = 0.0
    round_trip: float = 0.0


NETWORKS = {"loopback": Network(), "lan": Network(1e9, 0.5e-3), "wan": Network(100e6, 40e-3)}
