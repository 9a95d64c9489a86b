"""What the client learns at the end: the logits, or only which is the largest."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.garbling import argmax
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import Blocks
from parelu.private.crypto.ring import Ring, encode, reduce
from parelu.private.protocol.correlations import ClientOffline, ServerOffline
from parelu.private.protocol.relu import evaluate, garble, open_bytes, open_labels, planes, table_blocks, words
from parelu.private.transport.channel import Channel, bits_of, pack_bits, ring_of


class Reveal(abc.ABC):
    """The end of an inference: one message, server → client."""

    name: ClassVar[str]

    @abc.abstractmethod
    def instances(self, classes: int) -> int:
        """Numbers of garbled instances that it takes."""

    @abc.abstractmethod
    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Ring, bits: int) -> Any:
        """The client's material; share: of the last value, (classes,)."""

    @abc.abstractmethod
    def prepare_server(self, offline: ServerOffline, number: int, first: int, classes: int, bits: int) -> Any: ...

    @abc.abstractmethod
    def open(self, channel: Channel, material: Any, share: Ring) -> None:
        """Server → client, given the server's share of the last value."""

    @abc.abstractmethod
    def answer(self, channel: Channel, material: Any) -> Ring:
        """Client: what is revealed."""


class Logits(Reveal):
    """The last value, (classes,)."""

    name: ClassVar[str] = "logits"

    def instances(self, classes: int) -> int:
        return 0

    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Ring, bits: int) -> Ring:
        return share

    def prepare_server(self, offline: ServerOffline, number: int, first: int, classes: int, bits: int) -> None:
        return None

    def open(self, channel: Channel, material: None, share: Ring) -> None:
        channel.send("outp", share)

    def answer(self, channel: Channel, material: Ring) -> Ring:
        return reduce(material + ring_of(channel.receive("outp", 8 * len(material))))


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="label, client"):
    hash: Hash
    first: int
    bits: int
    labels: Blocks
    tables: Blocks


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="label, server"):
    seed: bytes
    number: int
    bits: int
    delta: Blocks
    permutation: Any


def _padded(classes: int) -> int:
    """The tournament's size: a power of two."""
    return 1 << (classes - 1).bit_length()


class Label(Reveal):
    """The index of the largest logit, (1,): arg-max in a garbled circuit. The server learns nothing of it."""

    name: ClassVar[str] = "label"

    def instances(self, classes: int) -> int:
        return _padded(classes)

    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Ring, bits: int) -> _Client:
        count = _padded(len(share))
        padded = np.zeros(count, np.uint64)
        padded[: len(share)] = share
        labels = offline.labels(number, first, planes(padded, bits))
        tables = offline.tables(number, table_blocks(argmax, bits, bits, count, count))
        return _Client(offline.hash, first, bits, labels, tables)

    def prepare_server(self, offline: ServerOffline, number: int, first: int, classes: int, bits: int) -> _Server:
        count = _padded(classes)
        zeros = offline.labels(number, first, bits, count)
        tables, permutation = garble(argmax, offline, number, first, zeros, bits, count)
        offline.send_tables(number, tables)
        return _Server(offline.seed, number, bits, offline.delta, permutation[:, 0])

    def open(self, channel: Channel, material: _Server, share: Ring) -> None:
        count = _padded(len(share))
        padded = np.full(count, encode(np.array(-(1 << (material.bits - 2))))[()], np.uint64)  # loses to every logit
        padded[: len(share)] = share
        decoding = pack_bits(material.permutation)
        channel.announce("labl", open_bytes(count, material.bits) + len(decoding))
        open_labels(channel, material.seed, material.number, material.delta, padded, material.bits, count)
        channel.send_part(decoding)

    def answer(self, channel: Channel, material: _Client) -> Ring:
        count = material.labels.shape[1]
        levels = count.bit_length() - 1
        channel.expect("labl", open_bytes(count, material.bits) + -(-levels // 8))
        output = evaluate(
            argmax, material.hash, channel, material.first, material.labels, material.bits, material.tables, count
        )[:, 0]
        bits = output ^ bits_of(channel.receive_part(-(-levels // 8)), levels)
        return words(bits[::-1, None])


REVEALS: dict[str, Reveal] = {reveal.name: reveal for reveal in (Logits(), Label())}
