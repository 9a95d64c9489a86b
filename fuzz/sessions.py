"""Whole sessions against a peer whose bytes are an honest party's, edited.

An honest session of each setting is recorded once in a process; either end then meets what the other one sent, with
edits. What a party draws at random is the same each time, or it would refuse the first checked message of an old
recording.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from two_parties import Residual, images_of, lowered_of, ready

from fuzz import edits
from parelu.private.crypto.prg import Stream
from parelu.private.lowering.encode import encode_images
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_for
from parelu.private.serving import session
from parelu.private.serving.greeting import Accepted
from parelu.private.serving.ledger import Ledger
from parelu.private.serving.session import Service, Session, serve
from parelu.private.serving.stock import ClientStocks, ServerStocks
from parelu.private.transport.channel import HEADER, Channel

SHAPE, ROOM, BUDGET = (1, 6, 6), 3, 5


@dataclasses.dataclass(frozen=True)
class Setting:
    """opened: the first offline phase is opened, and the next one is used."""

    offline: str
    relu: str
    reveal: str = "exact"
    truncation: str = "local"
    stock: bool = False
    opened: bool = False


SETTINGS = {
    "dealer_sign": Setting("dealer", "sign", "logits"),
    "dealer_full": Setting("dealer", "full", "label"),
    "dealer_fss": Setting("dealer", "fss"),
    "dealer_exact": Setting("dealer", "sign", truncation="exact"),
    "dealer_stock": Setting("dealer", "sign", stock=True),
    "seal_sign": Setting("seal", "sign", "label"),
    "seal_fss": Setting("seal", "fss"),
    "seal_opened": Setting("seal", "sign", opened=True),
    "hints_sign": Setting("hints", "sign", "label"),
    "hints_fss": Setting("hints", "fss"),
    "hints_opened": Setting("hints", "sign", opened=True),
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
    lowered = lowered_of(ready(Residual(), SHAPE, lambda u: u < (0.02 if name in ("seal_fss", "hints_fss") else 0.3)))
    reveal = reveal_for(setting.reveal, lowered.program)
    return Model(lowered, relus()[setting.relu], reveal, setting.truncation)


def client(channel: Channel, name: str, folder: Path) -> None:
    """A client from greeting to farewell: one query, and where there is a stock, one piece of it before."""
    draw_from(name, "client")
    setting, program = SETTINGS[name], model(name).terms.program
    stocks = ClientStocks(folder / "client") if setting.stock else None
    met = Session(channel, Accepted(offline=setting.offline, relu=setting.relu), stocks=stocks)
    try:
        if stocks:
            met.add_to_stock()
        met.infer(encode_images(program, images_of(1, SHAPE)).astype(np.int64))
    finally:
        met.close()


def server(channel: Channel, name: str, folder: Path) -> None:
    """A server until its client ends it."""
    draw_from(name, "server")
    setting = SETTINGS[name]
    with contextlib.closing(Ledger(inferences=BUDGET)) as ledger:
        service = Service(account=ledger.account("somebody"))
        if setting.stock:
            stocks = ServerStocks(folder / "server", ROOM)
            stock = functools.partial(stocks.of, "somebody")
            service = dataclasses.replace(service, stock=stock, room=ROOM, identity=stocks.identity)
        tosses = iter([setting.opened])
        with mock.patch.object(session, "_toss", lambda share: next(tosses, False)):
            serve(channel, model(name), modes()[setting.offline], service)


_own, _system = threading.local(), os.urandom  # the stream that a party draws from, and where others do


def draw_from(*labels: str) -> None:
    """What this thread draws at random is of a stream with these labels, while it is `repeated`."""
    _own.stream = Stream(bytes(16), *labels)


def _drawn(count: int) -> bytes:
    return _own.stream.bytes(count).tobytes() if hasattr(_own, "stream") else _system(count)


@contextlib.contextmanager
def repeated() -> Iterator[Path]:
    """A folder for the parties, which draw the same each time, and this thread as it was afterwards."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.urandom", _drawn):
        try:
            yield Path(folder)
        finally:
            vars(_own).clear()


@functools.cache
def honest(name: str) -> tuple[list[bytes], list[bytes]]:
    """The messages of the client and of the server in one session as it should be."""
    model(name)
    ours, theirs = map(Recorded, socket.socketpair())
    with repeated() as folder:
        thread = threading.Thread(target=server, args=(Channel(theirs), name, folder))
        thread.start()
        client(Channel(ours), name, folder)
        thread.join()
    theirs.connection.close()
    return messages(bytes(ours.sent)), messages(bytes(theirs.sent))


def messages(sent: bytes) -> list[bytes]:
    """What was sent, message by message."""
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
    with repeated() as folder:
        run(Channel(Silent(edits.apply(data, sent))), name, folder)
