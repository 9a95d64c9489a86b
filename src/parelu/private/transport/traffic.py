"""What passes between the parties, and the time that goes by, for each phase and layer."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass
class Traffic:
    """What passed in one phase and layer. seconds: wall; cpu: of this process; turns: changes from sending to
    receiving and back."""

    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    turns: int = 0


class Meter:
    """Counts for whatever phase and layer is open.

    Attributes:
        traffic: (phase, layer) → what passed while `measured(phase, layer)` was open.
    """

    def __init__(self) -> None:
        self.traffic: dict[tuple[str, str], Traffic] = {}
        self.now = Traffic()
        self._clock = time.perf_counter(), time.process_time()
        self._is_sending: bool | None = None

    @contextlib.contextmanager
    def measured(self, phase: str, layer: str) -> Iterator[None]:
        """Count what passes, and the time, for this phase and layer; an outer layer's clock stands still."""
        outer = self.now
        self._count_time()
        self.now = self.traffic.setdefault((phase, layer), Traffic())
        try:
            yield
        finally:
            self._count_time()
            self.now = outer

    def turn(self, *, sending: bool) -> None:
        """A message begins in this direction."""
        if sending != self._is_sending:
            self._is_sending = sending
            self.now.turns += 1

    def _count_time(self) -> None:
        clock = time.perf_counter(), time.process_time()
        self.now.seconds += clock[0] - self._clock[0]
        self.now.cpu += clock[1] - self._clock[1]
        self._clock = clock
