"""A connection after its greeting: offline material on request, inferences.

client                          server
the offline mode's own set-up, both ways
comd: prepare n            →    n times the offline phase; where the mode audits, after each
                           ←    chck: 1 where the server opens it: the client shows it, and both make another
comd: infer n              →    the online phase of n images together
comd: keep                 →    the offline phase; the server puts its half into the stock
                           ←    kept: the name of both halves, and the client does the same
comd: use n; item: names   →
                           ←    have: the halves are taken; the online phase with them
comd: which n; held: names →    (while nobody fills the client's stock: compare n; the server drops all other halves)
                           ←    held: which it has; the client uses these alone (and drops the rest)
comd: end                  →
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError, UserError
from parelu.private.crypto.ring import Elements
from parelu.private.offline.mode import Deviation, Keep, Mode, Package, Unanswered
from parelu.private.protocol.delphi import Material, Model, infer_client, infer_server, prepare_client
from parelu.private.serving.greeting import (
    NO_LIMIT,
    TWO_PARTIES,
    Accepted,
    Hello,
    Offer,
    Standing,
    greet_client,
    greet_server,
    read_hello,
    use,
)
from parelu.private.serving.ledger import Account, Ledger
from parelu.private.serving.stock import NAME_BYTES, ClientStocks, Stock
from parelu.private.transport.channel import Channel
from parelu.private.transport.traffic import Traffic

COMMAND = struct.Struct("<4sI")
PREPARE, INFER, KEEP, USE, WHICH, COMPARE, END = b"prep", b"infr", b"keep", b"use ", b"whic", b"comp", b"end "
LARGEST_STOCK = 10_000  # inferences
RENEWED = 1000  # offline phases of a connection, after which it makes base transfers and keys anew
MOST_OPENED = 50  # phases that a client shows one after another: at the default rate once in 10^50 inferences


class Session:
    """The client's end. Not for two threads at once.

    Attributes:
        terms: program and protocols, as the server stated them.
        mode: the offline mode.
        offer: all that the server states, and is pinned to.
        prepared: inferences whose offline phase is done.
        room: inferences that the server keeps for this client's stock; 0 where it keeps none.
        left: inferences that the server's budget leaves to this client.
    """

    def __init__(
        self,
        channel: Channel,
        accepted: Accepted = TWO_PARTIES,
        *,
        stocks: ClientStocks | None = None,
        peer: str = "",
        keep: Keep | None = None,
        waiting: Callable[[int], None] | None = None,
    ) -> None:
        """Shake hands; with stocks, compare this server's with its half.

        peer: the name in the server's certificate, to which its stock belongs. keep: for what the offline mode sends
        once; None for a single inference's, in memory. waiting: told how many clients go before this one, where the
        server is busy; None for a client that is to be refused then.
        Raises ProtocolError where the server offers what is not accepted: then nothing was sent that tells anything.
        """
        self.channel, self._stocks, self._keep = channel, stocks, keep or Keep()
        self.prepared: deque[Material] = deque()
        with channel.measured("setup", "handshake"):
            greeted = greet_server(channel, accepted, stocks.identity if stocks else "", waiting)
        self.offer, self.terms, self.mode = greeted.offer, greeted.terms, greeted.mode
        self.room, self.left = greeted.standing.room, greeted.standing.left
        self._context, self._state, self._phases = greeted.context, None, 0
        self._stock = stocks.of(f"{peer} {greeted.use}") if stocks and self.room else None
        self._there: set[bytes] = set()  # names of which the server has its half
        if self._stock:
            self._compare(self._stock)

    @property
    def in_stock(self) -> int:
        """Inferences whose material is in the stock, on both sides."""
        return len(self._stocked())

    def _stocked(self) -> list[bytes]:
        return [name for name in self._stock.names() if name in self._there] if self._stock else []

    def _fetch(self) -> Material:
        """The material of one inference; of those before it that the server opened, all is shown and dropped."""
        for _ in range(MOST_OPENED):
            if self._phases % RENEWED == 0:
                context = _fresh(self._context, self._phases)
                self._state = self.mode.client(self.channel, context, self.terms, self.offer.hints, self._keep)
            self._phases += 1
            offline = self.mode.fetch(self.channel, self._state)
            material = prepare_client(self.terms, offline, functools.partial(self.channel.measured, "offline"))
            with self.channel.measured("offline", "audit"):
                if not self.mode.audits or not self.channel.receive("chck", 1)[0]:
                    return material
                material.take()
                self.mode.show(self.channel, self._state)
        raise ProtocolError(f"the server opened {MOST_OPENED} offline phases one after another, and used none")

    def _compare(self, stock: Stock) -> None:
        """Learn which names the server has too; drop the others where nobody is making material."""
        assert self._stocks is not None
        with self._stocks.comparing() as is_alone, self.channel.measured("setup", "stock"):
            names = stock.names()[:LARGEST_STOCK]
            self.channel.send("comd", COMMAND.pack(COMPARE if is_alone else WHICH, len(names)))
            self.channel.send("held", b"".join(names))
            has = self.channel.receive("held", len(names))
            self._there = {name for name, there in zip(names, has, strict=True) if there}
            if is_alone:
                stock.drop_others(self._there)

    def add_to_stock(self) -> None:
        """Run the offline phase of one inference and put it into the stock, on both sides.

        Raises UserError where there is no stock, or where this side's disk is full.
        """
        if not self._stock or not self._stocks:
            raise UserError(
                "the server keeps no stock for this connection; it needs --stock and --stock-dir, and room for one more"
            )
        with self._stocks.filling():
            self.channel.send("comd", COMMAND.pack(KEEP, 1))
            material = self._fetch()
            name = self.channel.receive("kept", NAME_BYTES).tobytes()
            try:
                self._stock.put(name, material.dump())
            except OSError as error:
                raise UserError(f"{self._stock.folder}: material cannot be kept ({error.strerror})") from error
            self._there.add(name)

    def _take(self, count: int) -> dict[bytes, Material]:
        """At most so many of the stock, the oldest first; raises UserError where it is of another version."""
        found: dict[bytes, Material] = {}
        for name in self._stocked():
            if len(found) == count:
                break
            with contextlib.suppress(KeyError):
                assert self._stock is not None
                found[name] = _load(self._stock, self._stock.take(name), UserError)
        return found

    def prepare(self, count: int = 1) -> None:
        """Run the offline phase of `count` inferences; with those that wait, at most `terms.most_prepared`."""
        most = self.terms.most_prepared - len(self.prepared)
        if not 1 <= count <= most:
            raise UserError(f"{count} inferences cannot be prepared: a connection may have {most} more")
        self.check_budget(count + len(self.prepared))
        self.channel.send("comd", COMMAND.pack(PREPARE, count))
        for _ in range(count):
            self.prepared.append(self._fetch())

    def infer(self, images: NDArray[np.int64]) -> Elements:
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
        self.check_budget(count)
        materials = self._use(count) if self.in_stock >= count and not self.prepared else []
        if not materials:
            if count > len(self.prepared):
                self.prepare(count - len(self.prepared))
            materials = [self.prepared.popleft() for _ in range(count)]
            with self.channel.measured("online", "request"):
                self.channel.send("comd", COMMAND.pack(INFER, count))
        self.left -= count
        return infer_client(self.channel, self.terms, materials, images)

    def _use(self, count: int) -> list[Material]:
        """So many of the stock, of which the server has removed its halves; none where it has fewer."""
        assert self._stocks is not None
        with self._stocks.filling(), self.channel.measured("online", "request"):  # meanwhile nobody drops them
            stocked = self._take(count)
            if len(stocked) < count:
                return []
            self.channel.send("comd", COMMAND.pack(USE, count))
            self.channel.send("item", *stocked)
            # Before the server has removed its half, x − r might go to one that was restored, for the second time.
            self.channel.receive("have", 0)
        return [*stocked.values()]

    def check_budget(self, count: int) -> None:
        """Raises UserError where the server's budget leaves fewer inferences."""
        if count > self.left:
            raise UserError(
                f"{count} inferences are more than the {self.left} that the server's budget leaves to this "
                "certificate; ask its operator"
            )

    def close(self) -> None:
        """Say good-bye and close; safe to call again, also on a broken connection."""
        try:
            self.channel.send("comd", COMMAND.pack(END, 0))
        except (ProtocolError, AssertionError):
            pass
        finally:
            self.channel.close()


