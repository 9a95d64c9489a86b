"""ReLU protocol `full`: relu(x) − mask in one garbled circuit over the ring's bits, as in DELPHI (2020, section 4.1).

The client gets the output's colours and sends them back; only the server can decode them.

Where the ReLU truncates, the circuit leaves out the lowest bits of the sum that it has anyway, and repeats its sign at
the top: as many ANDs fewer, exact for every x in the ring.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.garbling import Machine, masked_relu
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import Blocks
from parelu.private.crypto.ring import Elements, Ring
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic, ServerOffline
from parelu.private.protocol.relu import (
    Circuit,
    Relu,
    evaluate,
    garble,
    halved,
    label_bytes,
    open_labels,
    planes,
    table_blocks,
    words,
)
from parelu.private.transport.channel import Channel, elements_of
from parelu.private.transport.messages import Messages


@functools.cache
def _circuit(ring: Ring, cut: int) -> Circuit:
    def circuit(machine: Machine, client: Sequence[Any], server: Sequence[Any]) -> list[Any]:
        return masked_relu(machine, client[: ring.bits], server, client[ring.bits :], cut)

    return circuit


def _blocks(count: int, ring: Ring, cut: int) -> int:
    return table_blocks(_circuit(ring, cut), 2 * ring.bits, ring.bits, count)


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="full, client"):
    hash: Hash
    first: int
    ring: Ring
    cut: int
    mask: Elements
    labels: Blocks
    tables: Blocks


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="full, server"):
    seed: bytes
    number: int
    ring: Ring
    cut: int
    delta: Blocks
    permutation: Elements


class Full(Relu):
    name: ClassVar[str] = "full"
    truncates: ClassVar[bool] = True

    def prepare_client(
        self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int, cut: int, ring: Ring
    ) -> _Client:
        mask = offline.stream(number, "mask").elements(len(share))
        inputs = np.concatenate([planes(share, ring.bits), planes(mask, ring.bits)])
        labels = offline.labels(number, first, inputs)
        tables = offline.tables(number, _blocks(len(share), ring, cut))
        return _Client(offline.hash, first, ring, cut, mask, labels, tables)

    def prepare_server(
        self, offline: ServerOffline, number: int, first: int, count: int, bits: int, cut: int, ring: Ring
    ) -> _Server:
        zeros = offline.labels(number, first, 2 * ring.bits, count)
        tables, permutation = garble(_circuit(ring, cut), offline, number, first, zeros, ring.bits)
        offline.send_tables(number, tables)
        return _Server(offline.seed, number, ring, cut, offline.delta, words(permutation))

    def prepare_traffic(self, offline: OfflineTraffic, count: int, bits: int, cut: int, ring: Ring) -> list[Messages]:
        return [*offline.labels(2 * ring.bits, count), *offline.tables(_blocks(count, ring, cut))]

    def material_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> tuple[int, int]:
        client = 8 * count + 16 * (2 * ring.bits * count + _blocks(count, ring, cut))
        return client, 16 + 8 * count

    def open(self, channel: Channel, material: _Server, share: Elements) -> None:
        bits = material.ring.bits
        channel.announce("full", label_bytes(len(share), bits))
        rounded = halved(share, material.cut)
        open_labels(channel, material.seed, material.number, material.delta, rounded, bits)

    def open_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> int:
        return label_bytes(count, ring.bits)

    def answer(self, channel: Channel, material: _Client) -> tuple[Any, ...]:
        bits = material.ring.bits
        channel.expect("full", label_bytes(len(material.mask), bits))
        circuit = _circuit(material.ring, material.cut)
        output = evaluate(circuit, material.hash, channel, material.first, material.labels, bits, material.tables)
        return (words(output),)

    def answer_bytes(self, count: int, cut: int) -> int:
        return 8 * count

    def close(self, material: _Server, opened: None, answer: NDArray[np.uint8]) -> Elements:
        return elements_of(answer) ^ material.permutation
