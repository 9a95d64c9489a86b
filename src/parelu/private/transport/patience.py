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

from parelu.private.transport.link import Socket

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


class Waits:
    """The waits for one step of the peer. `on` after each timeout: whether to wait once more.

    What this side has sent may still be on its way, for minutes on a slow link: the system reports room only when much
    of its buffer is empty, and a peer that is still being sent to has nothing to answer. What the system still holds
    tells that from silence.
    """

    def __init__(self, connection: object, timeout: float) -> None:
        self._connection, self._timeout, self._held = connection, timeout, None

    def on(self) -> bool:
        before, self._held = self._held, held(self._connection)
        if before is None or not self._held:  # what was left has arrived since: the peer may have begun only now
            return bool(self._held or before)
        return before - self._held >= LEAST_RATE * self._timeout


def held(connection: object) -> int:
    """Bytes that were handed to the system and are not yet acknowledged; 0 where it does not tell."""
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return 0


def send_all(connection: socket.socket, data: memoryview, timeout: float) -> None:
    """Send all of it, however long the link takes; raises TimeoutError where the peer takes nothing for a while."""
    waits = Waits(connection, timeout)
    while data:
        try:
            sent = connection.send(data[:PIECE])
        except TimeoutError:
            if not waits.on():
                raise
        else:
            data, waits = data[sent:], Waits(connection, timeout)


def receive_all(connection: Socket, length: int, timeout: float) -> bytearray:
    """Exactly `length` bytes; memory grows as they come, not as a header claims.

    Raises TimeoutError for silence, TooSlow, and Ended.
    """
    body, got, started, waits = bytearray(min(length, 1 << 24)), 0, time.monotonic(), Waits(connection, timeout)
    while got < length:
        if got == len(body):
            body.extend(bytes(min(length - got, len(body))))
        try:
            count = connection.recv_into(memoryview(body)[got:])
        except TimeoutError:
            if not waits.on():
                raise
            started = time.monotonic()
            continue
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
