"""Base oblivious transfers on the prime-order group of edwards25519: Endemic OT, secure where a party deviates.

Masny and Rindal 2019 (CCS), with Diffie and Hellman's key agreement: the sender sends A = aG; the receiver, for its
choice c, a uniform point R_{1−c} and R_c = bG − H_c(R_{1−c}). The sender's seeds are F_i(a·(R_i + H_i(R_{1−i}))), the
receiver's is F_c(bA). Both points are uniform whatever the choice is. H hashes to the group, F to a seed; both are
bound to the connection and the number of the transfer, F also to A and both points. In the random-oracle model, a
receiver that had both seeds would solve the gap Diffie–Hellman problem.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from nacl import bindings
from numpy.typing import NDArray

from parelu.errors import ProtocolError
from parelu.private.crypto.prg import SEED_BYTES

POINT_BYTES = 32
RESPONSE_BYTES = 2 * POINT_BYTES  # of a transfer
IDENTITY = b"\1" + bytes(31)


def _scalar() -> bytes:
    """Uniform in [1, order)."""
    while True:
        scalar = bindings.crypto_core_ed25519_scalar_reduce(os.urandom(64))
        if any(scalar):
            return scalar


def _checked(point: bytes) -> bytes:
    """A point of the peer's: canonical, on the curve, in the prime-order subgroup, not the identity."""
    if len(point) != POINT_BYTES or not bindings.crypto_core_ed25519_is_valid_point(point):
        raise ProtocolError("a point of a base oblivious transfer is not in the group")
    return point


def _digest(person: bytes, size: int, context: bytes, *parts: bytes) -> bytes:
    """parts: of fixed lengths."""
    key = hashlib.sha256(context).digest()
    return hashlib.blake2b(b"".join(parts), key=key, digest_size=size, person=person).digest()


def hash_to_group(context: bytes, number: int, choice: int, point: bytes) -> bytes:
    """H_choice(point): a uniform point of the prime-order group whose logarithm nobody knows.

    The sum of two images of Elligator's map, which alone does not reach all points (RFC 9380, section 3). libsodium's
    takes 32 bytes, the top bit as the sign, and multiplies by the cofactor.
    """
    digest = _digest(b"parelu-point", 64, context, number.to_bytes(4, "little"), bytes([choice]), point)
    halves = (bindings.crypto_core_ed25519_from_uniform(half) for half in (digest[:32], digest[32:]))
    return bindings.crypto_core_ed25519_add(*halves)


def _seed(context: bytes, number: int, choice: int, a: bytes, points: bytes, shared: bytes) -> NDArray[np.uint8]:
    """F_choice(shared)."""
    indices = number.to_bytes(4, "little"), bytes([choice])
    return np.frombuffer(_digest(b"parelu-baseOT", SEED_BYTES, context, *indices, a, points, shared), np.uint8)


class Sender:
    """Has two seeds a transfer. context: what both parties have seen of the connection, and a purpose.

    transcript: 32 bytes that bind the context and both messages, after `seeds`.
    """

    def __init__(self, count: int, context: bytes) -> None:
        self.count, self.context, self.transcript = count, context, b""
        self._secret = _scalar()
        self._point = bindings.crypto_scalarmult_ed25519_base_noclamp(self._secret)

    def message(self) -> bytes:
        """A, 32 bytes."""
        return self._point

    def seeds(self, response: bytes) -> NDArray[np.uint8]:
        """uint8 (count, 2, 16), from the receiver's points; raises ProtocolError where one is malformed."""
        if len(response) != RESPONSE_BYTES * self.count:
            raise ProtocolError(f"{len(response)} bytes for the points of {self.count} base oblivious transfers")
        seeds = np.empty((self.count, 2, SEED_BYTES), np.uint8)
        for number in range(self.count):
            sent = response[RESPONSE_BYTES * number :][:RESPONSE_BYTES]
            points = _checked(sent[:POINT_BYTES]), _checked(sent[POINT_BYTES:])
            for choice, point in enumerate(points):
                hashed = hash_to_group(self.context, number, choice, points[1 - choice])
                key = bindings.crypto_core_ed25519_add(point, hashed)
                if key == IDENTITY:  # an honest receiver meets it with probability 2^−252
                    raise ProtocolError("a point of a base oblivious transfer undoes its hash")
                shared = bindings.crypto_scalarmult_ed25519_noclamp(self._secret, key)
                seeds[number, choice] = _seed(self.context, number, choice, self._point, sent, shared)
        self.transcript = _transcript(self.context, self._point, response)
        return seeds


class Receiver:
    """Has the chosen seed of each transfer. choices: uint8 (count,) of 0 and 1; transcript: the sender's."""

    def __init__(self, choices: NDArray[np.uint8], context: bytes) -> None:
        self.choices, self.context, self.transcript = choices, context, b""
        self._seeds: list[NDArray[np.uint8]] = []

    def respond(self, message: bytes) -> bytes:
        """The points, two of 32 bytes each, for the sender's A; raises ProtocolError where it is malformed."""
        a = _checked(message)
        response = b"".join(self._transfer(number, mask, a) for number, mask in enumerate(np.uint8(0) - self.choices))
        self.transcript = _transcript(self.context, a, response)
        return response

    def _transfer(self, number: int, mask: np.uint8, a: bytes) -> bytes:
        """The points of one transfer; mask: 255 where its choice is 1, else 0. What differs by choice is computed for
        both and selected by the mask: no branch on the choice."""
        secret = _scalar()
        other = bindings.crypto_scalarmult_ed25519_base_noclamp(_scalar())
        own = bindings.crypto_scalarmult_ed25519_base_noclamp(secret)
        hashes = [hash_to_group(self.context, number, choice, other) for choice in (0, 1)]
        own = bindings.crypto_core_ed25519_sub(own, _selected(mask, *hashes))
        points = _selected(mask, own + other, other + own)
        shared = bindings.crypto_scalarmult_ed25519_noclamp(secret, a)
        seeds = [_seed(self.context, number, choice, a, points, shared) for choice in (0, 1)]
        self._seeds.append(np.frombuffer(_selected(mask, *(seed.tobytes() for seed in seeds)), np.uint8))
        return points

    def seeds(self) -> NDArray[np.uint8]:
        """uint8 (count, 16), after `respond`."""
        return np.stack(self._seeds)


def _selected(mask: np.uint8, zero: bytes, one: bytes) -> bytes:
    """`one` where the mask is 255, `zero` where it is 0."""
    return (np.frombuffer(zero, np.uint8) & ~mask | np.frombuffer(one, np.uint8) & mask).tobytes()


def _transcript(context: bytes, message: bytes, response: bytes) -> bytes:
    return _digest(b"parelu-baseOT-t", 32, context, message, response)
