"""Oblivious transfer extension: from 128 base transfers to any number, secure where a party deviates.

SoftSpokenOT (Roy 2022, ePrint 2022/192) with the repetition code. The raw outputs are correlated: the sender has q, the
receiver t = q ⊕ choice·Δ, with the sender's Δ; with Δ of colour 1 they are labels of a garbled circuit. Hashed with
unique tweaks they are random transfers.

Δ is cut into groups of k bits. For each the receiver has 2^k streams and the sender all but that of the number δ that
its bits make, so that of sums of streams r_y the receiver has u = Σ r_y and v = Σ y·r_y, the sender v ⊕ δ·u (Roy's
section 3.1). The receiver sends u ⊕ choices, and so both have the group's columns of t and q.

That all groups were sent the same choices is checked for each step by a linear hash of the columns, under a key that is
a hash of what was sent (Fiat and Shamir). 128 sacrificed transfers hide the choices' hash. A receiver that deviates
passes where it guesses the bits of Δ of the groups in which it did.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError
from parelu.private.crypto import puncture
from parelu.private.crypto.garbling import chunks
from parelu.private.crypto.hash import LINEAR_BYTES, OT_DOMAIN, Hash, linear_hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks, Stream
from parelu.private.crypto.ring import Elements

BASE = 128
WIDTH = 4  # k: bits of Δ in a group; more is fewer bytes and more streams (benchmarks/transfers.py)
SACRIFICED = 128
STEP = 1 << 17  # transfers at a time: what bounds the memory beside the message and the result
HASHED = 1 << 13  # transfers hashed at a time: their blocks stay in the cache
DIGEST = 32


def message_bytes(count: int, width: int = WIDTH) -> int:
    """Length of the receiver's message for `count` transfers."""
    whole, rest = divmod(count, STEP)
    return whole * _step_bytes(STEP, width) + (_step_bytes(rest, width) if rest else 0)


def trees_bytes(width: int = WIDTH) -> int:
    """Length of the receiver's message before the first transfer."""
    return sum(puncture.message_bytes(part.stop - part.start) for part in _groups(width)) + DIGEST


