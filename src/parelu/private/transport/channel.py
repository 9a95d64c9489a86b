"""All input and output between the parties: framed messages.

A message is a 16-byte header (kind, number in its direction, length) and a body. Both parties know from the program
which message comes next and how long it is; any other header ends the connection, before a byte of its body is read.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError, UserError
from parelu.private.crypto.ring import Elements
from parelu.private.transport import patience, tls
from parelu.private.transport.link import Socket
from parelu.private.transport.traffic import Meter, Traffic

HEADER = struct.Struct("<4sIQ")  # kind, number, length
TIMEOUT = 60.0  # seconds of silence
SMALL = 1 << 16  # bytes: parts up to this size are sent together
FAIL, LONGEST_REASON = b"fail", 300
LINGER, QUIET = 10.0, 1.0  # seconds that a party that failed reads on: in all, and without a byte


class Before(NamedTuple):
    """Messages of a kind and length; heard: is given the body of each."""

    kind: str
    length: int
    heard: Callable[[bytes], None]


class Channel:
    """One end of a connection. Not for two threads at once. Its meter counts the bytes, headers included."""

    def __init__(self, connection: Socket, timeout: float = TIMEOUT) -> None:
        self.socket, self.timeout, self.meter = connection, timeout, Meter()
        self._numbers = [0, 0]  # of the next message sent, received
        self._open = 0  # bytes of the announced message that are still to be sent
        self._waiting = bytearray()
        connection.settimeout(timeout)

    @property
    def traffic(self) -> dict[tuple[str, str], Traffic]:
        """(phase, layer) → what passed."""
        return self.meter.traffic

    def measured(self, phase: str, layer: str) -> contextlib.AbstractContextManager[None]:
        """Count for this phase and layer."""
        return self.meter.measured(phase, layer)

    def send(self, kind: str, *parts: Any) -> None:
        """Send one message: the parts, arrays or bytes, one after another."""
        bodies = [_bytes(part) for part in parts]
        self.announce(kind, sum(map(len, bodies)))
        for body in bodies:
            self.send_part(body)

    def announce(self, kind: str, length: int) -> None:
        """Send the header of a message whose body follows by `send_part`."""
        assert not self._open, f"{self._open} bytes of the last message were not sent"
        self.meter.turn(sending=True)
        header = HEADER.pack(kind.encode().ljust(4), self._numbers[0], length)
        self._numbers[0] += 1
        self._open = length
        self._waiting += header
        self.meter.now.sent += len(header)
        self._flush()

    def send_part(self, part: Any) -> None:
        """Send the next bytes of the announced body."""
        body = _bytes(part)
        assert len(body) <= self._open, "more than was announced"
        self._open -= len(body)
        self.meter.now.sent += len(body)
        if len(body) > SMALL:
            self._flush(force=True)
            self._send(body)
        else:
            self._waiting += body
            self._flush()

    def receive(self, kind: str, length: int) -> NDArray[np.uint8]:
        """The body of the next message, which has this kind and exactly this length."""
        self.expect(kind, length)
        return self.receive_part(length)

    def receive_up_to(self, kind: str, largest: int, before: Before | None = None) -> bytes:
        """The body of the next message, which has this kind and at most this length.

        before: what may come any number of times before it.
        """
        header = self._header()
        while before and header[0] == before.kind.encode().ljust(4):
            before.heard(self.receive_part(self._checked(header, before.kind, before.length, 0)).tobytes())
            header = self._header()
        return self.receive_part(self._checked(header, kind, None, largest)).tobytes()

    def expect(self, kind: str, length: int | None, largest: int = 0) -> int:
        """Read and check a header; the body follows by `receive_part`. Returns its length."""
        return self._checked(self._header(), kind, length, largest)

    def _header(self) -> tuple[bytes, int, int]:
        """(kind, number, length) of the next message; raises ProtocolError where it says why the peer ends."""
        self.meter.turn(sending=False)
        header = self._receive(HEADER.size)
        tls.check_is_plain(header)
        got, number, size = HEADER.unpack(header)
        self.meter.now.received += HEADER.size
        if got == FAIL and size <= LONGEST_REASON:
            reason = self._receive(size).decode("utf-8", "replace")
            raise ProtocolError("the peer ended the connection: " + "".join(c for c in reason if c.isprintable()))
        return got, number, size

    def _checked(self, header: tuple[bytes, int, int], kind: str, length: int | None, largest: int) -> int:
        got, number, size = header
        wanted = f"message {self._numbers[1]}, {kind!r}"
        if got != kind.encode().ljust(4) or number != self._numbers[1]:
            name = got.decode("ascii", "replace").strip()
            raise ProtocolError(f"{wanted} was due, message {number}, {name!r} came: out of order, replayed or forged")
        if (length is not None and size != length) or (length is None and size > largest):
            due = f"{length}" if length is not None else f"at most {largest}"
            raise ProtocolError(f"{wanted} has {size} bytes, not {due}")
        self._numbers[1] += 1
        return size

    def receive_part(self, length: int) -> NDArray[np.uint8]:
        """The next bytes of a body whose header was expected."""
        body = self._receive(length)
        self.meter.now.received += length
        return np.frombuffer(body, np.uint8)

    def fail(self, reason: str) -> None:
        """Tell the peer in one line why the connection ends, if it can still be told; nothing can be sent after it.

        What the peer is still sending is read and dropped: to close before would reset the connection, and the
        reason would be lost on the way.
        """
        body = reason.encode()[:LONGEST_REASON]
        with contextlib.suppress(OSError):
            self.socket.settimeout(QUIET)
            self.socket.sendall(HEADER.pack(FAIL, 0, len(body)) + body)
            self.socket.shutdown(socket.SHUT_WR)
            dropped, end = bytearray(SMALL), time.monotonic() + LINGER
            while time.monotonic() < end and self.socket.recv_into(dropped):
                pass

    def ended(self) -> str:
        """Why the peer has ended the connection while this side was to speak; "" where it has not."""
        if not isinstance(self.socket, socket.socket) or not patience.has_come(self.socket):
            return ""
        try:
            self.expect("none", 0)
        except ProtocolError as error:
            return str(error)
        return "the peer spoke out of turn"

    def close(self) -> None:
        """Close the connection; safe to call again."""
        with contextlib.suppress(OSError):
            self.socket.close()

    def _flush(self, *, force: bool = False) -> None:
        """Send what waits: small parts go together, the last of a message at once."""
        if self._waiting and (force or not self._open or len(self._waiting) > SMALL):
            waiting, self._waiting = self._waiting, bytearray()  # also where it cannot be sent
            self._send(waiting)

    def _send(self, data: Any) -> None:
        try:
            if isinstance(self.socket, socket.socket):
                patience.send_all(self.socket, memoryview(data), self.timeout)
            else:
                self.socket.sendall(data)
        except TimeoutError:
            raise ProtocolError(f"the peer took nothing for {self.timeout:g} seconds") from None
        except OSError as error:
            raise ProtocolError(f"the connection broke while sending ({tls.reason(error)})") from error

    def _receive(self, length: int) -> bytearray:
        try:
            return patience.receive_all(self.socket, length, self.timeout)
        except patience.TooSlow as error:
            raise ProtocolError(
                f"the peer sent {error}; {patience.LEAST_RATE:g} bytes a second are the least"
            ) from None
        except TimeoutError:
            raise ProtocolError(f"the peer was silent for {self.timeout:g} seconds") from None
        except patience.Ended as error:
            tls.check_is_plain(error.before)
            raise ProtocolError("the peer closed the connection in the middle of the protocol") from None
        except OSError as error:
            raise ProtocolError(f"the connection broke while receiving ({tls.reason(error)})") from error


def _bytes(part: Any) -> memoryview:
    if isinstance(part, np.ndarray):
        part = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    return memoryview(part).cast("B")


def elements_of(body: NDArray[np.uint8]) -> Elements:
    """Elements of a body, 8 bytes each, little-endian: every body of a whole number of them is one."""
    return body.view(np.uint64)


def bits_of(body: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """`count` packed bits of a body; raises ProtocolError where the padding is not zero."""
    bits = np.unpackbits(body, bitorder="little")
    if len(body) != -(-count // 8) or bits[count:].any():
        raise ProtocolError(f"a body is not {count} bits")
    return bits[:count]


def pack_bits(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `bits_of`."""
    return np.packbits(bits, bitorder="little")


def tcp(connection: socket.socket) -> socket.socket:
    """A connected TCP socket set up for small messages that wait for an answer, and for long silence."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    patience.keep_alive(connection)
    return connection


def connect(host: str, port: int, timeout: float = 10.0) -> socket.socket:
    """Connect; raises UserError where nobody answers."""
    try:
        return tcp(socket.create_connection((host, port), timeout))
    except (OSError, OverflowError) as error:
        raise UserError(f"{address_text(host, port)}: {error}; is `parelu serve` running there?") from error


def address_text(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
