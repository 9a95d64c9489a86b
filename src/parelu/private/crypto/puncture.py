"""Puncturable pseudorandom functions by transfers: one party has all leaves of a tree of seeds, the other all but one.

Goldreich, Goldwasser, Micali 1986; by oblivious transfer, with a check of the party that has all: Boyle, Couteau,
Gilboa, Ishai, Kohl, Rindal, Scholl 2019 (CCS), as Roy 2022 uses them. A tree of h levels takes h base transfers, whose
choices are the number of the missing leaf, highest bit first. At each level the whole sum of the left nodes and that of
the right nodes are offered, and the one without the missing node is had.

The other party numbers leaves relative to the missing one, z = y ⊕ missing, so that nothing is indexed by its secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.prg import SEED_BYTES

CHECK_BYTES = 32  # twice the security: no two leaves with one check are found
Seeds = NDArray[np.uint8]  # (…, 16)


def message_bytes(height: int) -> int:
    """Length of a tree's message."""
    return 2 * SEED_BYTES * (height - 1) + CHECK_BYTES


def grow(pairs: Seeds, context: bytes, number: int) -> tuple[Seeds, bytes, bytes]:
    """The leaves (2^h, 16), the message, and all checks, which the caller sends hashed.

    pairs: (h, 2, 16), both seeds of each base transfer; context: 32 bytes; number: of the tree in this context.
    """
    nodes, message = pairs[0, ::-1], b""
    for pair in pairs[1:]:
        children = _children(nodes, context, number)
        message += (np.bitwise_xor.reduce(children, 0) ^ pair[::-1]).tobytes()
        nodes = children.reshape(-1, SEED_BYTES)
    checks, leaves = _leaves(nodes, context, number)
    return leaves, message + np.bitwise_xor.reduce(checks, 0).tobytes(), checks.tobytes()


def regrow(
    seeds: Seeds, choices: NDArray[np.uint8], message: bytes, context: bytes, number: int
) -> tuple[Seeds, bytes]:
    """The leaves (2^h, 16) by z, the first of which is missing, and all checks, which `grow` must have had.

    seeds: (h, 16), the chosen ones; choices: (h,) of 0 and 1.
    """
    masks = np.uint8(0) - choices
    offered = np.frombuffer(message, np.uint8, len(message) - CHECK_BYTES).reshape(-1, 2, SEED_BYTES)
    nodes = np.stack([np.zeros_like(seeds[0]), seeds[0]])
    for seed, mask, (left, right) in zip(seeds[1:], masks[1:], offered, strict=True):
        children = _children(nodes, context, number)
        children ^= mask & (children ^ children[:, ::-1])
        children[0] = 0
        children[0, 1] = seed ^ right ^ (mask & (left ^ right)) ^ np.bitwise_xor.reduce(children[:, 1], 0)
        nodes = children.reshape(-1, SEED_BYTES)
    checks, leaves = _leaves(nodes, context, number)
    checks[0] = np.frombuffer(message, np.uint8)[-CHECK_BYTES:] ^ np.bitwise_xor.reduce(checks[1:], 0)
    return leaves, _by_number(checks, masks).tobytes()


def _children(nodes: Seeds, context: bytes, number: int) -> Seeds:
    """(n, 2, 16)."""
    return _hashed(nodes, 2 * SEED_BYTES, b"parelu-node", context, number).reshape(-1, 2, SEED_BYTES)


def _leaves(nodes: Seeds, context: bytes, number: int) -> tuple[Seeds, Seeds]:
    """Checks (n, 32) and leaves (n, 16)."""
    both = _hashed(nodes, CHECK_BYTES + SEED_BYTES, b"parelu-leaf", context, number)
    return both[:, :CHECK_BYTES], np.ascontiguousarray(both[:, CHECK_BYTES:])


def _hashed(nodes: Iterable[Seeds], size: int, person: bytes, context: bytes, number: int) -> NDArray[np.uint8]:
    """BLAKE2b of each node, (n, size)."""
    salt = number.to_bytes(16, "little")
    hashed = (
        hashlib.blake2b(node.tobytes(), digest_size=size, key=context, salt=salt, person=person) for node in nodes
    )
    return np.frombuffer(bytearray(b"".join(each.digest() for each in hashed)), np.uint8).reshape(-1, size)


def _by_number(values: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Values by z → by y, by swaps under masks."""
    cube = values.reshape(*(2 for _ in masks), -1)
    for level, mask in enumerate(masks):
        cube = cube ^ (mask & (cube ^ np.flip(cube, level)))
    return cube
