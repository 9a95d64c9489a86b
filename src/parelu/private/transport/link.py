"""Links to measure on: a socket that delivers as a link of some bandwidth and delay between two machines would."""

from __future__ import annotations

import dataclasses
import struct
import time
from typing import Any, Protocol

PARCEL = struct.Struct("<dQ")  # when its bytes were sent, and how many they are
TOGETHER = 1 << 16  # bytes of a parcel, up to which it is sent in one piece


@dataclasses.dataclass(frozen=True)
class Link:
    """bandwidth: bits a second each way, 0 for no limit; round_trip: seconds."""

    bandwidth: float = 0.0
    round_trip: float = 0.0


LINKS = {"loopback": Link(), "lan": Link(1e9, 0.5e-3), "wan": Link(100e6, 40e-3)}


class Socket(Protocol):
    """What is used of a plain or a TLS socket."""

    def sendall(self, data: Any, /) -> None: ...
    def recv_into(self, buffer: Any, /) -> int: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


def shaped(connection: Socket, link: Link) -> Socket:
    """The connection as over this link, where both ends are shaped alike on one machine, whose clock they compare."""
    return connection if link == Link() else Shaped(connection, link)


class Shaped:
    """A socket behind a link. What one `sendall` carries is a parcel; parcels pass the link one after another.

    A parcel arrives half a round trip after its last bit went onto the link, which is free again then.
    """

    def __init__(self, connection: Socket, link: Link) -> None:
        self.connection, self.link = connection, link
        self._timeout: float | None = None
        self._free = 0.0  # when the link has taken all that it was given
        self._left = 0  # bytes of the parcel that is being received

    def sendall(self, data: Any, /) -> None:
        view = memoryview(data).cast("B")
        head = PARCEL.pack(time.monotonic(), len(view))
        if len(view) <= TOGETHER:
            self.connection.sendall(head + view)
        else:
            self.connection.sendall(head)
            self.connection.sendall(view)

    def recv_into(self, buffer: Any, /) -> int:
        if not self._left and not self._await_parcel():
            return 0
        count = self.connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count

    def settimeout(self, seconds: float | None, /) -> None:
        self._timeout = seconds
        self.connection.settimeout(seconds)

    def shutdown(self, how: int, /) -> None:
        self.connection.shutdown(how)

    def close(self) -> None:
        self.connection.close()

    def _await_parcel(self) -> bool:
        """Read the next parcel's head and wait until the link has delivered it; False where the peer closed."""
        head, got = bytearray(PARCEL.size), 0
        while got < PARCEL.size:
            count = self.connection.recv_into(memoryview(head)[got:])
            if not count:
                return False
            got += count
        sent, self._left = PARCEL.unpack(head)
        now = time.monotonic()
        taken = 8 * self._left / self.link.bandwidth if self.link.bandwidth else 0.0
        self._free = max(min(sent, now), self._free) + taken
        wait = self._free + self.link.round_trip / 2 - now
        if wait > 0:
            time.sleep(wait if self._timeout is None else min(wait, self._timeout))
        return True
