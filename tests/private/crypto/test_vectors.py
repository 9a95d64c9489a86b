"""Vectors of other implementations: the hash and half gates of mpz and emp-tool; the extension in plain Python.

The extension's were made by the code below, which was written from the paper and this format's description in the
docstrings, in integers, bit by bit, and shares nothing with the package; no other implementation has this format.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from kernel_sets import using

from parelu.private.crypto import kernels
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.ot_extension import ExtensionReceiver, ExtensionSender

VECTORS = Path(__file__).parent / "vectors"
HALF_GATES = json.loads((VECTORS / "half_gates.json").read_text(encoding="utf-8"))
EXTENSION = json.loads((VECTORS / "extension.json").read_text(encoding="utf-8"))


def blocks(*texts: str) -> Any:
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint64).reshape(-1, 2).copy()


def tweak(gate: int) -> int:
    """mpz's number of a use, 16 bytes big-endian, as the second half of a tweak."""
    return int.from_bytes(gate.to_bytes(8, "big"), "little")


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("vector", HALF_GATES["tmmo"])
def test_hash(name, vector):
    first, use = blocks(vector["tweak"])[0].tolist()
    with using(name):
        hashed = Hash(bytes.fromhex(HALF_GATES["key"]))(blocks(vector["block"]), first, use)
    assert hashed.tobytes().hex() == vector["hash"]


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("vector", HALF_GATES["half_gates"])
def test_half_gates(name, vector):
    a, b, delta = (blocks(vector[part]) for part in ("a", "b", "delta"))
    zero, uses = np.zeros_like(a), [tweak(vector["gate"] + half) for half in (0, 1)]
    hash, table, out = Hash(bytes.fromhex(HALF_GATES["key"])), np.empty((2, 1, 2), np.uint64), np.empty_like(a)
    with using(name):
        loops = kernels.load(name)
        scratch = hash.scratch(4, 1)
        loops.garbler_operands(a, b, zero, delta[0], scratch.operands)
        inner, outer = hash.halves(scratch, 0, uses[0], uses[0], uses[1], uses[1])
        loops.garble(scratch.operands, inner, outer, zero, delta[0], table, out)
        assert [row.tobytes().hex() for row in (*table, out)] == [*vector["table"], vector["zero"]]
        scratch, active = hash.scratch(2, 1), []
        for x in (a, a ^ delta):
            for y in (b, b ^ delta):
                loops.evaluator_operands(x, y, zero, scratch.operands)
                inner, outer = hash.halves(scratch, 0, *uses)
                loops.evaluate(scratch.operands, inner, outer, zero, table, out)
                active.append(out.tobytes().hex())
    assert active == vector["active"]
    assert blocks(*active[:3]).tolist() == blocks(*3 * [vector["zero"]]).tolist()


# The extension, a second time