def no_stock(identity: str, use: str) -> None:
    """Of a server that keeps none."""


@dataclasses.dataclass(frozen=True)
class Service:
    """What a server has for one client.

    package: takes material that was made ahead. stock: gives the stock of a client's identity for a use, None where it
    may have no more; room: inferences that one may hold; identity: of the server's stocks. account: what the client may
    still have. audit: the share of offline phases that are opened, where the mode audits; is_closing: whether it is the
    server that ends connections now. await_command: returns when the client's next command comes, told how many
    inferences are prepared; raises ProtocolError where there will be none. prepared: called with the seconds of each
    offline phase; inferred: with the number and seconds of the inferences of each query; passed: with the traffic
    since the last query, after each.
    """

    package: Callable[[], Package | None] = lambda: None
    stock: Callable[[str, str], Stock | None] = no_stock
    room: int = 0
    identity: str = ""
    account: Account = dataclasses.field(default_factory=lambda: Ledger().account(""))
    audit: float = 0.0
    is_closing: Callable[[], bool] = lambda: False
    await_command: Callable[[int], None] = lambda prepared: None
    prepared: Callable[[float], None] = lambda seconds: None
    inferred: Callable[[int, float], None] = lambda count, seconds: None
    passed: Callable[[Mapping[tuple[str, str], Traffic]], None] = lambda traffic: None


