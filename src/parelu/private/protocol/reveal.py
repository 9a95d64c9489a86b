"""What the client learns at the end: the label, the logits in steps, or all their bits.

With last values z and dithers D that only the server knows, the client learns

    label          the arg-max of z
    label 2^k      the arg-max of z + D
    logits 2^k     floor((z + D)/2^k)·2^k for each class
    exact          z

A dither is the sum of two uniform integers in [0, 2^k), less 2^(k − 1), drawn for each class and query: the error of
floor((z + D)/2^k)·2^k has the mean −1/2 and the variance (4^k − 1)/4 for every z (of two, as in audio: with one, a z
that is a multiple of 2^k would have no error, and small changes of it would be seen). The error is below 1.5·2^k, so
that a label whose margin is at least 3·2^k does not change; the stated step is 4·2^k.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import re
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.errors import NoResult, UserError
from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.garbling import argmax, total
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import Blocks, Stream
from parelu.private.crypto.ring import Elements, encode
from parelu.private.lowering.program import Program
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic, ServerOffline
from parelu.private.protocol.relu import evaluate, garble, label_bytes, open_labels, planes, table_blocks, words
from parelu.private.transport.channel import Channel, bits_of, elements_of, pack_bits
from parelu.private.transport.messages import Messages

RANGE_STEPS = 11  # of an output of n bits the low n − 11 are cut unless a step is given
LEAST_RANGE = 3  # and never more than the low n − 3


@dataclasses.dataclass(frozen=True)
class Reveal(abc.ABC):
    """The end of an inference: one message, server → client.

    Attributes:
        cut: k, the dither's size in bits; 0 for none.
    """

    name: ClassVar[str]

    cut: int = 0

    @property
    def text(self) -> str:
        """As it is stated to a client, and pinned; `reveal_of` reads it."""
        return f"{self.name} 2^{self.cut}" if self.cut else self.name

    def step(self, program: Program) -> float:
        """Logits: a label whose margin exceeds this does not change."""
        return 4 * 2.0**self.cut * program.output_unit if self.cut else 0.0

    def check(self, program: Program) -> None:
        """Raises UserError where the output has no room for the dither."""
        most = min(program.output_bits, program.ring.bits - 1) - LEAST_RANGE
        if self.cut > most:
            raise UserError(
                f"reveal {self.text}: of an output of {program.output_bits} bits at most the low {most} can be cut"
            )

    def check_answer(self, program: Program, answer: NDArray[np.int64]) -> None:
        """Raises NoResult where what was revealed, (N, classes) or (N, 1), cannot be of this network.

        Nothing else tells a client that bytes were changed on a connection without TLS. Of `exact` a value that is off
        by a random element of the ring is in the calibrated range once in 2^(ring's bits − output's + 1); `logits` has
        no bits beyond the output's, of which half the values are in it. A program whose output fills the ring has none.
        """
        if program.output_bits == program.ring.bits:
            return
        most = (1 << (program.output_bits - 2)) + 2 * (1 << self.cut if self.cut else 0)
        size = max(-int(answer.min()), int(answer.max()))
        if size > most:
            logit, largest = (value * program.output_unit for value in (size, most))
            raise NoResult(
                f"the answer is no result: a logit of {logit:.3g} where the network's stay below {largest:.3g}: bytes "
                "were changed on the way, which only --tls prevents, or the image is unlike those it was calibrated on"
            )

    @abc.abstractmethod
    def instances(self, classes: int) -> int:
        """Numbers of garbled instances that it takes."""

    @abc.abstractmethod
    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int) -> Any:
        """The client's material; share: of the last value, (classes,), below 2^(bits − 2)."""

    @abc.abstractmethod
    def prepare_server(self, offline: ServerOffline, number: int, first: int, classes: int, bits: int) -> Any: ...

    @abc.abstractmethod
    def prepare_traffic(self, offline: OfflineTraffic, classes: int, bits: int) -> list[Messages]:
        """What the two send each other there."""

    @abc.abstractmethod
    def material_bytes(self, classes: int, bits: int) -> tuple[int, int]:
        """Of the arrays of the client's and of the server's material."""

    @abc.abstractmethod
    def open(self, channel: Channel, material: Any, share: Elements) -> None:
        """Server → client, given the server's share of the last value, reduced to the program's ring."""

    @abc.abstractmethod
    def open_bytes(self, classes: int, bits: int) -> int:
        """Length of that message."""

    @abc.abstractmethod
    def answer(self, channel: Channel, material: Any) -> Elements:
        """Client: what is revealed; logits modulo the program's ring."""


