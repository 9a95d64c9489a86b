"""Both parties on this machine: a process that has the networks, and a connection to each, which is watched."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu import api, client
from parelu.errors import ProtocolError, UserError
from parelu.private.transport.channel import HEADER
from parelu.private.transport.link import Link, Socket
from parelu.private.transport.traffic import Meter, Traffic

HOST = "127.0.0.1"
REVEAL = "logits"  # in steps; so that the page can show how sure a network is
QUERIES = 100  # that somebody may ask
IDLE = 86_400.0  # seconds that a person may think about the next image, while the connections wait
START = 300.0  # seconds that the server's process may take until it listens

Told = Callable[[str, str, Traffic], None]  # of a phase and layer, what passed so far


class ServerProcess:
    """A process that serves networks, each at a port of its own, until it is closed or this process ends.

    Attributes:
        places: a network's key → its port and pin.
    """

    def __init__(self, folders: Mapping[str, Path], certificates: Path, link: Link) -> None:
        """folders: of the candidates, which may be written to.

        Raises UserError where one of them cannot be served.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, dict(folders), certificates, link), daemon=True)
        self._process.start()
        theirs.close()
        try:
            answer = self._pipe.recv() if self._pipe.poll(START) else f"does not answer for {START:g} seconds"
        except EOFError:
            answer = "ended before it listened"
        if isinstance(answer, str):
            self.close()
            raise UserError(f"the server's process: {answer}")
        self.places: dict[str, tuple[int, str]] = answer

    def close(self) -> None:
        """End the process; safe to call again."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _main(*arguments: Any) -> None:
    """The server's process. An interrupt at a terminal reaches both, and the client's then closes this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(*arguments)


def _serve(pipe: Connection, folders: dict[str, Path], certificates: Path, link: Link) -> None:
    """Until the other end of the pipe is closed, if only because its process died."""
    options = api.ServerOptions(budget=0, link=link, timeout=IDLE)
    try:
        servers = {
            key: api.serve(folder, host=HOST, port=0, certificates=certificates, options=options, reveal=REVEAL)
            for key, folder in folders.items()
        }
    except UserError as error:
        pipe.send(str(error))
        return
    for server in servers.values():
        threading.Thread(target=server.run, daemon=True).start()
    pipe.send({key: (server.port, server.offer.pin) for key, server in servers.items()})
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    for server in servers.values():
        server.close()


class _Watched(Meter):
    """A meter that tells of each part when it has been measured."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    @contextlib.contextmanager
    def measured(self, phase: str, layer: str) -> Iterator[None]:
        with super().measured(phase, layer):
            yield
        self._told(phase, layer, self.traffic[phase, layer])


class _Tapped:
    """A socket that keeps what is sent, before TLS encrypts it."""

    def __init__(self, connection: Socket) -> None:
        self.sent = bytearray()
        self._connection = connection
        self.recv_into, self.settimeout = connection.recv_into, connection.settimeout
        self.shutdown, self.close = connection.shutdown, connection.close

    def sendall(self, data: Any, /) -> None:
        self.sent += data
        self._connection.sendall(data)


@dataclasses.dataclass(frozen=True)
class Passed:
    """In one phase. seconds: wall; bytes: both ways; turns: changes of direction."""

    seconds: float
    bytes: int
    turns: int


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What an inference gave. online: what it took.

    logits: float64 (classes,), as they are revealed. received: all that the server was sent of the image, the body of
    one message.
    """

    logits: NDArray[np.float64]
    online: Passed
    received: bytes


class Client:
    """A connection to one network of a `ServerProcess`.

    Attributes:
        program: its ops, with the ReLUs of each layer.
    """

    def __init__(self, place: tuple[int, str], certificates: Path, hints: Path, link: Link, told: Told) -> None:
        """hints: a folder, where they are kept."""
        port, pin = place
        self._client = client.Client(HOST, port, certificates, pin, keep=client.Keep(QUERIES, hints), link=link)
        self.program = self._client.program
        self._channel = self._client.session.channel
        self._channel.meter = _Watched(told)

    @property
    def trust(self) -> str:
        """Whom privacy rests on, in words."""
        session = self._client.session
        return session.mode.trust(session.terms.relu)

    def prepare(self) -> Passed:
        """The offline phase of one inference."""
        with self._passed("offline") as passed:
            self._client.prepare()
        return passed()

    def ask(self, image: NDArray[np.uint8]) -> Answer:
        """The online phase. image: (C, H, W) of the data set's size. Raises ProtocolError where the server fails."""
        plain = self._channel.socket
        tap = self._channel.socket = _Tapped(plain)
        try:
            with self._passed("online") as passed:
                (logits,) = self._client.predict(image[None])
        finally:
            self._channel.socket = plain
        return Answer(np.asarray(logits, np.float64), passed(), _body(bytes(tap.sent), b"inpt"))

    @contextlib.contextmanager
    def _passed(self, phase: str) -> Iterator[Callable[[], Passed]]:
        """Gives what says, at its end, what passed in it."""
        self._channel.traffic.clear()
        started, found = time.perf_counter(), []
        yield lambda: found[0]
        seconds = time.perf_counter() - started
        parts = [traffic for (name, _), traffic in self._channel.traffic.items() if name == phase]
        found.append(Passed(seconds, sum(p.sent + p.received for p in parts), sum(p.turns for p in parts)))

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _body(sent: bytes, wanted: bytes) -> bytes:
    """The body of the first message of a kind in what was sent, headers and bodies."""
    start = 0
    while start < len(sent):
        kind, _, length = HEADER.unpack_from(sent, start)
        start += HEADER.size
        if kind == wanted:
            return sent[start : start + length]
        start += length
    raise ProtocolError(f"no message {wanted!r} was sent")
