"""Whole sessions against a peer whose bytes are an honest party's, edited.

An honest session of each setting is recorded once in a process; either end then meets what the other one sent, with
edits. Its own randomness is fresh, so that answers are wrong; what counts is how it takes them.
"""

from __future__ import annotations

import dataclasses
import functools
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from two_parties import Residual, images_of, lowered_of, ready

from fuzz import edits
from parelu.private.lowering.encode import encode_images
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import REVEALS
from parelu.private.serving.session import Session, serve
from parelu.private.serving.stock import ClientStocks, ServerStocks
from parelu.private.transport.channel import HEADER, Channel

SHAPE, ROOM = (1, 6, 6), 3
GREETINGS = (("nonce", "pin", "stock"), ("nonce", "engine", "relu", "offline", "reveal", "digest", "room"))


@dataclasses.dataclass(frozen=True)
class Setting:
    offline: str
    relu: str
    reveal: str = "logits"
    stock: bool = False


SETTINGS = {
    "dealer_sign": Setting("dealer", "sign"),
    "dealer_full": Setting("dealer", "full", "label"),
    "dealer_fss": Setting("dealer", "fss"),
    "dealer_stock": Setting("dealer", "sign", stock=True),
    "he_sign": Setting("he", "sign", "label"),
    "he_fss": Setting("he", "fss"),
}


class Silent:
    """A socket whose peer has sent these bytes, listens to nothing, and is gone."""

    def __init__(self, sent: bytes) -> None:
        self._left = memoryview(sent)

    def recv_into(self, buffer: Any, /) -> int:
        part = self._left[: len(buffer)]
        buffer[: len(part)] = part
        self._left = self._left[len(part) :]
        return len(part)

    def sendall(self, data: Any, /) -> None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class Recorded:
    """A socket that keeps what is sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.sent = connection, bytearray()

    def sendall(self, data: Any, /) -> None:
        self.sent += data
        self.connection.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


@functools.cache
def model(name: str) -> Model:
    """Of a setting; comparisons that two parties make are of few, narrow ReLUs."""
    setting = SETTINGS[name]
    lowered = lowered_of(ready(Residual(), SHAPE, lambda u: u < (0.02 if name == "he_fss" else 0.3)))
    return Model(lowered, relus()[setting.relu], REVEALS[setting.reveal])


def client(channel: Channel, name: str, folder: Path) -> None:
    """A client from greeting to farewell: one query, and where there is a stock, one piece of it before."""
    stocks = ClientStocks(folder / "client") if SETTINGS[name].stock else None
    program = model(name).terms.program
    session = Session(channel, program.digest, stocks=stocks)
    try:
        if stocks:
            session.add_to_stock()
        session.infer(encode_images(program, images_of(1, SHAPE)).astype(np.int64))
    finally:
        session.close()


def server(channel: Channel, name: str, folder: Path) -> None:
    """A server until its client ends it."""
    setting = SETTINGS[name]
    stocks = ServerStocks(folder / "server", ROOM) if setting.stock else None
    stock = (lambda identity, use: stocks.of("somebody", identity, use)) if stocks else None
    serve(channel, model(name), modes()[setting.offline], stock=stock, room=ROOM if stocks else 0)


@functools.cache
def honest(name: str) -> tuple[list[bytes], list[bytes]]:
    """The messages of the client and of the server in one session as it should be."""
    model(name)
    ours, theirs = map(Recorded, socket.socketpair())
    with tempfile.TemporaryDirectory() as folder:
        thread = threading.Thread(target=server, args=(Channel(theirs), name, Path(folder)))
        thread.start()
        client(Channel(ours), name, Path(folder))
        thread.join()
    theirs.connection.close()
    return _messages(bytes(ours.sent)), _messages(bytes(theirs.sent))


def _messages(sent: bytes) -> list[bytes]:
    found, start = [], 0
    while start < len(sent):
        size = HEADER.size + HEADER.unpack_from(sent, start)[-1]
        found.append(sent[start : start + size])
        start += size
    return found


def meet(party: str, name: str, data: bytes) -> None:
    """A party's session with what the other one sends, edited as `data` says; raises what ends it."""
    from_client, from_server = honest(name)
    sent, run = (from_server, client) if party == "client" else (from_client, server)
    with tempfile.TemporaryDirectory() as folder:
        run(Channel(Silent(edits.apply(data, sent))), name, Path(folder))
