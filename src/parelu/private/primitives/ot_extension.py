"""Oblivious transfer extension: from 128 base transfers to any number, semi-honest.

IKNP in the form of Asharov, Lindell, Schneider, Zohner 2013, section 5.1. The raw outputs are correlated: the sender
has q, the receiver t = q ⊕ choice·Δ, with the sender's Δ; with Δ of colour 1 they are labels of a garbled circuit.
Hashed with unique tweaks they are random transfers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parelu.private.errors import ProtocolError
from parelu.private.primitives.hash import OT_DOMAIN, Hash
from parelu.private.primitives.kernels import kernels
from parelu.private.primitives.prg import Blocks, Stream
from parelu.private.ring import MASK, Ring

BASE = 128
STEP = 1 << 15  # transfers at a time: 128 columns of so many bits stay in the cache


def _streams(seeds: NDArray[np.uint8]) -> list[Stream]:
    return [Stream(seed.tobytes(), "extension") for seed in seeds]


def _steps(count: int) -> list[int]:
    """Transfers of each step, the last one rounded up to whole blocks of 128."""
    padded = -(-count // BASE) * BASE
    return [min(STEP, padded - start) for start in range(0, padded, STEP)]


def message_bytes(count: int) -> int:
    """Length of the receiver's message for `count` transfers."""
    return 16 * sum(_steps(count))


def _rows(columns: NDArray[np.uint8]) -> Blocks:
    """(128, n / 8) packed bits → (n, 2)."""
    out = np.empty((8 * columns.shape[1], 2), np.uint64)
    kernels.transpose_bits(np.ascontiguousarray(columns).view(np.uint64), out)
    return out


class ExtensionReceiver:
    """Chooses. pairs: uint8 (128, 2, 16), both seeds of each base transfer."""

    def __init__(self, pairs: NDArray[np.uint8]) -> None:
        self._zero, self._one = _streams(pairs[:, 0]), _streams(pairs[:, 1])

    def extend(self, choices: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Blocks]:
        """choices: uint8 (n,) of 0 and 1 → the message, uint8, and t, (n, 2)."""
        count = len(choices)
        message = np.empty(message_bytes(count), np.uint8)
        rows, position, sent = np.empty((count, 2), np.uint64), 0, 0
        for size in _steps(count):
            packed = np.zeros(size // 8, np.uint8)
            part = np.packbits(choices[position : position + size], bitorder="little")
            packed[: len(part)] = part
            columns = np.stack([stream.bytes(size // 8) for stream in self._zero])
            masked = message[sent : sent + 16 * size].reshape(BASE, size // 8)
            for column, out, stream in zip(columns, masked, self._one, strict=True):
                np.bitwise_xor(column, stream.bytes(size // 8), out=out)
                out ^= packed
            end = min(position + size, count)
            rows[position:end] = _rows(columns)[: end - position]
            position, sent = end, sent + 16 * size
        return message, rows


class ExtensionSender:
    """Has Δ. choices: uint8 (128,), its bits, the last one 1; seeds: uint8 (128, 16), the chosen ones."""

    def __init__(self, choices: NDArray[np.uint8], seeds: NDArray[np.uint8]) -> None:
        assert choices[-1] == 1, "Δ needs colour 1"
        self.delta: Blocks = np.packbits(choices, bitorder="little").view(np.uint64)
        self._masks = (np.uint8(0) - choices)[:, None]
        self._chosen = _streams(seeds)

    def extend(self, message: NDArray[np.uint8], count: int) -> Blocks:
        """q, (count, 2); raises ProtocolError where the message has another length."""
        if len(message) != message_bytes(count):
            raise ProtocolError(f"{len(message)} bytes for {count} oblivious transfers, not {message_bytes(count)}")
        rows, position, received = np.empty((count, 2), np.uint64), 0, 0
        for size in _steps(count):
            columns = np.stack([stream.bytes(size // 8) for stream in self._chosen])
            columns ^= message[received : received + 16 * size].reshape(BASE, size // 8) & self._masks
            end = min(position + size, count)
            rows[position:end] = _rows(columns)[: end - position]
            position, received = end, received + 16 * size
        return rows


def random_ot_sender(q: Blocks, delta: Blocks, hash: Hash, first: int, use: int = OT_DOMAIN) -> tuple[Ring, Ring]:
    """Two random elements a transfer, (n,) each, of which the receiver has one; tweaks (first + i, use)."""
    return hash(q, first, use)[:, 0] & MASK, hash(q ^ delta, first, use)[:, 0] & MASK


def random_ot_receiver(t: Blocks, hash: Hash, first: int, use: int = OT_DOMAIN) -> Ring:
    """The chosen element of each transfer, (n,)."""
    return hash(t, first, use)[:, 0] & MASK
