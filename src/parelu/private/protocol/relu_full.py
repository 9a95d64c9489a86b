"""ReLU protocol `full`: relu(x) − mask inside one garbled circuit over all 59 bits, as in DELPHI (2020, section 4.1).

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
from parelu.private.crypto.ring import BITS, Ring, reduce
from parelu.private.protocol.correlations import ClientOffline, ServerOffline
from parelu.private.protocol.relu import (
    Circuit,
    Relu,
    evaluate,
    garble,
    halved,
    open_bytes,
    open_labels,
    planes,
    table_blocks,
    words,
)
from parelu.private.transport.channel import Channel, ring_of


@functools.cache
def _circuit(cut: int) -> Circuit:
    def circuit(machine: Machine, client: Sequence[Any], server: Sequence[Any]) -> list[Any]:
        return masked_relu(machine, client[:BITS], server, client[BITS:], cut)

    return circuit


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="full, client"):
    hash: Hash
    first: int
    cut: int
    mask: Ring
    labels: Blocks
    tables: Blocks


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="full, server"):
    seed: bytes
    number: int
    cut: int
    delta: Blocks
    permutation: Ring


class Full(Relu):
    name: ClassVar[str] = "full"
    truncates: ClassVar[bool] = True

    def prepare_client(
        self, offline: ClientOffline, number: int, first: int, share: Ring, bits: int, cut: int
    ) -> _Client:
        mask = offline.stream(number, "mask").ring(len(share))
        inputs = np.concatenate([planes(reduce(share), BITS), planes(mask, BITS)])
        labels = offline.labels(number, first, inputs)
        tables = offline.tables(number, table_blocks(_circuit(cut), 2 * BITS, BITS, len(share)))
        return _Client(offline.hash, first, cut, mask, labels, tables)

    def prepare_server(
        self, offline: ServerOffline, number: int, first: int, count: int, bits: int, cut: int
    ) -> _Server:
        zeros = offline.labels(number, first, 2 * BITS, count)
        tables, permutation = garble(_circuit(cut), offline, number, first, zeros, BITS)
        offline.send_tables(number, tables)
        return _Server(offline.seed, number, cut, offline.delta, words(permutation))

    def open(self, channel: Channel, material: _Server, share: Ring) -> None:
        channel.announce("full", open_bytes(len(share), BITS))
        rounded = halved(share, material.cut)
        open_labels(channel, material.seed, material.number, material.delta, rounded, BITS)

    def answer(self, channel: Channel, material: _Client) -> tuple[Any, ...]:
        channel.expect("full", open_bytes(len(material.mask), BITS))
        circuit = _circuit(material.cut)
        output = evaluate(circuit, material.hash, channel, material.first, material.labels, BITS, material.tables)
        return (words(output),)

    def answer_bytes(self, count: int, cut: int) -> int:
        return 8 * count

    def close(self, material: _Server, opened: None, answer: NDArray[np.uint8]) -> Ring:
        return ring_of(answer) ^ material.permutation