def _step_bytes(count: int, width: int) -> int:
    return len(_groups(width)) * (_rows(count) // 8) + LINEAR_BYTES + DIGEST


def _rows(count: int) -> int:
    """Transfers that a step of `count` makes: whole blocks, and those that are sacrificed."""
    return -(-count // BASE) * BASE + SACRIFICED


def _groups(width: int) -> list[slice]:
    """The bits of Δ in each group."""
    return list(chunks(BASE, width))


@dataclasses.dataclass(frozen=True)
class _Step:
    """Of some transfers that are made together: the parts of the message, and columns (128, bytes) of t or q."""

    transfers: slice
    corrections: NDArray[np.uint8]
    hashed: NDArray[np.uint8]
    digest: NDArray[np.uint8]
    columns: NDArray[np.uint8]

    def rows(self, out: Blocks) -> None:
        """The columns as rows; those that are sacrificed go where the next step's will, or behind all others."""
        length = 8 * self.columns.shape[1]
        kernels.transpose_bits(self.columns.view(np.uint64), out[self.transfers.start :][:length])


class _Extension:
    """What both parties do. leaves: of each group, those that this party has, by number, the last ones of 2^k.

    context: 32 bytes that bind the connection, the base transfers and the trees.
    """

    def __init__(self, leaves: Sequence[NDArray[np.uint8]], context: bytes, width: int) -> None:
        self.width, self._context, self._number = width, context, 0
        self._streams = [[Stream(seed.tobytes(), "extension") for seed in seeds] for seeds in leaves]

    def _steps(self, count: int, message: NDArray[np.uint8]) -> Iterator[_Step]:
        buffer, position = np.empty(BASE * _rows(min(count, STEP)) // 8, np.uint8), 0
        for transfers in chunks(count, STEP):
            size = transfers.stop - transfers.start
            part = message[position:][: _step_bytes(size, self.width)]
            position += len(part)
            corrections = part[: -LINEAR_BYTES - DIGEST].reshape(len(self._streams), -1)
            columns = buffer[: BASE * corrections.shape[1]].reshape(BASE, -1)
            yield _Step(transfers, corrections, part[-LINEAR_BYTES - DIGEST : -DIGEST], part[-DIGEST:], columns)

    def _sums(self, columns: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Of each group the sum of its streams; its columns are added to."""
        length = columns.shape[1]
        leaves = np.empty((1 << self.width, length + 16), np.uint8)  # with bytes to spare that the cipher asks for
        zeros = bytes(length)
        for bits, streams in zip(_groups(self.width), self._streams, strict=True):
            used = leaves[: 1 << bits.stop - bits.start]
            used[0] = 0
            for row, stream in zip(used[-len(streams) :], streams, strict=True):
                stream.fill(row, zeros)
            kernels.fold(used.view(np.uint64), columns[bits].view(np.uint64))
            yield used[0, :length]

    def _challenge(self, corrections: NDArray[np.uint8]) -> bytes:
        """The key, 16 bytes, of the linear hash of the next step."""
        self._number += 1
        digest = hashlib.sha256(self._context + self._number.to_bytes(8, "little"))
        digest.update(corrections)  # pyright: ignore[reportArgumentType]
        return digest.digest()[:16]


def _check(key: bytes, hashes: NDArray[np.uint8]) -> bytes:
    """What the receiver sends of the columns' hashes, (128, 16)."""
    return hashlib.sha256(key + hashes.tobytes()).digest()


class ExtensionReceiver(_Extension):
    """Chooses. pairs: uint8 (128, 2, 16), both seeds of each base transfer; context: their transcript.

    trees: what the sender needs before the first transfer.
    """

    def __init__(self, pairs: NDArray[np.uint8], context: bytes, width: int = WIDTH) -> None:
        grown = [puncture.grow(pairs[bits][::-1], context, number) for number, bits in enumerate(_groups(width))]
        leaves, messages, checks = zip(*grown, strict=True)
        self.trees = b"".join(messages) + hashlib.sha256(b"".join(checks)).digest()
        super().__init__(leaves, _bound(context, self.trees), width)

    def extend(self, choices: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Blocks]:
        """choices: uint8 (n,) of 0 and 1 → the message and t, (n, 2)."""
        n = len(choices)
        message, rows = np.empty(message_bytes(n, self.width), np.uint8), np.empty((_rows(n), 2), np.uint64)
        for step in self._steps(n, message):
            packed = np.packbits(choices[step.transfers], bitorder="little")
            chosen = np.zeros_like(step.columns[0])
            chosen[: len(packed)] = packed
            step.columns[:] = 0
            for number, total in enumerate(self._sums(step.columns)):
                if not number:  # the sacrificed choices are what this group's streams say
                    chosen[-SACRIFICED // 8 :] = total[-SACRIFICED // 8 :]
                np.bitwise_xor(total, chosen, out=step.corrections[number])
            key = self._challenge(step.corrections)
            step.hashed[:] = linear_hash(key, chosen[None])[0]
            step.digest[:] = np.frombuffer(_check(key, linear_hash(key, step.columns)), np.uint8)
            step.rows(rows)
        return message, rows[:n]


class ExtensionSender(_Extension):
    """Has Δ. choices: uint8 (128,), its bits, the last one 1; seeds: uint8 (128, 16), the chosen ones; context: the
    base transfers' transcript; trees: the receiver's. Raises ProtocolError where the trees are not consistent."""

    def __init__(
        self, choices: NDArray[np.uint8], seeds: NDArray[np.uint8], context: bytes, trees: bytes, width: int = WIDTH
    ) -> None:
        assert choices[-1] == 1, "Δ needs colour 1"
        if len(trees) != trees_bytes(width):
            raise ProtocolError(f"{len(trees)} bytes of trees for oblivious transfers, not {trees_bytes(width)}")
        self.delta: Blocks = np.packbits(choices, bitorder="little").view(np.uint64)
        self._masks = (np.uint8(0) - choices)[:, None]
        leaves, digest, position = [], hashlib.sha256(), 0
        for number, bits in enumerate(_groups(width)):
            message = trees[position:][: puncture.message_bytes(bits.stop - bits.start)]
            position += len(message)
            had, checks = puncture.regrow(seeds[bits][::-1], choices[bits][::-1], message, context, number)
            digest.update(checks)
            leaves.append(had[1:])
        if not hmac.compare_digest(digest.digest(), trees[position:]):
            raise ProtocolError("the peer's trees for oblivious transfers are not consistent")
        super().__init__(leaves, _bound(context, trees), width)

    def extend(self, message: NDArray[np.uint8], n: int) -> Blocks:
        """q = t ⊕ choice·Δ, (n, 2); raises ProtocolError where the message has another length, or the choices were not
        the same for all groups."""
        if len(message) != (due := message_bytes(n, self.width)):
            raise ProtocolError(f"{len(message)} bytes for {n} oblivious transfers, not {due}")
        rows = np.empty((_rows(n), 2), np.uint64)
        for step in self._steps(n, message):
            for bits, correction in zip(_groups(self.width), step.corrections, strict=True):
                np.bitwise_and(self._masks[bits], correction, out=step.columns[bits])
            for _ in self._sums(step.columns):
                pass
            key = self._challenge(step.corrections)
            expected = _check(key, linear_hash(key, step.columns) ^ (self._masks & step.hashed))
            if not hmac.compare_digest(expected, step.digest.tobytes()):
                raise ProtocolError("the peer's choices of oblivious transfers are not consistent")
            step.rows(rows)
        return rows[:n]


def _bound(context: bytes, trees: bytes) -> bytes:
    return hashlib.sha256(context + trees).digest()


def random_ot_sender(
    q: Blocks, delta: Blocks, hash: Hash, first: int, use: int = OT_DOMAIN
) -> tuple[Elements, Elements]:
    """Two random elements a transfer, (n,) each, of which the receiver has one; tweaks (first + i, use)."""
    zero, one = np.empty((2, len(q)), np.uint64)
    for part in chunks(len(q), HASHED):
        zero[part] = random_ot_receiver(q[part], hash, first + part.start, use)
        one[part] = random_ot_receiver(q[part] ^ delta, hash, first + part.start, use)
    return zero, one


def random_ot_receiver(t: Blocks, hash: Hash, first: int, use: int = OT_DOMAIN) -> Elements:
    """The chosen element of each transfer, (n,)."""
    out = np.empty(len(t), np.uint64)
    for part in chunks(len(t), HASHED):
        out[part] = hash(t[part], first + part.start, use)[:, 0]
    return out