class Exact(Reveal):
    """The last value, (classes,): for measurements, and for data of the model's owner.

    With truncations on shares, thousands of such answers to one image tell the last layer's weights
    (benchmarks/leakage.py).
    """

    name: ClassVar[str] = "exact"

    def instances(self, classes: int) -> int:
        return 0

    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int) -> Elements:
        return share

    def prepare_server(self, offline: ServerOffline, number: int, first: int, classes: int, bits: int) -> None:
        return None

    def prepare_traffic(self, offline: OfflineTraffic, classes: int, bits: int) -> list[Messages]:
        return []

    def material_bytes(self, classes: int, bits: int) -> tuple[int, int]:
        return 8 * classes, 0

    def open(self, channel: Channel, material: None, share: Elements) -> None:
        channel.send("outp", share)

    def open_bytes(self, classes: int, bits: int) -> int:
        return 8 * classes

    def answer(self, channel: Channel, material: Elements) -> Elements:
        return material + elements_of(channel.receive("outp", 8 * len(material)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="reveal, client"):
    hash: Hash
    first: int
    bits: int
    labels: Blocks
    tables: Blocks


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="reveal, server"):
    seed: bytes
    number: int
    bits: int
    delta: Blocks
    permutation: Any  # (outputs, instances)


def dither(seed: bytes, number: int, count: int, cut: int) -> Elements:
    """(count,): sums of two uniform integers below 2^cut, less 2^(cut − 1)."""
    parts = Stream(seed, "dither", number).elements(2, count) & np.uint64((1 << cut) - 1)
    return parts.sum(0, dtype=np.uint64) - np.uint64(1 << cut >> 1)


