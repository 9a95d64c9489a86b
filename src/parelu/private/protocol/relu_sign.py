"""ReLU protocol `sign`: the sign by a branching program, then the product with x by two correlated oblivious transfers.

The program (`crypto/carries.py`) adds the lowest m bits of the shares and gives the client d = b ⊕ π, b = 1 where x ≥
0, π the server's. The client's bits are transferred offline, when its share is known and the server's is not. With a
bit c drawn by the client offline and e = d ⊕ c sent online,

    b·x_c = d·x_c + (1 − 2e)·[π(1 − 2c)·x_c]             the bracket is shared offline
    b·x_s = π·x_s + e(1 − 2π)·x_s + (1 − 2e)·[c(1 − 2π)·x_s]     the bracket costs one correction online

so that one round trip is enough: some m²/8 + 8 bytes down (30 + 8 at m = 16), 8⅛ up.

**Truncating.** Where x is still to be divided by 2^f, let y_c and y_s be its shares as integers from 0 to 2^k − 1, in a
ring of k bits, the server's after it added 2^f/2. They add up to x + 2^f/2 + 2^k, but for a wrap, of probability
|x|/2^k. With κ the carry of that addition into bit f,

    x / 2^f, rounded to the nearest, = ⌊y_c/2^f⌋ + (⌊y_s/2^f⌋ − 2^(k − f)) + κ.

Local truncation takes 1 for κ, and a client, which knows y_c, learns of x where it sees the difference. Here the first
two are the shares that are multiplied, as above, and the program adds m + f bits: it has κ on the way, and gives
g = (b ∧ κ) ⊕ ρ besides, ρ the server's. With another bit c' of the client's, e' = g ⊕ c' sent online and τ = c' ⊕ ρ,

    b·κ = e' + (1 − 2e')·τ     τ = c' + ρ − 2·[c'·ρ]     the bracket is shared offline

242 bytes down at m = 16, f = 12, 8¼ up. What leaves the program is masked by π and ρ, what the client answers by c,
c' and its share of the output: each is fresh and uniform, whatever the other party does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto import carries
from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.prg import Stream
from parelu.private.crypto.ring import Elements, Ring
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic, ServerOffline
from parelu.private.protocol.relu import Relu, halved, planes
from parelu.private.transport.channel import Channel, bits_of, elements_of, pack_bits
from parelu.private.transport.messages import Messages


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="sign, client"):
    bits: int  # that are added
    cut: int
    share: Elements  # without its lowest bits
    mask: Elements
    planes: NDArray[np.uint8]  # the share's lowest bits
    pads: NDArray[np.uint8]
    choices: NDArray[np.uint8]  # c, and c' with a cut: (1 or 2, n)
    chosen: Elements
    product: Elements
    carry: Elements | None  # of τ


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="sign, server"):
    seed: bytes
    number: int
    bits: int
    ring: Ring
    cut: int
    pads: NDArray[np.uint8]
    permutation: NDArray[np.uint8]  # π, and ρ with a cut: (1 or 2, n)
    difference: Elements  # of the two random elements
    constant: Elements
    carry: Elements | None


def _signed(bits: NDArray[np.uint8]) -> Elements:
    """1 − 2·bits."""
    return np.uint64(1) - np.uint64(2) * bits


def _exclusive_or(bit: NDArray[np.uint8], product: Elements) -> Elements:
    """A party's share of c' ⊕ ρ, from its bit and its share of the product."""
    return bit - np.uint64(2) * product


def _open_bytes(count: int, added: int, cut: int) -> int:
    """added: the bits of the program."""
    return sum(carries.part_bytes(count, added, cut)) + 8 * count


class Sign(Relu):
    name: ClassVar[str] = "sign"
    resists: ClassVar[bool] = True
    truncates: ClassVar[bool] = True

    def prepare_client(
        self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int, cut: int, ring: Ring
    ) -> _Client:
        count, outputs, bits = len(share), 2 if cut else 1, min(bits + cut, ring.bits)
        mask = offline.stream(number, "mask").elements(count)
        choices = offline.stream(number, "choice").bits(outputs * count).reshape(outputs, count)
        wires = planes(share, bits)
        labels = offline.labels(number, first, wires[: carries.wires(bits, cut)])
        pads = carries.client_pads(offline.hash, first, labels, bits, cut)
        chosen = offline.random_ot(number, first, choices[0])
        share = ring.reduce(share) >> np.uint64(cut)
        values = np.concatenate([_signed(choices[0]) * share, *choices[1:].astype(np.uint64)])
        product, *rest = offline.product(number, offline.numbers(len(values)), values).reshape(outputs, count)
        carry = _exclusive_or(choices[1], *rest) if cut else None
        packed = np.packbits(wires, axis=1, bitorder="little")
        return _Client(bits, cut, share, mask, packed, pads, choices, chosen, product, carry)

    def prepare_server(
        self, offline: ServerOffline, number: int, first: int, count: int, bits: int, cut: int, ring: Ring
    ) -> _Server:
        bits = min(bits + cut, ring.bits)
        zeros = offline.labels(number, first, carries.wires(bits, cut), count)
        pads = carries.server_pads(offline.hash, first, zeros, offline.delta, bits, cut)
        zero_choice, one_choice = offline.random_ot(number, first, count)
        outputs = 2 if cut else 1
        permutation = Stream(offline.seed, "permutation", number).bits(outputs * count).reshape(outputs, count)
        flat = permutation.reshape(-1)
        product, *rest = offline.product(number, offline.numbers(len(flat)), flat).reshape(permutation.shape)
        difference, constant = zero_choice - one_choice, product - zero_choice
        carry = _exclusive_or(permutation[1], *rest) if cut else None
        return _Server(offline.seed, number, bits, ring, cut, pads, permutation, difference, constant, carry)

    def prepare_traffic(self, offline: OfflineTraffic, count: int, bits: int, cut: int, ring: Ring) -> list[Messages]:
        wires, outputs = carries.wires(min(bits + cut, ring.bits), cut), 2 if cut else 1
        return [*offline.labels(wires, count), *offline.random_ot(count), *offline.product(outputs * count)]

    def material_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> tuple[int, int]:
        outputs, added = 2 if cut else 1, min(bits + cut, ring.bits)
        client, server = (planes * -(-count // 8) for planes in carries.pad_planes(added, cut))
        each = outputs + 8 * (outputs - 1)  # bits of the party's own, and what it has of τ
        return client + added * -(-count // 8) + (32 + each) * count, server + (16 + each) * count

    def open(self, channel: Channel, material: _Server, share: Elements) -> Elements:
        """Returns the server's share without its lowest bits."""
        channel.announce("sign", _open_bytes(len(share), material.bits, material.cut))
        rounded = halved(share, material.cut)
        permutation = np.packbits(material.permutation, axis=1, bitorder="little")
        own = Stream(material.seed, "carries", material.number)
        for part in carries.encode(rounded, material.pads, permutation, own, material.bits, material.cut):
            channel.send_part(part)
        share = material.ring.reduce(rounded) >> np.uint64(material.cut)
        if material.cut:
            share -= np.uint64(1 << (material.ring.bits - material.cut))
        channel.send_part(material.difference + _signed(material.permutation[0]) * share)
        return share

    def open_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> int:
        return _open_bytes(count, min(bits + cut, ring.bits), cut)

    def answer(self, channel: Channel, material: _Client) -> tuple[Any, ...]:
        count = len(material.share)
        lengths = list(carries.part_bytes(count, material.bits, material.cut))
        channel.expect("sign", _open_bytes(count, material.bits, material.cut))
        message = map(channel.receive_part, lengths)
        found = carries.decode(message, material.planes, material.pads, material.bits, material.cut)
        decided = np.unpackbits(found, axis=1, count=count, bitorder="little")
        corrections = elements_of(channel.receive_part(8 * count))
        flips = decided ^ material.choices
        brackets = material.product + material.chosen + material.choices[0] * corrections
        share = decided[0] * material.share + _signed(flips[0]) * brackets
        if material.carry is not None:
            share += flips[1] + _signed(flips[1]) * material.carry
        return share - material.mask, pack_bits(flips.reshape(-1))

    def answer_bytes(self, count: int, cut: int) -> int:
        return 8 * count + -(-(2 if cut else 1) * count // 8)

    def close(self, material: _Server, opened: Elements, answer: NDArray[np.uint8]) -> Elements:
        share, count = opened, len(opened)
        permutation = material.permutation
        flips = bits_of(answer[8 * count :], permutation.size).reshape(permutation.shape)
        own = permutation[0] * share + flips[0] * (_signed(permutation[0]) * share)
        own += _signed(flips[0]) * material.constant
        if material.carry is not None:
            own += _signed(flips[1]) * material.carry
        return own + elements_of(answer[: 8 * count])
