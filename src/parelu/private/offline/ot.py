"""Offline mode `ot`: garbled circuits and their labels by the two parties themselves, with oblivious transfer.

Linear layers and squares are still dealt in the server's process, so the mode gives no privacy against that process; it
is what the mode without a third party has beside its homomorphic part. A connection has one Δ, that of the
extension in which the server sends: its raw outputs are the zero labels of the client's wires, so that labels cost the
server no message. Instances are numbered through the connection, so that no tweak is used twice under Δ.
"""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.private.channel import Channel, ring_of
from parelu.private.engines.delphi import Material, Model, Terms, prepare_client, prepare_server
from parelu.private.offline.base import ClientOffline, Mode, ServerOffline
from parelu.private.offline.dealer import Dealer, DealtClient, Mirror
from parelu.private.primitives.base_ot import POINT_BYTES, Receiver, Sender
from parelu.private.primitives.hash import OT_DOMAIN, Hash
from parelu.private.primitives.ot_extension import (
    BASE,
    ExtensionReceiver,
    ExtensionSender,
    message_bytes,
    random_ot_receiver,
    random_ot_sender,
)
from parelu.private.primitives.prg import SEED_BYTES, Blocks, Stream, derive, fresh_seed
from parelu.private.program import Op
from parelu.private.ring import Ring, reduce


class _Server(ServerOffline):
    """The server of one connection; `dealer` is of the inference at hand."""

    def __init__(self, channel: Channel, context: bytes) -> None:
        own = Stream(fresh_seed(), "base choices")
        choices = own.bits(BASE)
        choices[-1] = 1  # the colour of Δ
        with channel.measured("offline", "base OTs"):
            receiver = Receiver(choices, context + b"labels")
            message = channel.receive("base", POINT_BYTES).tobytes()
            sender = Sender(BASE, context + b"products")
            channel.send("base", receiver.respond(message), sender.message())
            self.receiver = ExtensionReceiver(sender.seeds(channel.receive("base", POINT_BYTES * BASE).tobytes()))
        self.sender = ExtensionSender(choices, receiver.seeds())
        self.channel, self.delta = channel, self.sender.delta
        self.hash = Hash(derive(context[:SEED_BYTES], "garbling"))
        self.seed, self.first = b"", 0
        self.dealer: Dealer | None = None

    def begin(self, model: Model) -> None:
        """Deal the linear part of the next inference."""
        mirror = _LinearMirror(fresh_seed())
        prepare_client(model.terms, mirror)
        self.dealer, self.seed = Dealer(mirror, model), fresh_seed()
        self.channel.send("deal", mirror.seed)

    def linear(self, number: int, op: Op) -> Ring:
        assert self.dealer is not None
        return self.dealer.linear(number, op)

    def square(self, number: int, c1: Ring, c2: Ring) -> tuple[Ring, Ring, Ring]:
        assert self.dealer is not None
        return self.dealer.square(number, c1, c2)

    def labels(self, number: int, first: int, wires: int, count: int) -> Blocks:
        message = self.channel.receive("labl", message_bytes(wires * count))
        return self.sender.extend(message, wires * count).reshape(wires, count, 2)

    def random_ot(self, number: int, first: int, count: int) -> tuple[Ring, Ring]:
        message = self.channel.receive("rand", message_bytes(count))
        return random_ot_sender(self.sender.extend(message, count), self.delta, self.hash, first)

    def send_tables(self, number: int, tables: Blocks) -> None:
        self.channel.send("tabl", tables)

    def product(self, number: int, first: int, bits: NDArray[np.uint8]) -> Ring:
        message, rows = self.receiver.extend(bits)
        self.channel.send("prod", message)
        corrections = ring_of(self.channel.receive("prod", 8 * len(bits)))
        return reduce(random_ot_receiver(rows, self.hash, first, OT_DOMAIN + 1) + bits * corrections)


