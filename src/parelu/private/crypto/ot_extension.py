"""Oblivious transfer extension: from 128 base transfers to any number, semi-honest.

IKNP in the form of Asharov, Lindell, Schneider, Zohner 2013, section 5.1. The raw outputs are correlated: the sender
has q, the receiver t = q ⊕ choice·Δ, with the sender's Δ; with Δ of colour 1 they are labels of a garbled circuit.
Hashed with unique tweaks they are random transfers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError
from parelu.private.crypto.garbling import chunks
from parelu.private.crypto.hash import OT_DOMAIN, Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks, Stream
from parelu.private.crypto.ring import Ring, reduce

BASE = 128
STEP = 1 << 17  # transfers at a time: what bounds the memory beside the message and the result
HASHED = 1 << 13  # transfers hashed at a time: their blocks stay in the cache


def message_bytes(count: int) -> int:
    """Length of the receiver's message for `count` transfers."""
    return BASE * _bytes(count)


def _bytes(count: int) -> int:
    """Bytes of `count` bits."""
    return -(-count // 8)


def _padded(count: int) -> int:
    """`count` rounded up to whole blocks of 128 transfers; both parties' streams go so far."""
    return -(-count // BASE) * BASE


def _streams(seeds: NDArray[np.uint8]) -> list[Stream]:
    return [Stream(seed.tobytes(), "extension") for seed in seeds]


def _parts(message: NDArray[np.uint8], rows: Blocks, count: int) -> Iterator[tuple[slice, NDArray[np.uint8], Blocks]]:
    """Of each step: its transfers, its part of the message (128, bytes), and its part of the padded rows."""
    for step in chunks(count, STEP):
        start, size = step.start, step.stop - step.start
        part = message[message_bytes(start) :][: message_bytes(size)].reshape(BASE, _bytes(size))
        yield step, part, rows[start : start + _padded(size)]


class ExtensionReceiver:
    """Chooses. pairs: uint8 (128, 2, 16), both seeds of each base transfer."""

    def __init__(self, pairs: NDArray[np.uint8]) -> None:
        self._zero, self._one = _streams(pairs[:, 0]), _streams(pairs[:, 1])

    def extend(self, choices: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Blocks]:
        """choices: uint8 (n,) of 0 and 1 → the message, uint8 (128·⌈n / 8⌉,), and t, (n, 2)."""
        n = len(choices)
        message, rows = np.empty(message_bytes(n), np.uint8), np.empty((_padded(n), 2), np.uint64)
        for step, part, out in _parts(message, rows, n):
            packed = np.packbits(choices[step], bitorder="little")
            columns = np.empty((BASE, len(out) // 8), np.uint8)
            for column, sent, zero, one in zip(columns, part, self._zero, self._one, strict=True):
                column[:] = zero.bytes(len(column))
                np.bitwise_xor(column[: len(packed)], packed, out=sent)
                sent ^= one.bytes(len(column))[: len(packed)]
            kernels.transpose_bits(columns.view(np.uint64), out)
        return message, rows[:n]


class ExtensionSender:
    """Has Δ. choices: uint8 (128,), its bits, the last one 1; seeds: uint8 (128, 16), the chosen ones."""

    def __init__(self, choices: NDArray[np.uint8], seeds: NDArray[np.uint8]) -> None:
        assert choices[-1] == 1, "Δ needs colour 1"
        self.delta: Blocks = np.packbits(choices, bitorder="little").view(np.uint64)
        self._masks = np.uint8(0) - choices
        self._chosen = _streams(seeds)

    def extend(self, message: NDArray[np.uint8], n: int) -> Blocks:
        """q = t ⊕ choice·Δ, (n, 2); raises ProtocolError where the message has another length."""
        if len(message) != message_bytes(n):
            raise ProtocolError(f"{len(message)} bytes for {n} oblivious transfers, not {message_bytes(n)}")
        rows = np.empty((_padded(n), 2), np.uint64)
        for _, part, out in _parts(message, rows, n):
            columns = np.empty((BASE, len(out) // 8), np.uint8)
            for column, received, mask, stream in zip(columns, part, self._masks, self._chosen, strict=True):
                column[:] = stream.bytes(len(column))
                column[: len(received)] ^= received & mask
            kernels.transpose_bits(columns.view(np.uint64), out)
        return rows[:n]


def random_ot_sender(q: Blocks, delta: Blocks, hash: Hash, first: int, use: int = OT_DOMAIN) -> tuple[Ring, Ring]:
    """Two random elements a transfer, (n,) each, of which the receiver has one; tweaks (first + i, use)."""
    zero, one = np.empty((2, len(q)), np.uint64)
    for part in chunks(len(q), HASHED):
        zero[part] = random_ot_receiver(q[part], hash, first + part.start, use)
        one[part] = random_ot_receiver(q[part] ^ delta, hash, first + part.start, use)
    return zero, one


def random_ot_receiver(t: Blocks, hash: Hash, first: int, use: int = OT_DOMAIN) -> Ring:
    """The chosen element of each transfer, (n,)."""
    out = np.empty(len(t), np.uint64)
    for part in chunks(len(t), HASHED):
        out[part] = hash(t[part], first + part.start, use)[:, 0]
    return reduce(out)
