"""Silence ends a connection, slowness does not: what a peer must move in a while, and how it is seen to move.

A peer may be silent for a connection's timeout. Beyond that a message must come, and be taken, at LEAST_RATE: a byte
now and then is neither silence nor a link.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable

LEAST_RATE = 100.0  # bytes a second; a modem of 1,200 baud has more
PIECE = 1 << 18  # bytes that are handed to the system at once
ALIVE = 60, 15, 4  # seconds without a byte, between questions, and questions, until a host that is gone is noticed


class TooSlow(TimeoutError):
    """The peer sends, but less than LEAST_RATE: its message says how much, in what time."""


class Ended(Exception):
    """The peer closed the connection. before: what came of the message until then."""

    def __init__(self, before: bytes) -> None:
        self.before = before


def keep_alive(connection: socket.socket) -> None:
    """Let the system ask whether the peer's host is there, where a side may be silent for long."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), ALIVE, strict=True):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send_all(connection: socket.socket, data: memoryview, timeout: float) -> None:
    """Send all of it, however long the link takes; raises TimeoutError where the peer takes nothing for a while.

    The system says that there is room again only when much of what waits is gone, which a slow link may not manage
    within the timeout: what it still holds is what tells silence from slowness.
    """
    queued = None
    while data:
        try:
            sent = connection.send(data[:PIECE])
        except TimeoutError:
            before, queued = queued, waiting(connection)
            if before is not None and before - queued < LEAST_RATE * timeout:
                raise
        else:
            data, queued = data[sent:], None


def waiting(connection: socket.socket) -> int:
    """Bytes that were handed to the system and are not yet acknowledged; 0 where it does not tell."""
    with contextlib.suppress(OSError):
        return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return 0


def receive_all(receive: Callable[[memoryview], int], length: int, timeout: float) -> bytearray:
    """Exactly `length` bytes; memory grows as they come, not as a header claims.

    receive: as `socket.recv_into`. Raises TooSlow, and Ended.
    """
    body, got, started = bytearray(min(length, 1 << 24)), 0, time.monotonic()
    while got < length:
        if got == len(body):
            body.extend(bytes(min(length - got, len(body))))
        count = receive(memoryview(body)[got:])
        if not count:
            raise Ended(bytes(body[:got]))
        got += count
        if got < length and time.monotonic() - started > timeout + got / LEAST_RATE:
            raise TooSlow(f"{got} bytes in {time.monotonic() - started:.0f} seconds")
    return body


def has_come(connection: socket.socket) -> bool:
    """Whether there is something to read, or the peer has closed the connection."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
