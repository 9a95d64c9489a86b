"""A connection from its first message to its last: handshake, offline material on request, inferences.

client                          server
helo: nonce, pinned hash   →
                           ←    helo: nonce, engine, protocols, hash; prog: the program
redy: hash of what came    →
the offline mode's own set-up, both ways
comd: prepare n            →    n times the offline phase
comd: infer n              →    the online phase of n images together
comd: keep                 →    the offline phase; the server puts its half into the stock
                           ←    kept: the name of both halves, and the client does the same
comd: use n; item: names   →    the online phase with material of the stock
comd: compare; held: names →    the server drops all other halves
                           ←    held: which it has; the client drops the rest
comd: end                  →
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError, UserError
from parelu.private.crypto.prg import fresh_seed
from parelu.private.crypto.ring import Ring
from parelu.private.lowering.program import LARGEST_PROGRAM, Program
from parelu.private.offline.mode import Mode, Package, modes
from parelu.private.protocol.delphi import Material, Model, Terms, infer_client, infer_server, prepare_client
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.serving.stock import NAME_BYTES, ClientStocks, Stock
from parelu.private.transport.channel import Channel
from parelu.private.transport.traffic import Traffic

FORMAT = "parelu-session-2"
LARGEST_HELLO = 4096
COMMAND = struct.Struct("<4sI")
PREPARE, INFER, KEEP, USE, COMPARE, END = b"prep", b"infr", b"keep", b"use ", b"comp", b"end "
LARGEST_STOCK = 10_000  # inferences


class Session:
    """The client's end. Not for two threads at once.

    Attributes:
        terms: program and protocols, as the server stated them.
        mode: the offline mode.
        prepared: inferences whose offline phase is done.
        room: inferences that the server keeps for this client's stock; 0 where it keeps none.
    """

    def __init__(self, channel: Channel, pin: str | None = None, *, stocks: ClientStocks | None = None) -> None:
        """Shake hands; with stocks, compare this server's with its half.

        pin: SHA-256 of the program, as the operator publishes it. Raises ProtocolError where the server has another.
        """
        self.channel, self._stocks = channel, stocks
        self.prepared: deque[Material] = deque()
        identity = stocks.identity if stocks else ""
        hello = {"format": FORMAT, "nonce": fresh_seed().hex(), "pin": pin or "", "stock": identity}
        with channel.measured("setup", "handshake"):
            ours = _dump(hello)
            channel.send("helo", ours)
            theirs = channel.receive_up_to("helo", LARGEST_HELLO)
            reply = _load(theirs, ("nonce", "engine", "relu", "offline", "reveal", "digest", "room"))
            body = channel.receive_up_to("prog", LARGEST_PROGRAM)
            digest = hashlib.sha256(body).digest()
            if pin and digest.hex() != pin:
                raise ProtocolError(
                    f"the server's program {digest.hex()[:16]}… is not the pinned {pin[:16]}…; "
                    "ask the operator for the published hash"
                )
            try:
                program = Program.from_bytes(body)
            except ValueError as error:
                raise ProtocolError(f"the server's program is refused: {error}") from error
            channel.send("redy", digest)
        self.mode: Mode = _named(modes(), reply, "offline")
        relu = _named(relus(), reply, "relu")
        try:
            self.terms = Terms(program, relu, reveal_of(reply["reveal"]))
            self.mode.check_terms(program, relu)
        except (UserError, ValueError) as error:
            raise ProtocolError(f"the server's terms do not go together: {error}") from error
        self.room = int(reply["room"]) if reply["room"].isdecimal() else 0
        self._stock = stocks.of(_use(self.terms, self.mode)) if stocks and self.room else None
        self._state: Any = None
        if self._stock:
            self._compare(self._stock)
        self._context = _context(ours, theirs, digest)

    @property
    def in_stock(self) -> int:
        """Inferences whose material is in the stock."""
        return len(self._stock.names()) if self._stock else 0

    def _fetch(self) -> Material:
        if self._state is None:
            self._state = self.mode.client(self.channel, self._context, self.terms)
        offline = self.mode.fetch(self.channel, self._state)
        return prepare_client(self.terms, offline, functools.partial(self.channel.measured, "offline"))

    def _compare(self, stock: Stock) -> None:
        assert self._stocks is not None
        with self._stocks.comparing() as is_ours:
            if not is_ours:
                return
            names = stock.names()[:LARGEST_STOCK]
            with self.channel.measured("setup", "stock"):
                self.channel.send("comd", COMMAND.pack(COMPARE, len(names)))
                self.channel.send("held", b"".join(names))
                has = self.channel.receive("held", len(names))
            stock.drop_others([name for name, there in zip(names, has, strict=True) if there])

    def add_to_stock(self) -> None:
        """Run the offline phase of one inference and put it into the stock, on both sides.

        Raises UserError where there is no stock, or where this side's disk is full.
        """
        if not self._stock or not self._stocks:
            raise UserError("the server keeps no stock for this connection; it needs --stock and --stock-dir")
        with self._stocks.filling():
            self.channel.send("comd", COMMAND.pack(KEEP, 1))
            material = self._fetch()
            name = self.channel.receive("kept", NAME_BYTES).tobytes()
            try:
                self._stock.put(name, material.dump())
            except OSError as error:
                raise UserError(f"{self._stock.folder}: material cannot be kept ({error.strerror})") from error

    def _take(self, count: int) -> dict[bytes, Material]:
        """At most so many of the stock, the oldest first; raises UserError where it is of another version."""
        found: dict[bytes, Material] = {}
        if not self._stock:
            return found
        for name in self._stock.names():
            if len(found) == count:
                break
            with contextlib.suppress(KeyError):
                found[name] = _load_material(self._stock, name, UserError)
        return found

    def prepare(self, count: int = 1) -> None:
        """Run the offline phase of `count` inferences; with those that wait, at most `terms.most_prepared`."""
        most = self.terms.most_prepared - len(self.prepared)
        if not 1 <= count <= most:
            raise UserError(f"{count} inferences cannot be prepared: a connection may have {most} more")
        self.channel.send("comd", COMMAND.pack(PREPARE, count))
        for _ in range(count):
            self.prepared.append(self._fetch())

    def infer(self, images: NDArray[np.int64]) -> Ring:
        """One query of integers (N, C, H, W), whose images share its rounds: (N, classes), or (N, 1) labels.

        The material is of the stock where nothing is prepared and the stock has enough; else what is missing is made.
        """
        program, count = self.terms.program, len(images)
        if images.shape[1:] != program.input_shape or not 1 <= count <= self.terms.most_prepared:
            raise UserError(
                f"the images are {images.shape}; a query takes 1 to {self.terms.most_prepared} of {program.input_shape}"
            )
        if images.min() < program.low or images.max() > program.high:
            raise UserError(f"an image has values outside of its range, {program.low} to {program.high}")
        stocked = self._take(count) if self.in_stock >= count and not self.prepared else {}
        if len(stocked) == count:
            with self.channel.measured("online", "request"):
                self.channel.send("comd", COMMAND.pack(USE, count))
                self.channel.send("item", *stocked)
            return infer_client(self.channel, self.terms, [*stocked.values()], images)
        if count > len(self.prepared):
            self.prepare(count - len(self.prepared))
        materials = [self.prepared.popleft() for _ in range(count)]
        with self.channel.measured("online", "request"):
            self.channel.send("comd", COMMAND.pack(INFER, count))
        return infer_client(self.channel, self.terms, materials, images)

    def close(self) -> None:
        """Say good-bye and close; safe to call again, also on a broken connection."""
        try:
            self.channel.send("comd", COMMAND.pack(END, 0))
        except (ProtocolError, AssertionError):
            pass
        finally:
            self.channel.close()


class _Served:
    """The server's end of one connection; arguments as `serve` takes them."""

    def __init__(
        self,
        channel: Channel,
        model: Model,
        mode: Mode,
        package: Callable[[], Package | None],
        stock: Callable[[str, str], Stock] | None,
        room: int,
        finished: Callable[[Mapping[tuple[str, str], Traffic]], None],
    ) -> None:
        self.channel, self.model, self.mode, self._package, self._finished = channel, model, mode, package, finished
        self._context, identity = _greet(channel, model, mode, room)
        self._stock = stock(identity, _use(model.terms, mode)) if stock and identity else None
        self._room, self._state = room, None
        self._prepared: deque[Material] = deque()

    def run(self) -> int:
        """Until the client ends it; returns the number of inferences."""
        done = 0
        while True:
            command, count = COMMAND.unpack(self.channel.receive("comd", COMMAND.size).tobytes())
            if command == PREPARE and 1 <= count <= self.model.terms.most_prepared - len(self._prepared):
                for _ in range(count):
                    ready = self._package()
                    self._prepared.append(ready.deliver(self.channel) if ready else self._make())
            elif command == INFER and 1 <= count <= len(self._prepared):
                done += self._infer([self._prepared.popleft() for _ in range(count)])
            elif command == USE and 1 <= count <= self.model.terms.most_prepared and self._stock:
                done += self._infer(self._take(self._stock, count))
            elif command == KEEP and count == 1 and self._stock:
                self._add(self._stock)
            elif command == COMPARE and count <= LARGEST_STOCK and self._stock:
                self._compare(self._stock, count)
            elif command == END and not count:
                return done
            else:
                raise ProtocolError(f"command {command!r} {count} with {len(self._prepared)} inferences prepared")

    def _make(self) -> Material:
        if self._state is None:
            self._state = self.mode.server(self.channel, self._context, self.model)
        return self.mode.serve(self.channel, self._state, self.model)

    def _infer(self, materials: list[Material]) -> int:
        infer_server(self.channel, self.model, materials)
        self._finished(self.channel.traffic)
        self.channel.traffic.clear()
        return len(materials)

    def _add(self, stock: Stock) -> None:
        if len(stock.names()) >= self._room:
            raise ProtocolError(f"the stock is full: the server keeps {self._room} inferences for a client")
        material, name = self._make(), os.urandom(NAME_BYTES)
        try:
            stock.put(name, material.dump())
        except OSError as error:
            raise ProtocolError(f"the server cannot keep material ({error.strerror})") from error
        self.channel.send("kept", name)

    def _take(self, stock: Stock, count: int) -> list[Material]:
        names = _names(self.channel.receive("item", NAME_BYTES * count))
        try:
            return [_load_material(stock, name, ProtocolError) for name in names]
        except KeyError:
            raise ProtocolError("the server has no such material; connect again to compare stocks") from None

    def _compare(self, stock: Stock, count: int) -> None:
        names = _names(self.channel.receive("held", NAME_BYTES * count))
        stock.drop_others(names)
        there = set(stock.names())
        self.channel.send("held", bytes(name in there for name in names))


