"""ReLU protocol `sign`: a garbled sign, then the product with x by two correlated oblivious transfers.

The circuit sees the lowest m bits of the shares and gives the client d = b ⊕ π, b = 1 where x ≥ 0, π the server's.
With a bit c drawn by the client offline and e = d ⊕ c sent online,

    b·x_c = d·x_c + (1 − 2e)·[π(1 − 2c)·x_c]             the bracket is shared offline
    b·x_s = π·x_s + e(1 − 2π)·x_s + (1 − 2e)·[c(1 − 2π)·x_s]     the bracket costs one correction online

so that one round trip is enough: 16m + 8 bytes down, 8⅛ up.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.garbling import sign
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import Blocks
from parelu.private.crypto.ring import Ring, reduce
from parelu.private.protocol.correlations import ClientOffline, ServerOffline
from parelu.private.protocol.relu import Relu, evaluate, garble, open_bytes, open_labels, planes, table_blocks
from parelu.private.transport.channel import Channel, bits_of, pack_bits, ring_of


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="sign, client"):
    hash: Hash
    first: int
    bits: int
    share: Ring
    mask: Ring
    labels: Blocks
    tables: Blocks
    choices: NDArray[np.uint8]
    chosen: Ring
    product: Ring


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="sign, server"):
    seed: bytes
    number: int
    bits: int
    delta: Blocks
    permutation: NDArray[np.uint8]
    difference: Ring  # of the two random elements
    constant: Ring


def _signed(bits: NDArray[np.uint8]) -> Ring:
    """1 − 2·bits."""
    return np.uint64(1) - np.uint64(2) * bits


class Sign(Relu):
    name: ClassVar[str] = "sign"

    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Ring, bits: int) -> _Client:
        count = len(share)
        mask = offline.stream(number, "mask").ring(count)
        choices = offline.stream(number, "choice").bits(count)
        labels = offline.labels(number, first, planes(share, bits))
        chosen = offline.random_ot(number, first, choices)
        tables = offline.tables(number, table_blocks(sign, bits, bits, count))
        product = offline.product(number, first, reduce(_signed(choices) * share))
        return _Client(offline.hash, first, bits, share, mask, labels, tables, choices, chosen, product)

    def prepare_server(self, offline: ServerOffline, number: int, first: int, count: int, bits: int) -> _Server:
        zeros = offline.labels(number, first, bits, count)
        zero_choice, one_choice = offline.random_ot(number, first, count)
        tables, permutation = garble(sign, offline, number, first, zeros, bits)
        offline.send_tables(number, tables)
        product = offline.product(number, first, permutation[0])
        return _Server(
            offline.seed, number, bits, offline.delta, permutation[0], zero_choice - one_choice, product - zero_choice
        )

    def open(self, channel: Channel, material: _Server, share: Ring) -> Ring:
        channel.announce("sign", open_bytes(len(share), material.bits) + 8 * len(share))
        open_labels(channel, material.seed, material.number, material.delta, share, material.bits)
        channel.send_part(reduce(material.difference + _signed(material.permutation) * share))
        return share

    def answer(self, channel: Channel, material: _Client) -> tuple[Any, ...]:
        count = len(material.share)
        channel.expect("sign", open_bytes(count, material.bits) + 8 * count)
        decided = evaluate(
            sign, material.hash, channel, material.first, material.labels, material.bits, material.tables
        )[0]
        corrections = ring_of(channel.receive_part(8 * count))
        flips = decided ^ material.choices
        brackets = material.product + material.chosen + material.choices * corrections
        share = decided * material.share + _signed(flips) * brackets
        return reduce(share - material.mask), pack_bits(flips)

    def answer_bytes(self, count: int) -> int:
        return 8 * count + -(-count // 8)

    def close(self, material: _Server, opened: Ring, answer: NDArray[np.uint8]) -> Ring:
        share, count = opened, len(opened)
        masked, flips = ring_of(answer[: 8 * count]), bits_of(answer[8 * count :], count)
        permutation = material.permutation
        own = permutation * share + flips * (_signed(permutation) * share) + _signed(flips) * material.constant
        return reduce(own + masked)