class _Served:
    """The server's end of one connection."""

    def __init__(self, channel: Channel, model: Model, mode: Mode, service: Service, hello: Hello | None) -> None:
        self.channel, self.model, self.mode, self.service = channel, model, mode, service
        self._stock: Stock | None = None
        with channel.measured("setup", "handshake"):
            greeted = greet_client(channel, hello or read_hello(channel), model, mode, self._standing)
        self._context, self._state, self._phases = greeted.context, None, 0
        self._prepared: deque[Material] = deque()

    def _standing(self, identity: str) -> Standing:
        service, left = self.service, self.service.account.left
        if identity:
            self._stock = service.stock(identity, use(service.identity, Offer.of(self.model, self.mode)))
        room = service.room if self._stock else 0
        return Standing(room, NO_LIMIT if left is None else left, service.identity)

    def run(self) -> int:
        """Until the client ends it; returns the number of inferences."""
        done = 0
        while True:
            self.service.await_command(len(self._prepared))
            command, count = COMMAND.unpack(self.channel.receive("comd", COMMAND.size).tobytes())
            if command == PREPARE and 1 <= count <= self.model.terms.most_prepared - len(self._prepared):
                for _ in range(count):
                    self._prepared.append(self._deliver())
            elif command == INFER and 1 <= count <= len(self._prepared):
                self.service.account.infer(count)
                done += self._infer([self._prepared.popleft() for _ in range(count)])
            elif command == USE and 1 <= count <= self.model.terms.most_prepared and self._stock:
                done += self._infer(self._take(self._stock, count))
            elif command == KEEP and count == 1 and self._stock:
                self._add(self._stock)
            elif command in (WHICH, COMPARE) and count <= LARGEST_STOCK and self._stock:
                self._compare(self._stock, count, drops=command == COMPARE)
            elif command == END and not count:
                return done
            else:
                raise ProtocolError(f"command {command!r} {count} with {len(self._prepared)} inferences prepared")

    def _deliver(self) -> Material:
        """Of one inference, made ahead or now."""
        started = time.perf_counter()
        material = self._delivered()
        self.service.prepared(time.perf_counter() - started)
        return material

    def _delivered(self) -> Material:
        package = self.service.package() if self.service.account.may_have_phases() else None
        if package is None:
            return self._make()
        self.service.account.phase()
        self._begin()
        return package.deliver(self.channel)

    def _make(self) -> Material:
        """Of one inference, with the client; now and then it is opened, and another is made."""
        while True:
            self.service.account.phase()
            self._begin()  # what breaks meanwhile, as while hints come, is no phase that was not shown
            is_opened = self.mode.audits and _toss(self.service.audit)
            try:
                material = self._phase(is_opened)
            except Deviation as error:
                self.service.account.bar(str(error))
                raise
            except Unanswered:
                raise
            except (ProtocolError, OSError):
                if is_opened:
                    self._went_away()
                raise
            if material is not None:
                return material
            self.service.account.opened(answered=True)

    def _phase(self, is_opened: bool) -> Material | None:
        """One offline phase; None where it was opened."""
        if not self.mode.audits:
            return self.mode.serve(self.channel, self._state, self.model)
        material = self.mode.serve(self.channel, self._state, self.model, audited=is_opened, asking=self._asking())
        with self.channel.measured("offline", "audit"):
            self.channel.send("chck", bytes([is_opened]))
            if not is_opened:
                return material
            material.take()
            self.mode.audit(self.channel, self._state, self.model)
        return None

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """While the client is asked, none of its other connections is: what it makes of the question counts before."""
        with self.service.account.alone():
            try:
                yield
            except Deviation as error:
                self.service.account.bar(str(error))
                raise
            except Unanswered:
                self._went_away()
                raise

    def _went_away(self) -> None:
        """The client, where it was to show that it is honest."""
        if not self.service.is_closing():
            self.service.account.opened(answered=False)

    def _begin(self) -> None:
        """A phase; now and then its base transfers and keys are new ones."""
        if self._phases % RENEWED == 0:
            self._state = self.mode.server(self.channel, _fresh(self._context, self._phases), self.model)
        self._phases += 1

    def _infer(self, materials: list[Material]) -> int:
        started = time.perf_counter()
        infer_server(self.channel, self.model, materials)
        self.service.inferred(len(materials), time.perf_counter() - started)
        self.service.passed(self.channel.traffic)
        self.channel.traffic.clear()
        return len(materials)

    def _add(self, stock: Stock) -> None:
        if len(stock.names()) >= self.service.room:
            raise ProtocolError(f"the stock is full: the server keeps {self.service.room} inferences for a client")
        started = time.perf_counter()
        material, name = self._make(), os.urandom(NAME_BYTES)
        try:
            stock.put(name, material.dump())
        except OSError as error:
            raise ProtocolError(f"the server cannot keep material ({error.strerror})") from error
        self.channel.send("kept", name)
        self.service.prepared(time.perf_counter() - started)

    def _take(self, stock: Stock, count: int) -> list[Material]:
        names = _names(self.channel.receive("item", NAME_BYTES * count))
        if not set(names) <= set(stock.names()):
            raise ProtocolError("the server has no such material; connect again to compare stocks")
        self.service.account.infer(count)
        try:
            removed = {name: stock.remove(name) for name in names}
            self.channel.send("have")
            return [_load(stock, stock.decrypt(*piece), ProtocolError) for piece in removed.items()]
        except KeyError:
            raise ProtocolError("the server has no such material; connect again to compare stocks") from None

    def _compare(self, stock: Stock, count: int, *, drops: bool) -> None:
        names = _names(self.channel.receive("held", NAME_BYTES * count))
        if drops:
            stock.drop_others(names)
        there = set(stock.names())
        self.channel.send("held", bytes(name in there for name in names))


def serve(channel: Channel, model: Model, mode: Mode, service: Service = Service(), hello: Hello | None = None) -> int:
    """The server's end, until the client ends it; returns the number of inferences.

    hello: the client's first message, where it was read already.
    Raises ProtocolError where the client breaks the protocol.
    """
    return _Served(channel, model, mode, service, hello).run()


def _fresh(context: bytes, phases: int) -> bytes:
    """The context of what is made anew after so many phases."""
    return hashlib.sha256(context + phases.to_bytes(8, "little")).digest()


def _toss(share: float) -> bool:
    """True with this probability, by the operating system's generator."""
    return int.from_bytes(os.urandom(7)) < share * 2.0**56


def _load(stock: Stock, content: bytes, error: type[Exception]) -> Material:
    """Of a stock, which is emptied where it is of another version: its pieces were made alike."""
    try:
        return Material.load(content)
    except ValueError as reason:
        stock.drop_others(())
        raise error(
            f"a stock of offline material was dropped ({reason}); connect again, and prepare it anew"
        ) from reason


def _names(body: NDArray[np.uint8]) -> list[bytes]:
    return [name.tobytes() for name in body.reshape(-1, NAME_BYTES)]
