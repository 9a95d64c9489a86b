"""Turns of clients: so many are served at once, the others wait in the order in which they came."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from parelu.errors import ProtocolError

WAITING = 64  # clients that may wait, of a process
TOLD = 5.0  # seconds after which one that waits is told its place again: shorter than a peer may be silent
LOOK = 0.2  # seconds between two looks at whether the server stops


class Busy(ProtocolError):
    """There was no turn."""


def _nothing(*_: object) -> None: ...


class Turns:
    """places: clients that are served at once."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken, self._waiting = 0, deque[object]()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextlib.contextmanager
    def turn(
        self, tell: Callable[[int], None] = _nothing, check: Callable[[], None] = _nothing, patience: float = 0.0
    ) -> Iterator[None]:
        """A place, for as long as the context is open.

        tell: is called with the number of those before, when it has changed and every few seconds; check: every moment;
        either raises what ends the waiting. patience: seconds, 0 for a client that does not wait.
        Raises Busy where the wait was too long, or too many wait.
        """
        self._await(tell, check, patience)
        try:
            yield
        finally:
            with self._changed:
                self._taken -= 1
                self._changed.notify_all()

    def _await(self, tell: Callable[[int], None], check: Callable[[], None], patience: float) -> None:
        own, end = object(), time.monotonic() + patience
        with self._changed:
            if self._take_if_free(None):
                return
            if not patience or len(self._waiting) >= WAITING:
                raise Busy(f"{self.places} clients are being served; try again later")
            self._waiting.append(own)
        try:
            self._wait(own, end, tell, check)
        finally:
            with self._changed:
                if own in self._waiting:
                    self._waiting.remove(own)
                self._changed.notify_all()

    def _wait(self, own: object, end: float, tell: Callable[[int], None], check: Callable[[], None]) -> None:
        told, at = -1, 0.0
        while True:
            with self._changed:
                if self._take_if_free(own):
                    return
                before = self._waiting.index(own)
            now = time.monotonic()
            if now >= end:
                raise Busy(f"{self.places} clients are being served, and yours waited its time; try again later")
            check()
            if before != told or now - at >= TOLD:
                tell(before)
                told, at = before, now
            with self._changed:
                if self._waiting[0] is not own or self._taken >= self.places:
                    self._changed.wait(min(LOOK, max(0.0, end - now)))

    def _take_if_free(self, own: object | None) -> bool:
        """Of a client that comes: where nobody waits; of the one that waits longest."""
        if self._taken >= self.places or (self._waiting and self._waiting[0] is not own):
            return False
        if own is not None:
            self._waiting.popleft()
        self._taken += 1
        return True
