"""Base oblivious transfers on the prime-order group of edwards25519, semi-honest.

Chou and Orlandi 2015, figure 1: the sender sends A = aG, the receiver B = bG + cA for its choice c; the sender's seeds
are H(aB) and H(a(B − A)), the receiver's H(bA). H is bound to the connection, the number of the transfer, A and B.
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


def _seed(context: bytes, number: int, a: bytes, b: bytes, shared: bytes) -> NDArray[np.uint8]:
    message = number.to_bytes(4, "little") + a + b + shared
    digest = hashlib.blake2b(
        message, key=hashlib.sha256(context).digest(), digest_size=SEED_BYTES, person=b"parelu-baseOT"
    )
    return np.frombuffer(digest.digest(), np.uint8)


class Sender:
    """Has two seeds a transfer. context: what both parties have seen of the connection, and a purpose."""

    def __init__(self, count: int, context: bytes) -> None:
        self.count, self.context = count, context
        self._secret = _scalar()
        self._point = bindings.crypto_scalarmult_ed25519_base_noclamp(self._secret)

    def message(self) -> bytes:
        """A, 32 bytes."""
        return self._point

    def seeds(self, response: bytes) -> NDArray[np.uint8]:
        """uint8 (count, 2, 16), from the receiver's points; raises ProtocolError where one is malformed."""
        if len(response) != POINT_BYTES * self.count:
            raise ProtocolError(f"{len(response)} bytes for {self.count} points of base oblivious transfers")
        seeds = np.empty((self.count, 2, SEED_BYTES), np.uint8)
        for number in range(self.count):
            b = _checked(response[POINT_BYTES * number : POINT_BYTES * (number + 1)])
            # B = A would make the second point the identity, which an honest receiver meets with probability 2^−252.
            other = _checked(bindings.crypto_core_ed25519_sub(b, self._point))
            for choice, point in enumerate((b, other)):
                shared = bindings.crypto_scalarmult_ed25519_noclamp(self._secret, point)
                seeds[number, choice] = _seed(self.context, number, self._point, b, shared)
        return seeds


class Receiver:
    """Has the chosen seed of each transfer. choices: uint8 (count,) of 0 and 1."""

    def __init__(self, choices: NDArray[np.uint8], context: bytes) -> None:
        self.choices, self.context = choices, context
        self._seeds: list[NDArray[np.uint8]] = []

    def respond(self, message: bytes) -> bytes:
        """The points, 32 bytes each, for the sender's A; raises ProtocolError where it is malformed."""
        a = _checked(message)
        points = []
        masks = np.zeros_like(self.choices) - self.choices  # 0 or 255
        for number, mask in enumerate(masks):
            secret = _scalar()
            plain = bindings.crypto_scalarmult_ed25519_base_noclamp(secret)
            # Both are computed and one is selected by a mask: no branch on the choice.
            shifted = bindings.crypto_core_ed25519_add(plain, a)
            selected = np.frombuffer(plain, np.uint8) & ~mask | np.frombuffer(shifted, np.uint8) & mask
            point = selected.tobytes()
            points.append(point)
            shared = bindings.crypto_scalarmult_ed25519_noclamp(secret, a)
            self._seeds.append(_seed(self.context, number, a, point, shared))
        return b"".join(points)

    def seeds(self) -> NDArray[np.uint8]:
        """uint8 (count, 16), after `respond`."""
        return np.stack(self._seeds)
