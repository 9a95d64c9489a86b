"""The connections of a server, as far as each has come, and which of them an end of the server would cut."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

from parelu.errors import ProtocolError
from parelu.private.transport import patience

HELD = 10  # times the timeout, that a client with prepared inferences may be silent
GRACE = 1.0  # seconds that a client may take between two queries while the server drains
LOOK = 0.1  # seconds between two looks at what is left


class Stopped(ProtocolError):
    """The server stops; the client has lost nothing."""


@dataclasses.dataclass(eq=False)
class Connection:
    """One client's.

    number: of it, in this process; client: the name in its certificate, model: that it asks for, served: what it is
    served, when they are known.
    is_session: whether it has a turn; prepared: inferences whose material waits in it; is_idle: whether it is between
    two commands.
    """

    number: int
    peer: str
    socket: socket.socket
    client: str = ""
    model: str = ""
    served: object = None
    is_session: bool = False
    is_idle: bool = False
    prepared: int = 0

    def __str__(self) -> str:
        doing = f"{self.prepared} inferences prepared" if self.is_idle else "in the middle of a command"
        return f"{self.peer} {self.client}".strip() + f", {doing}"


class Connections:
    """All of a process, and the word for all of them that the server stops."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._there: dict[Connection, threading.Thread] = {}
        self._left: list[tuple[object, Callable[[], None]]] = []
        self._changed = threading.Condition()
        self._woken, self._wake = socket.socketpair()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._there)

    @property
    def there(self) -> list[Connection]:
        with self._changed:
            return list(self._there)

    @property
    def sessions(self) -> list[Connection]:
        return [connection for connection in self.there if connection.is_session]

    @property
    def woken(self) -> socket.socket:
        """Readable from when the server stops."""
        return self._woken

    @contextlib.contextmanager
    def open(self, connection: socket.socket, peer: str) -> Iterator[Connection]:
        """Of the thread that calls; the socket is closed at the end."""
        new = Connection(next(self._numbers), peer, connection)
        with self._changed:
            self._there[new] = threading.current_thread()
        try:
            yield new
        finally:
            with contextlib.suppress(OSError):
                new.socket.close()
            with self._changed:
                del self._there[new]
                self._changed.notify_all()
            self._close_left()

    def await_command(
        self,
        connection: Connection,
        prepared: int,
        timeout: float,
        is_wanted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Until the client's next command comes.

        A client that has prepared something may be silent HELD times as long, as it may have no image yet, but for when
        others wait for its turn: is_wanted.

        Raises ProtocolError where the client is silent, Stopped where the server stops and the client has nothing
        to lose.
        """
        connection.prepared, connection.is_idle = prepared, True
        try:
            since, waits = time.monotonic(), patience.Waits(connection.socket, timeout)
            while not readable(connection.socket, timeout, self._woken):
                if self.is_draining:
                    break
                if waits.on():  # what was sent to it is on its way
                    since = time.monotonic()
                    continue
                allowed = timeout * (HELD if prepared and not is_wanted() else 1)
                if time.monotonic() - since >= allowed:
                    raise ProtocolError(f"the peer was silent for {allowed:g} seconds")
            else:
                return
            if not readable(connection.socket, timeout if prepared else GRACE):
                raise Stopped("the server stops; connect again")
        finally:
            connection.is_idle = False

    def drain(self) -> None:
        """Tell all sessions: those that have nothing to lose end, and no other begins. Safe to call again."""
        if not self.is_draining:
            self.is_draining = True
            self._wake.send(b"!")

    def wait(self, timeout: float, hurry: threading.Event) -> bool:
        """Until no session is left."""
        end = time.monotonic() + timeout
        while (left := bool(self.sessions)) and time.monotonic() < end and not hurry.is_set():
            with self._changed:
                self._changed.wait(LOOK)
        return not left

    def when_left(self, served: object, close: Callable[[], None]) -> None:
        """Call it when no connection is served this any more."""
        with self._changed:
            self._left.append((served, close))
        self._close_left()

    def _close_left(self) -> None:
        with self._changed:
            used = {id(connection.served) for connection in self._there}
            closing = [close for served, close in self._left if id(served) not in used]
            self._left = [(served, close) for served, close in self._left if id(served) in used]
        for close in closing:
            close()

    def cut(self) -> None:
        """End them all, and wait for their threads."""
        with self._changed:
            there = dict(self._there)
        for connection in there:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread in there.values():
            thread.join()

    def close(self) -> None:
        self._woken.close()
        self._wake.close()


def readable(connection: socket.socket, timeout: float, *others: socket.socket) -> bool:
    """Whether the connection has something to read within so many seconds, and before one of the others has."""
    pending = getattr(connection, "pending", None)
    if pending and pending():
        return True
    poll = select.poll()
    for one in (connection, *others):
        poll.register(one, select.POLLIN)
    found = poll.poll(1000 * timeout)
    return any(number == connection.fileno() for number, _ in found)