def serve(
    channel: Channel,
    model: Model,
    mode: Mode,
    package: Callable[[], Package | None] = lambda: None,
    stock: Callable[[str, str], Stock] | None = None,
    room: int = 0,
    finished: Callable[[Mapping[tuple[str, str], Traffic]], None] = lambda traffic: None,
) -> int:
    """The server's end, until the client ends it; returns the number of inferences.

    package: takes material that was made ahead. stock: gives the stock of a client's identity for a use, and `room` how
    many inferences it may hold. finished: called with the traffic since the last query, after each. Raises
    ProtocolError where the client breaks the protocol.
    """
    return _Served(channel, model, mode, package, stock, room, finished).run()


def _load_material(stock: Stock, name: bytes, error: type[Exception]) -> Material:
    """Taken from the stock, which is emptied where it is of another version: its pieces were made alike."""
    try:
        return Material.load(stock.take(name))
    except ValueError as reason:
        stock.drop_others(())
        raise error(
            f"a stock of offline material was dropped ({reason}); connect again, and prepare it anew"
        ) from reason


def _names(body: NDArray[np.uint8]) -> list[bytes]:
    return [name.tobytes() for name in body.reshape(-1, NAME_BYTES)]


def _greet(channel: Channel, model: Model, mode: Mode, room: int) -> tuple[bytes, str]:
    """What both saw, and the client's stock."""
    terms = model.terms
    with channel.measured("setup", "handshake"):
        theirs = channel.receive_up_to("helo", LARGEST_HELLO)
        hello = _load(theirs, ("nonce", "pin", "stock"))
        digest = terms.program.digest
        ours = _dump(
            {
                "format": FORMAT,
                "nonce": fresh_seed().hex(),
                "engine": "delphi",
                "relu": terms.relu.name,
                "offline": mode.name,
                "reveal": terms.reveal.text,
                "digest": digest,
                "room": str(room),
            }
        )
        channel.send("helo", ours)
        channel.send("prog", terms.program.to_bytes())
        if hello["pin"] not in ("", digest):
            raise ProtocolError(f"the client pins program {hello['pin'][:16]!r}, this server has {digest[:16]}")
        if channel.receive("redy", 32).tobytes().hex() != digest:
            raise ProtocolError("the client read another program than the server sent")
    return _context(theirs, ours, bytes.fromhex(digest)), hello["stock"]


def _use(terms: Terms, mode: Mode) -> str:
    """What material is for."""
    return f"{FORMAT} delphi {terms.relu.name} {terms.reveal.text} {mode.name} {terms.program.digest}"


def _context(client_hello: bytes, server_hello: bytes, digest: bytes) -> bytes:
    """What both parties saw: base OTs and the garbling hash are bound to it."""
    parts = (client_hello, server_hello, digest)
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).digest()


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _load(body: bytes, fields: tuple[str, ...]) -> dict[str, str]:
    try:
        value = json.loads(body)
        if value.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if sorted(value) != sorted(fields) or not all(isinstance(v, str) and len(v) <= 200 for v in value.values()):
            raise ValueError("its fields are others")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"the peer's greeting is not of this version of parelu ({str(error)[:80]})") from error
    return value


def _named(known: Any, reply: dict[str, str], what: str) -> Any:
    if reply[what] not in known:
        raise ProtocolError(f"the server uses {what} {reply[what][:20]!r}, this version knows {', '.join(known)}")
    return known[reply[what]]