def aes(key: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(data)


def stream(seed: bytes, start: int, length: int) -> int:
    """Bits [start, start + length) of a stream as an integer, the first bit lowest."""
    message = len(b"extension").to_bytes(4, "little") + b"extension"
    key = hashlib.blake2b(message, key=seed, digest_size=16, person=b"parelu-prg").digest()
    numbers = range(start // 128, (start + length) // 128)
    return int.from_bytes(b"".join(aes(key, n.to_bytes(16, "big")) for n in numbers), "little")


def ghash(key: bytes, row: int, length: int) -> int:
    """The linear hash of a row of bits, 16 bytes as a little-endian integer."""
    h, total = int.from_bytes(aes(key, bytes(16)), "big"), 0
    data = row.to_bytes(length // 8, "little") + bytes(16)
    for start in range(0, len(data), 16):
        x, y, total = total ^ int.from_bytes(data[start : start + 16], "big"), h, 0
        for k in range(127, -1, -1):
            total ^= y * (x >> k & 1)
            y = y >> 1 ^ (0xE1 << 120) * (y & 1)
    return int.from_bytes(total.to_bytes(16, "big"), "little")


def node(person: bytes, size: int, value: int, context: bytes, tree: int) -> bytes:
    salt = tree.to_bytes(16, "little")
    return hashlib.blake2b(
        value.to_bytes(16, "little"), digest_size=size, key=context, salt=salt, person=person
    ).digest()


def children(value: int, context: bytes, tree: int) -> list[int]:
    both = node(b"parelu-node", 32, value, context, tree)
    return [int.from_bytes(both[:16], "little"), int.from_bytes(both[16:], "little")]


def xor(values: Any) -> int:
    total = 0
    for value in values:
        total ^= value
    return total


class Reference:
    """One step of both parties. seeds: 128 pairs of integers; delta, choices: integers, bit by bit."""

    def __init__(self, seeds: list[list[int]], delta: int, context: bytes, k: int) -> None:
        self.k, self.groups = k, [range(low, min(low + k, 128)) for low in range(0, 128, k)]
        self.leaves, self.trees, checks, self.delta = [], b"", b"", delta
        for number, group in enumerate(self.groups):
            level = {0: seeds[group[-1]][1], 1: seeds[group[-1]][0]}  # path from the root, as a number → node
            for bit in reversed(group[:-1]):
                level = {
                    2 * y + b: child for y, v in level.items() for b, child in enumerate(children(v, context, number))
                }
                for side in (0, 1):
                    total = xor(v for y, v in level.items() if y % 2 == side)
                    self.trees += (total ^ seeds[bit][1 - side]).to_bytes(16, "little")
            last = [node(b"parelu-leaf", 48, level[y], context, number) for y in range(len(level))]
            self.trees += xor(int.from_bytes(x[:32], "little") for x in last).to_bytes(32, "little")
            checks += b"".join(x[:32] for x in last)
            self.leaves.append([x[32:] for x in last])
        self.trees += hashlib.sha256(checks).digest()
        self.context, self.number, self.position = hashlib.sha256(context + self.trees).digest(), 0, 0

    def step(self, choices: int, n: int) -> tuple[bytes, list[int], list[int]]:
        """The message, t and q."""
        length = -(-n // 128) * 128 + 128
        leaves = [[stream(seed, self.position, length) for seed in group] for group in self.leaves]
        u = [xor(r) for r in leaves]
        choices |= u[0] >> length - 128 << length - 128
        corrections = [each ^ choices for each in u]
        sent = b"".join(each.to_bytes(length // 8, "little") for each in corrections)
        self.number, self.position = self.number + 1, self.position + length
        key = hashlib.sha256(self.context + self.number.to_bytes(8, "little") + sent).digest()[:16]
        v, w = [], []
        for group, r, correction in zip(self.groups, leaves, corrections, strict=True):
            missing = self.delta >> group[0] & (1 << len(group)) - 1
            for bit in range(len(group)):
                v.append(xor(x for y, x in enumerate(r) if y >> bit & 1))
                w.append(xor(x for y, x in enumerate(r) if (y ^ missing) >> bit & 1))
                w[-1] ^= correction if missing >> bit & 1 else 0
        hashes = [ghash(key, column, length) for column in v]
        choices_hash = ghash(key, choices, length)
        assert [
            ghash(key, column, length) ^ choices_hash * (self.delta >> i & 1) for i, column in enumerate(w)
        ] == hashes
        digest = hashlib.sha256(key + b"".join(each.to_bytes(16, "little") for each in hashes)).digest()
        message = sent + choices_hash.to_bytes(16, "little") + digest
        rows = [[sum((column >> i & 1) << k for k, column in enumerate(side)) for i in range(n)] for side in (v, w)]
        return message, rows[0], rows[1]


def inputs(k: int) -> tuple[bytes, int, list[tuple[int, int]]]:
    """Bytes of 128 pairs of seeds, Δ, and (choices, n) of two steps."""
    seeds = hashlib.shake_128(b"seeds %d" % k).digest(128 * 32)
    delta = int.from_bytes(hashlib.shake_128(b"delta %d" % k).digest(16), "little") | 1 << 127
    steps = [
        (int.from_bytes(hashlib.shake_128(b"bits %d %d" % (k, n)).digest(50), "little") % (1 << n), n) for n in (1, 150)
    ]
    return seeds, delta, steps


def reference(k: int) -> list[tuple[bytes, bytes, bytes]]:
    """The trees, then of each step the message, t and q, as bytes."""
    seeds, delta, steps = inputs(k)
    each = [int.from_bytes(seeds[start : start + 16], "little") for start in range(0, len(seeds), 16)]
    both = Reference([each[2 * i : 2 * i + 2] for i in range(128)], delta, CONTEXT, k)
    found = [(both.trees, b"", b"")]
    for choices, n in steps:
        message, *rows = both.step(choices, n)
        found.append((message, *(b"".join(row.to_bytes(16, "little") for row in side) for side in rows)))
    return found


def ours(k: int) -> list[tuple[bytes, bytes, bytes]]:
    """The same by this package."""
    seeds, delta, steps = inputs(k)
    pairs = np.frombuffer(seeds, np.uint8).reshape(128, 2, 16)
    bits = (delta >> np.arange(128, dtype=object) & 1).astype(np.uint8)
    receiver = ExtensionReceiver(pairs, CONTEXT, k)
    sender = ExtensionSender(bits, pairs[np.arange(128), bits], CONTEXT, receiver.trees, k)
    found = [(receiver.trees, b"", b"")]
    for choices, n in steps:
        message, t = receiver.extend((choices >> np.arange(n, dtype=object) & 1).astype(np.uint8))
        found.append((message.tobytes(), t.tobytes(), sender.extend(message, n).tobytes()))
    return found


CONTEXT = hashlib.sha256(b"context").digest()


def digests(found: list[tuple[bytes, bytes, bytes]]) -> list[list[str]]:
    return [[hashlib.sha256(part).hexdigest() for part in parts] for parts in found]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
def test_extension(k):
    expected = reference(k)
    assert ours(k) == expected
    assert digests(expected) == EXTENSION[str(k)]


def test_the_packages_own_width_has_vectors():
    from parelu.private.crypto.ot_extension import WIDTH

    assert str(WIDTH) in EXTENSION


if __name__ == "__main__":
    text = json.dumps({k: digests(reference(k)) for k in (1, 2, 3, 4, 8)}, indent=1)
    (VECTORS / "extension.json").write_text(text + "\n", encoding="utf-8")
