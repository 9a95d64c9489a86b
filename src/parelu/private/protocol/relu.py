"""The contract of a ReLU protocol, and what all that use garbled circuits share.

Online a protocol is one round trip: the server opens, the client answers, the server closes. Before it the client knows
its share of x; after it the client's share is the fresh mask that it drew offline, and the server's is relu(x) − mask.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu import registry
from parelu.private.crypto.garbling import CHUNK, Clear, Evaluator, Garbler, Machine, chunks, colours
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks, Stream
from parelu.private.crypto.ring import Elements, Ring
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic, ServerOffline
from parelu.private.transport.channel import Channel
from parelu.private.transport.messages import Messages

Circuit = Callable[[Machine, Sequence[Any], Sequence[Any]], list[Any]]  # (client's wires, server's wires) → outputs


class Relu(abc.ABC):
    """A ReLU protocol. It is stateless: what a party keeps for an inference is in the material it prepares.

    Its output is relu(x / 2^cut), rounded to the nearest, halves up: with a cut above 0 it does the truncation that is
    in front of it, exactly. bits: m, |x / 2^cut| < 2^(m − 1); ring: the program's, in which shares add up to x and
    to the output; their bits above it are anything.
    """

    name: ClassVar[str]
    resists: ClassVar[bool] = False  # with `seal` a server that deviates learns nothing of the image
    compares: ClassVar[bool] = False  # it consumes `comparison` of the offline phase
    truncates: ClassVar[bool] = False  # it takes a cut above 0

    @abc.abstractmethod
    def prepare_client(
        self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int, cut: int, ring: Ring
    ) -> Any:
        """Material for n ReLUs whose share, (n,), the client knows; `.mask` is its share of the outputs."""

    @abc.abstractmethod
    def prepare_server(
        self, offline: ServerOffline, number: int, first: int, count: int, bits: int, cut: int, ring: Ring
    ) -> Any:
        """The server's material for the same ReLUs."""

    @abc.abstractmethod
    def prepare_traffic(self, offline: OfflineTraffic, count: int, bits: int, cut: int, ring: Ring) -> list[Messages]:
        """What the two send each other there."""

    @abc.abstractmethod
    def material_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> tuple[int, int]:
        """Of the arrays of the client's and of the server's material."""

    @abc.abstractmethod
    def open(self, channel: Channel, material: Any, share: Elements) -> Any:
        """Server → client, given the server's share (n,); then its own work, while the client is at its. Returns what
        `close` takes."""

    @abc.abstractmethod
    def open_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> int:
        """Length of the message that opens."""

    @abc.abstractmethod
    def answer(self, channel: Channel, material: Any) -> tuple[Any, ...]:
        """Client: read what the server opened; returns what `close` needs, sent by the caller as one message."""

    @abc.abstractmethod
    def answer_bytes(self, count: int, cut: int) -> int:
        """Length of the answer."""

    @abc.abstractmethod
    def close(self, material: Any, opened: Any, answer: NDArray[np.uint8]) -> Elements:
        """Server: its share of the outputs, (n,). opened: of `open`."""


def relus() -> dict[str, Relu]:
    """Name → protocol: those in `parelu.private.protocol`, and those of plugins."""
    return registry.instances(Relu, "parelu.private.protocol")


def planes(values: Elements, bits: int) -> NDArray[np.uint8]:
    """The lowest bits of (n,) values as (bits, n) of 0 and 1."""
    return ((values >> np.arange(bits, dtype=np.uint64)[:, None]) & np.uint64(1)).astype(np.uint8)


def halved(share: Elements, cut: int) -> Elements:
    """The server's share of x + 2^cut/2: rounded down after that, x / 2^cut is rounded to the nearest."""
    return share + np.uint64(1 << cut >> 1)


def words(bits: NDArray[np.uint8]) -> Elements:
    """The inverse of `planes`."""
    return (bits.astype(np.uint64) << np.arange(len(bits), dtype=np.uint64)[:, None]).sum(0, dtype=np.uint64)


@functools.cache
def _blocks(circuit: Circuit, client_wires: int, server_wires: int, count: int) -> int:
    clear, zero = Clear(), np.zeros(count, np.uint8)
    circuit(clear, [zero] * client_wires, [zero] * server_wires)
    return clear.blocks


def table_blocks(circuit: Circuit, client_wires: int, server_wires: int, count: int, chunk: int = CHUNK) -> int:
    """Blocks of garbled tables of `count` instances, garbled `chunk` at a time."""
    return sum(_blocks(circuit, client_wires, server_wires, p.stop - p.start) for p in chunks(count, chunk))


def garble(
    circuit: Circuit,
    offline: ServerOffline,
    number: int,
    first: int,
    client_zeros: Blocks,
    server_wires: int,
    chunk: int = CHUNK,
) -> tuple[Blocks, NDArray[np.uint8]]:
    """Tables (blocks, 2), and the colours (outputs, n) of the zero labels of the outputs."""
    client_wires, count = client_zeros.shape[:2]
    tables = np.empty((table_blocks(circuit, client_wires, server_wires, count, chunk), 2), np.uint64)
    own, found, position = Stream(offline.seed, "labels", number), [], 0
    for part in chunks(count, chunk):
        size = part.stop - part.start
        end = position + _blocks(circuit, client_wires, server_wires, size)
        machine = Garbler(offline.hash, offline.delta, first + part.start, tables[position:end])
        outputs = circuit(machine, list(client_zeros[:, part]), list(own.blocks(server_wires, size)))
        found.append(np.stack([colours(output) for output in outputs]))
        position = end
    return tables, np.concatenate(found, axis=1)


def label_bytes(count: int, server_wires: int) -> int:
    """Length of the server's active labels."""
    return 16 * count * server_wires


def open_labels(
    channel: Channel, seed: bytes, number: int, delta: Blocks, values: Elements, server_wires: int, chunk: int = CHUNK
) -> None:
    """Send the active labels of the server's input bits, chunk by chunk; the zero labels come from the seed again."""
    own = Stream(seed, "labels", number)
    for part in chunks(len(values), chunk):
        zeros = own.blocks(server_wires, part.stop - part.start)
        kernels.select_labels(zeros, delta, values[part], zeros)
        channel.send_part(zeros)


def evaluate(
    circuit: Circuit,
    hash: Hash,
    channel: Channel,
    first: int,
    client_labels: Blocks,
    server_wires: int,
    tables: Blocks,
    chunk: int = CHUNK,
) -> NDArray[np.uint8]:
    """Receive the server's labels and evaluate; returns the colours (outputs, n)."""
    client_wires, count = client_labels.shape[:2]
    found, position = [], 0
    for part in chunks(count, chunk):
        size = part.stop - part.start
        labels = channel.receive_part(label_bytes(size, server_wires)).view(np.uint64).reshape(server_wires, size, 2)
        end = position + _blocks(circuit, client_wires, server_wires, size)
        machine = Evaluator(hash, first + part.start, tables[position:end])
        outputs = circuit(machine, list(client_labels[:, part]), list(labels))
        found.append(np.stack([colours(output) for output in outputs]))
        position = end
    return np.concatenate(found, axis=1)