class Logits(Reveal):
    """floor((z + D)/2^k)·2^k, (classes,), as signed elements.

    The circuit adds the shares; of its outputs only the bits from k on can be decoded.
    """

    name: ClassVar[str] = "logits"

    def instances(self, classes: int) -> int:
        return classes

    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int) -> _Client:
        labels = offline.labels(number, first, planes(share, bits))
        tables = offline.tables(number, table_blocks(total, bits, bits, len(share)))
        return _Client(offline.hash, first, bits, labels, tables)

    def prepare_server(self, offline: ServerOffline, number: int, first: int, classes: int, bits: int) -> _Server:
        zeros = offline.labels(number, first, bits, classes)
        tables, permutation = garble(total, offline, number, first, zeros, bits)
        offline.send_tables(number, tables)
        return _Server(offline.seed, number, bits, offline.delta, permutation[self.cut :])

    def prepare_traffic(self, offline: OfflineTraffic, classes: int, bits: int) -> list[Messages]:
        return [*offline.labels(bits, classes), *offline.tables(table_blocks(total, bits, bits, classes))]

    def material_bytes(self, classes: int, bits: int) -> tuple[int, int]:
        client = 16 * (bits * classes + table_blocks(total, bits, bits, classes))
        return client, 16 + (bits - self.cut) * classes

    def open(self, channel: Channel, material: _Server, share: Elements) -> None:
        decoding = pack_bits(material.permutation.reshape(-1))
        dithered = share + dither(material.seed, material.number, len(share), self.cut)
        channel.announce("logi", self.open_bytes(len(share), material.bits))
        open_labels(channel, material.seed, material.number, material.delta, dithered, material.bits)
        channel.send_part(decoding)

    def open_bytes(self, classes: int, bits: int) -> int:
        return label_bytes(classes, bits) + -(-(bits - self.cut) * classes // 8)

    def answer(self, channel: Channel, material: _Client) -> Elements:
        bits, count = material.bits, material.labels.shape[1]
        high = (bits - self.cut) * count
        channel.expect("logi", self.open_bytes(count, bits))
        output = evaluate(total, material.hash, channel, material.first, material.labels, bits, material.tables)
        decoding = bits_of(channel.receive_part(-(-high // 8)), high).reshape(-1, count)
        quotients = words(output[self.cut :] ^ decoding).view(np.int64)
        signed = quotients - ((quotients >> (bits - self.cut - 1)) << (bits - self.cut))
        return encode(signed << self.cut)


class Label(Reveal):
    """The index of the largest logit, dithered where `cut`, (1,): arg-max in a garbled circuit; the server learns
    nothing of it."""

    name: ClassVar[str] = "label"

    def check(self, program: Program) -> None:
        super().check(program)
        if self._width(program.output_bits) > program.ring.bits:
            raise UserError(
                f"reveal {self.text}: an output of {program.output_bits} bits fills the ring: give --step 0"
            )

    def check_answer(self, program: Program, answer: NDArray[np.int64]) -> None:
        if int(answer.max()) >= program.classes:
            raise NoResult(
                f"the answer is no result: label {int(answer.max())} of {program.classes} classes: bytes were changed "
                "on the way, which only --tls prevents"
            )

    def instances(self, classes: int) -> int:
        return _padded(classes)

    def prepare_client(self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int) -> _Client:
        count, bits = _padded(len(share)), self._width(bits)
        padded = np.zeros(count, np.uint64)
        padded[: len(share)] = share
        labels = offline.labels(number, first, planes(padded, bits))
        tables = offline.tables(number, table_blocks(argmax, bits, bits, count, count))
        return _Client(offline.hash, first, bits, labels, tables)

    def prepare_server(self, offline: ServerOffline, number: int, first: int, classes: int, bits: int) -> _Server:
        count, bits = _padded(classes), self._width(bits)
        zeros = offline.labels(number, first, bits, count)
        tables, permutation = garble(argmax, offline, number, first, zeros, bits, count)
        offline.send_tables(number, tables)
        return _Server(offline.seed, number, bits, offline.delta, permutation[:, :1])

    def prepare_traffic(self, offline: OfflineTraffic, classes: int, bits: int) -> list[Messages]:
        count, bits = _padded(classes), self._width(bits)
        return [*offline.labels(bits, count), *offline.tables(table_blocks(argmax, bits, bits, count, count))]

    def material_bytes(self, classes: int, bits: int) -> tuple[int, int]:
        count, bits = _padded(classes), self._width(bits)
        client = 16 * (bits * count + table_blocks(argmax, bits, bits, count, count))
        return client, 16 + _levels(count)

    def open(self, channel: Channel, material: _Server, share: Elements) -> None:
        count = _padded(len(share))
        padded = np.full(count, encode(np.array(-(1 << (material.bits - 2))))[()], np.uint64)  # loses to every logit
        padded[: len(share)] = share + dither(material.seed, material.number, len(share), self.cut)
        decoding = pack_bits(material.permutation[:, 0])
        channel.announce("labl", _open_bytes(count, material.bits))
        open_labels(channel, material.seed, material.number, material.delta, padded, material.bits, count)
        channel.send_part(decoding)

    def open_bytes(self, classes: int, bits: int) -> int:
        return _open_bytes(_padded(classes), self._width(bits))

    def answer(self, channel: Channel, material: _Client) -> Elements:
        count = material.labels.shape[1]
        levels = _levels(count)
        channel.expect("labl", _open_bytes(count, material.bits))
        output = evaluate(
            argmax, material.hash, channel, material.first, material.labels, material.bits, material.tables, count
        )[:, 0]
        bits = output ^ bits_of(channel.receive_part(-(-levels // 8)), levels)
        return words(bits[::-1, None])

    def _width(self, bits: int) -> int:
        """Of the circuit: a dithered logit takes one bit more."""
        return bits + bool(self.cut)


def _padded(classes: int) -> int:
    """The tournament's size: a power of two."""
    return 1 << (classes - 1).bit_length()


def _levels(padded: int) -> int:
    """Of the tournament: bits of the index."""
    return padded.bit_length() - 1


def _open_bytes(padded: int, width: int) -> int:
    return label_bytes(padded, width) + -(-_levels(padded) // 8)


REVEALS: dict[str, type[Reveal]] = {reveal.name: reveal for reveal in (Label, Logits, Exact)}


def reveal_of(text: str) -> Reveal:
    """What `Reveal.text` states; raises ValueError for any other text."""
    found = re.fullmatch(r"(label|logits) 2\^([1-9][0-9]?)|(label|exact)", text, re.ASCII)
    if not found:
        raise ValueError("known are label, label 2^k, logits 2^k and exact")
    name, cut, plain = found.groups()
    return REVEALS[plain]() if plain else REVEALS[name](int(cut))


def reveal_for(name: str, program: Program, step: float | None = None) -> Reveal:
    """The reveal of a name in `REVEALS` with the largest step, in logits, that is not above the given one.

    step: by default 2^(n − 9) units of an output of n bits, 1/64 to 1/32 of the largest logit that calibration saw;
    0 for labels without a dither. "exact" takes none. Raises UserError where there is no such step.
    """
    if name == "exact":
        if step:
            raise UserError("exact logits have no step: leave --step out, or give --reveal logits")
        return Exact()
    if step == 0 and name == "label":
        return Label()
    if step is None:
        cut = max(1, program.output_bits - RANGE_STEPS)
    else:
        least = 8 * program.output_unit
        if not (math.isfinite(step) and step >= least):
            remedy = "; 0 is for no dither" if name == "label" else "; --reveal exact has none"
            raise UserError(f"--step {step:g}: the smallest step is {least:.2g} logits{remedy}")
        cut = math.floor(math.log2(step / (4 * program.output_unit)))
    reveal = REVEALS[name](cut)
    reveal.check(program)
    return reveal