class _Client(ClientOffline):
    """The client of one connection; `dealt` is of the inference at hand."""

    def __init__(self, channel: Channel, context: bytes) -> None:
        choices = Stream(fresh_seed(), "base choices").bits(BASE)
        choices[-1] = 1
        with channel.measured("offline", "base OTs"):
            sender = Sender(BASE, context + b"labels")
            channel.send("base", sender.message())
            body = channel.receive("base", POINT_BYTES * (BASE + 1)).tobytes()
            self.receiver = ExtensionReceiver(sender.seeds(body[: POINT_BYTES * BASE]))
            other = Receiver(choices, context + b"products")
            channel.send("base", other.respond(body[POINT_BYTES * BASE :]))
        self.sender = ExtensionSender(choices, other.seeds())
        self.channel, self.first = channel, 0
        self.hash = Hash(derive(context[:SEED_BYTES], "garbling"))
        self.dealt: DealtClient | None = None
        self.own = b""

    def begin(self) -> None:
        """The next inference."""
        self.dealt = DealtClient(self.channel.receive("deal", SEED_BYTES).tobytes(), bytes(SEED_BYTES), None)
        self.own = fresh_seed()

    def stream(self, number: int, what: str) -> Stream:
        assert self.dealt is not None
        # The dealer has to know the shares of linear layers, and nothing else.
        return Stream(self.own, what, number) if what == "choice" else self.dealt.stream(number, what)

    def linear(self, number: int, op: Op, share: Ring, count: int) -> Ring:
        assert self.dealt is not None
        return self.dealt.linear(number, op, share, count)

    def square(self, number: int, share: Ring) -> tuple[Ring, Ring]:
        assert self.dealt is not None
        return self.dealt.square(number, share)

    def labels(self, number: int, first: int, bits: NDArray[np.uint8]) -> Blocks:
        message, rows = self.receiver.extend(bits.reshape(-1))
        self.channel.send("labl", message)
        return rows.reshape(*bits.shape, 2)

    def random_ot(self, number: int, first: int, choices: NDArray[np.uint8]) -> Ring:
        message, rows = self.receiver.extend(choices)
        self.channel.send("rand", message)
        return random_ot_receiver(rows, self.hash, first)

    def tables(self, number: int, blocks: int) -> Blocks:
        return self.channel.receive("tabl", 16 * blocks).view(np.uint64).reshape(-1, 2)

    def product(self, number: int, first: int, values: Ring) -> Ring:
        message = self.channel.receive("prod", message_bytes(len(values)))
        rows = self.sender.extend(message, len(values))
        zero, one = random_ot_sender(rows, self.sender.delta, self.hash, first, OT_DOMAIN + 1)
        self.channel.send("prod", reduce(zero - one + values))
        return reduce(np.uint64(0) - zero)


class _LinearMirror(Mirror):
    """The dealer's copy of the client, without what the parties make themselves."""

    def labels(self, number: int, first: int, bits: NDArray[np.uint8]) -> Blocks:
        return np.empty((0, 0, 2), np.uint64)

    def random_ot(self, number: int, first: int, choices: NDArray[np.uint8]) -> Ring:
        return np.empty(0, np.uint64)

    def product(self, number: int, first: int, values: Ring) -> Ring:
        return np.empty(0, np.uint64)


class ObliviousTransfer(Mode):
    name: ClassVar[str] = "ot"
    threat_model: ClassVar[str] = (
        "semi-honest; garbled circuits by the two parties, linear layers by a trusted dealer in the server's process"
    )

    def server(self, channel: Channel, context: bytes) -> _Server:
        return _Server(channel, context)

    def client(self, channel: Channel, context: bytes) -> _Client:
        return _Client(channel, context)

    def serve(self, channel: Channel, state: _Server, model: Model) -> Material:
        with channel.measured("offline", "dealer"):
            state.begin(model)
        measure = functools.partial(channel.measured, "offline")
        material = prepare_server(model, state, state.first, measure)
        state.first += model.terms.instances
        return material

    def fetch(self, channel: Channel, state: _Client, terms: Terms, *, keep_shares: bool = False) -> Material:
        with channel.measured("offline", "dealer"):
            state.begin()
        measure = functools.partial(channel.measured, "offline")
        material = prepare_client(terms, state, state.first, measure, keep_shares=keep_shares)
        state.first += terms.instances
        return material
