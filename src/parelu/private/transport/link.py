"""Links to measure on: a socket that delivers as a link of some bandwidth and delay between two machines would."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import time
from collections.abc import Mapping
from typing import Any, Protocol

from parelu.errors import UserError

PARCEL = struct.Struct("<dQ")  # when its bytes were sent, and how many they are
TOGETHER = 1 << 16  # bytes of a parcel, up to which it is sent in one piece


@dataclasses.dataclass(frozen=True)
class Link:
    """bandwidth: bits a second each way, 0 for no limit; round_trip: seconds."""

    bandwidth: float = 0.0
    round_trip: float = 0.0

    def __str__(self) -> str:
        """What `link_of` reads."""
        known = {link: name for name, link in LINKS.items()}
        unit = max(
            (u for u in BANDWIDTHS if BANDWIDTHS[u] <= self.bandwidth), key=BANDWIDTHS.__getitem__, default="kb/s"
        )
        own = f"{self.bandwidth / BANDWIDTHS[unit]:.9g}{unit},{self.round_trip / TIMES['ms']:.9g}ms"
        return known.get(self, own)


LINKS = {"loopback": Link(), "lan": Link(1e9, 0.5e-3), "wan": Link(100e6, 40e-3)}
BANDWIDTHS = {"kb/s": 1e3, "Mb/s": 1e6, "Gb/s": 1e9}  # bits
TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
QUANTITY = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?) *(\S+)", re.IGNORECASE)
LONGEST = 10.0  # seconds of a round trip


def link_of(text: str) -> Link:
    """A link by its name, or by bandwidth and round trip as "8Gb/s,0.3ms".

    Raises:
        UserError: it is neither, or one of the two is not above zero.
    """
    if text in LINKS:
        return LINKS[text]
    parts = text.split(",")
    if len(parts) != 2:
        raise _refused(text, "it is no known one")
    bandwidth, round_trip = _quantity(text, parts[0], BANDWIDTHS), _quantity(text, parts[1], TIMES)
    if round_trip > LONGEST:
        raise _refused(text, f"its round trip is longer than {LONGEST:g} s")
    return Link(bandwidth, round_trip)


def _quantity(text: str, part: str, units: Mapping[str, float]) -> float:
    found = QUANTITY.fullmatch(part.strip())
    value = float(found[1]) * units.get(found[2], 0.0) if found else 0.0
    if not 0 < value < math.inf:
        raise _refused(text, f"{part.strip()!r} is no number above zero in {', '.join(units)}")
    return value


def _refused(text: str, why: str) -> UserError:
    return UserError(f"link {text!r}: {why}; give {', '.join(LINKS)}, or bandwidth and round trip as 8Gb/s,0.3ms")


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
