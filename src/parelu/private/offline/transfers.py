"""What the two parties make by oblivious transfer: garbled circuits' labels, bits times values, integers times values.

A connection has one Δ each way. That of the extension in which the server sends is the Δ of the garbled circuits: the
extension's raw outputs are the zero labels of the client's wires, so that labels cost the server no message. Each
inference hashes under a key of its own; instances are numbered through the connection, so that no tweak is used twice
under Δ even if two keys are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.base_ot import POINT_BYTES, RESPONSE_BYTES, Receiver, Sender
from parelu.private.crypto.dcf import Key
from parelu.private.crypto.hash import OT_DOMAIN, Hash
from parelu.private.crypto.ot_extension import (
    BASE,
    ExtensionReceiver,
    ExtensionSender,
    message_bytes,
    random_ot_receiver,
    random_ot_sender,
    trees_bytes,
)
from parelu.private.crypto.prg import Blocks, Stream, derive, fresh_seed
from parelu.private.crypto.ring import Elements, Ring
from parelu.private.lowering.lowered import WEIGHT_BITS, Lowered
from parelu.private.lowering.ops import Conv, Linear
from parelu.private.lowering.program import Program
from parelu.private.offline import comparisons
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic, ServerOffline
from parelu.private.transport.channel import Channel, elements_of
from parelu.private.transport.messages import Messages, to_client, to_server

BITS_TIMES, INTEGERS_TIMES = OT_DOMAIN + 1, OT_DOMAIN + 2  # uses of a transfer, for its tweak
AT_ONCE = 1 << 18  # transfers of a product of integers
USUAL_WIDTH = WEIGHT_BITS + 1  # of `width`, for weights as lowering writes them


def width(lowered: Lowered) -> int:
    """m with |w| < 2^(m − 1) for every weight of a single value and c2: the client is told by how many transfers."""
    single = [1]
    for number, op in enumerate(lowered.program.ops):
        if not isinstance(op, (Conv, Linear)):
            integers = lowered.weights.get(number, {})
            single += [int(np.abs(integers[name]).max(initial=0)) for name in ("weight", "c2") if name in integers]
    return max(single).bit_length() + 1


def multiplied(program: Program) -> dict[str, float]:
    """What `multiply` does in one phase, for the squares and the weights of single positions: by transfers, with
    factors as wide as lowering makes them."""
    singles = 0
    for number, op in enumerate(program.ops, start=1):
        if op.is_secret and not isinstance(op, (Conv, Linear)):
            singles += math.prod(program.shapes[number])
    return {"transfers: factor": float((program.ring.bits + 2 * USUAL_WIDTH) * program.squares + USUAL_WIDTH * singles)}


class _Inferences:
    """What both parties derive for each inference from the transcripts of their base transfers, 32 bytes each."""

    hash: Hash
    permutation: bytes

    def __init__(self, labels: bytes, products: bytes) -> None:
        self._transcripts, self._begun = labels + products, 0
        self.seed, self._multiplied = b"", 0
        self.compared = 0  # transfers that made keys

    def begin(self) -> None:
        """Start an inference: a fresh seed, and keys of its own. Both parties do so at the same point."""
        self.seed = fresh_seed()
        self.hash = Hash(derive(self._transcripts, "garbling", self._begun))
        self.permutation = derive(self._transcripts, "comparison", self._begun)
        self._begun += 1


class ObliviousServer(_Inferences, ServerOffline):
    """The server of one connection; `begin` starts an inference.

    ring: the program's; width: of its single factors, in bits. The offline mode sets both.
    """

    ring: Ring
    width: int

    def __init__(self, channel: Channel, context: bytes) -> None:
        choices = _delta()
        with channel.measured("setup", "base OTs"):
            receiver = Receiver(choices, context + b"labels")
            message = channel.receive("base", POINT_BYTES).tobytes()
            sender = Sender(BASE, context + b"products")
            channel.send("base", receiver.respond(message), sender.message())
            body = channel.receive("base", RESPONSE_BYTES * BASE + trees_bytes()).tobytes()
            points, trees = body[: RESPONSE_BYTES * BASE], body[RESPONSE_BYTES * BASE :]
            self.receiver = ExtensionReceiver(sender.seeds(points), sender.transcript)
            channel.send("tree", self.receiver.trees)
            self.sender = ExtensionSender(choices, receiver.seeds(), receiver.transcript, trees)
        super().__init__(labels=receiver.transcript, products=sender.transcript)
        self.channel, self.delta = channel, self.sender.delta

    def labels(self, number: int, first: int, wires: int, count: int) -> Blocks:
        message = self.channel.receive("labl", message_bytes(wires * count))
        return self.sender.extend(message, wires * count).reshape(wires, count, 2)

    def random_ot(self, number: int, first: int, count: int) -> tuple[Elements, Elements]:
        message = self.channel.receive("rand", message_bytes(count))
        return random_ot_sender(self.sender.extend(message, count), self.delta, self.hash, first)

    def send_tables(self, number: int, tables: Blocks) -> None:
        self.channel.send("tabl", tables)

    def product(self, number: int, first: int, bits: NDArray[np.uint8]) -> Elements:
        return self._chosen(bits, first, BITS_TIMES)

    def comparison(self, number: int, count: int, bits: int) -> tuple[Elements, Key, Elements, Elements]:
        own = Stream(self.seed, "comparison", number)
        key, r, top = comparisons.make(self, 1, self.permutation, own, count, bits)
        theirs = elements_of(self.channel.receive("shft", 8 * count))
        return theirs + r, key, r, top

    def _chosen(self, bits: NDArray[np.uint8], first: int, use: int) -> Elements:
        """A share of bits · (the client's values), (n,)."""
        message, rows = self.receiver.extend(bits)
        self.channel.send("prod", message)
        corrections = elements_of(self.channel.receive("prod", 8 * len(bits)))
        return random_ot_receiver(rows, self.hash, first, use) + bits * corrections

    def multiply(self, factors: Elements, width: int) -> Elements:
        """The server's share, (n,), of factors · (the client's values), by a transfer a bit (Gilboa 1999).

        width: bits of a factor, in two's complement; 64 for any element.
        """
        out = np.zeros(len(factors), np.uint64)
        for part in _parts(len(factors), width):
            bits = (factors[part] >> np.arange(width, dtype=np.uint64)[:, None]) & np.uint64(1)
            shares = self._chosen(bits.astype(np.uint8).reshape(-1), self._multiplied, INTEGERS_TIMES)
            self._multiplied += bits.size
            out[part] = shares.reshape(width, -1).sum(0)
        return out

    def square(self, number: int, c1: Elements, c2: Elements) -> tuple[Elements, Elements, Elements]:
        """With a = a_s + a_c, a_c the client's share of x: u = 2·c2·a, v = c1·a + c2·a², and x − a = x_s − a_s."""
        own = Stream(self.seed, "square", number).elements(len(c1))
        times_share = self.multiply(c1 + np.uint64(2) * c2 * own, self.ring.bits)
        times_both = self.multiply(np.concatenate([c2, c2]), self.width)
        twice, squared = np.split(times_both, 2)
        u = np.uint64(2) * c2 * own + twice
        v = c1 * own + c2 * own * own + times_share + squared
        return np.uint64(0) - own, u, v


class ObliviousClient(_Inferences, ClientOffline):
    """The client of one connection; as `ObliviousServer`."""

    ring: Ring
    width: int

    def __init__(self, channel: Channel, context: bytes) -> None:
        choices = _delta()
        with channel.measured("setup", "base OTs"):
            sender = Sender(BASE, context + b"labels")
            channel.send("base", sender.message())
            body = channel.receive("base", RESPONSE_BYTES * BASE + POINT_BYTES).tobytes()
            self.receiver = ExtensionReceiver(sender.seeds(body[: RESPONSE_BYTES * BASE]), sender.transcript)
            receiver = Receiver(choices, context + b"products")
            channel.send("base", receiver.respond(body[RESPONSE_BYTES * BASE :]), self.receiver.trees)
            trees = channel.receive("tree", trees_bytes()).tobytes()
            self.sender = ExtensionSender(choices, receiver.seeds(), receiver.transcript, trees)
        super().__init__(labels=sender.transcript, products=receiver.transcript)
        self.channel = channel

    def stream(self, number: int, what: str) -> Stream:
        return Stream(self.seed, what, number)

    def labels(self, number: int, first: int, bits: NDArray[np.uint8]) -> Blocks:
        message, rows = self.receiver.extend(bits.reshape(-1))
        self.channel.send("labl", message)
        return rows.reshape(*bits.shape, 2)

    def random_ot(self, number: int, first: int, choices: NDArray[np.uint8]) -> Elements:
        message, rows = self.receiver.extend(choices)
        self.channel.send("rand", message)
        return random_ot_receiver(rows, self.hash, first)

    def tables(self, number: int, blocks: int) -> Blocks:
        return self.channel.receive("tabl", 16 * blocks).view(np.uint64).reshape(-1, 2)

    def product(self, number: int, first: int, values: Elements) -> Elements:
        return self._offered(values, first, BITS_TIMES)

    def comparison(self, number: int, share: Elements, bits: int) -> tuple[Key, Elements, Elements]:
        own = self.stream(number, "comparison")
        key, r, top = comparisons.make(self, 0, self.permutation, own, len(share), bits)
        self.channel.send("shft", share + r)
        return key, r, top

    def _offered(self, values: Elements, first: int, use: int) -> Elements:
        message = self.channel.receive("prod", message_bytes(len(values)))
        rows = self.sender.extend(message, len(values))
        zero, one = random_ot_sender(rows, self.sender.delta, self.hash, first, use)
        self.channel.send("prod", zero - one + values)
        return np.uint64(0) - zero

    def multiply(self, values: Elements, width: int) -> Elements:
        """The client's share, (n,), of (the server's factors) · values; width: as `ObliviousServer.multiply`."""
        weights = np.uint64(1) << np.arange(width, dtype=np.uint64)
        weights[-1:] = np.uint64(0) - weights[-1:]  # the sign of two's complement
        out = np.zeros(len(values), np.uint64)
        for part in _parts(len(values), width):
            offered = weights[:, None] * values[part]
            shares = self._offered(offered.reshape(-1), self._multiplied, INTEGERS_TIMES)
            self._multiplied += offered.size
            out[part] = shares.reshape(width, -1).sum(0)
        return out

    def square(self, number: int, share: Elements) -> tuple[Elements, Elements]:
        times_share = self.multiply(share, self.ring.bits)
        both = np.concatenate([np.uint64(2) * share, share * share])
        twice, squared = np.split(self.multiply(both, self.width), 2)
        return twice, times_share + squared


class ObliviousTraffic(OfflineTraffic):
    """What `ObliviousClient` and `ObliviousServer` send each other; ring, width: as theirs."""

    def __init__(self, ring: Ring, width: int) -> None:
        self.ring, self.width = ring, width

    def connection(self) -> Iterator[tuple[str, str, Messages]]:
        """The base transfers."""
        responses = RESPONSE_BYTES * BASE
        for messages in (
            to_server(POINT_BYTES),
            to_client(responses + POINT_BYTES),
            to_server(responses + trees_bytes()),
            to_client(trees_bytes()),
        ):
            yield "setup", "base OTs", messages

    def linear(self, number: int, count: int) -> list[Messages]:
        return self._multiplied(count, self.width)

    def labels(self, wires: int, count: int) -> list[Messages]:
        return [to_server(message_bytes(wires * count))]

    def random_ot(self, count: int) -> list[Messages]:
        return [to_server(message_bytes(count))]

    def tables(self, blocks: int) -> list[Messages]:
        return [to_client(16 * blocks)]

    def product(self, count: int) -> list[Messages]:
        return [to_client(message_bytes(count)), to_server(8 * count)]

    def square(self, count: int) -> list[Messages]:
        return self._multiplied(count, self.ring.bits) + self._multiplied(2 * count, self.width)

    def comparison(self, count: int, bits: int) -> list[Messages]:
        return [*comparisons.traffic(count, bits), to_server(8 * count)]

    def _multiplied(self, count: int, width: int) -> list[Messages]:
        return [
            messages
            for part in _parts(count, width)
            for messages in self.product(width * (min(part.stop, count) - part.start))
        ]


def _delta() -> NDArray[np.uint8]:
    """The choices of this party's base transfers: the bits of its Δ, which has colour 1."""
    choices = Stream(fresh_seed(), "base choices").bits(BASE)
    choices[-1] = 1
    return choices


def _parts(count: int, width: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // width)
    for start in range(0, count, step):
        yield slice(start, start + step)
