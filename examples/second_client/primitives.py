"""Constructions of docs/wire-format.md in numpy and the standard library: AES-128, streams, the hash.

The AES looks up tables, whose cache lines can tell a neighbour on the same core of the key: a client for secrets that
matter takes one of hardware.
"""

import hashlib

import numpy as np


def _double(x: int) -> int:
    return (x << 1 ^ (0x11B if x & 0x80 else 0)) & 0xFF


def _sbox() -> np.ndarray:
    """By generators: 3^k in one order, its inverse in the other (FIPS 197, section 5.1.1)."""
    box, p, q = np.zeros(256, np.uint8), 1, 1
    box[0] = 0x63
    while True:
        p ^= _double(p)  # times 3
        for shift in (1, 2, 4):  # divided by 3
            q ^= q << shift & 0xFF
        q ^= 0x09 if q & 0x80 else 0
        box[p] = q ^ 0x63 ^ _turn(q, 1) ^ _turn(q, 2) ^ _turn(q, 3) ^ _turn(q, 4)
        if p == 1:
            return box


def _turn(x: int, by: int) -> int:
    return (x << by | x >> (8 - by)) & 0xFF


SBOX = _sbox()
TWICE = np.array([_double(x) for x in range(256)], np.uint8)
SHIFTED = np.array([(i + 4 * (i % 4)) % 16 for i in range(16)])  # ShiftRows, of the state column by column


class Aes:
    """AES-128 (FIPS 197) of many blocks at once; keys: uint8 (…, 16), that go with the blocks' shape."""

    def __init__(self, keys: np.ndarray) -> None:
        words, constant = [keys[..., i : i + 4] for i in range(0, 16, 4)], 1
        for i in range(4, 44):
            last = words[-1]
            if i % 4 == 0:
                last = SBOX[np.roll(last, -1, -1)]
                last[..., 0] ^= np.uint8(constant)
                constant = _double(constant)
            words.append(words[i - 4] ^ last)
        self.keys = [np.concatenate(words[i : i + 4], -1) for i in range(0, 44, 4)]

    def __call__(self, blocks: np.ndarray) -> np.ndarray:
        """uint8 (…, 16) → as much."""
        state = blocks ^ self.keys[0]
        for key in self.keys[1:-1]:
            columns = SBOX[state].take(SHIFTED, -1).reshape(*state.shape[:-1], 4, 4)
            turned = np.roll(columns, -1, -1)
            every = np.bitwise_xor.reduce(columns, -1, keepdims=True)
            state = (columns ^ every ^ TWICE[columns ^ turned]).reshape(state.shape) ^ key  # MixColumns
        return SBOX[state].take(SHIFTED, -1) ^ self.keys[-1]


def counters(first: int, count: int) -> np.ndarray:
    """What counter mode encrypts, (count, 16)."""
    out = np.zeros((count, 16), np.uint8)
    out[:, 8:] = np.arange(first, first + count, dtype=">u8")[:, None].view(np.uint8)
    return out


def key(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def derive(seed: bytes, *labels: object) -> bytes:
    parts = [str(label).encode() for label in labels]
    message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return hashlib.blake2b(message, digest_size=16, key=seed, person=b"parelu-prg").digest()


class Stream:
    """AES in counter mode under a derived key, each byte once."""

    def __init__(self, seed: bytes, *labels: object) -> None:
        self._aes, self._counter, self._left = Aes(key(derive(seed, *labels))), 0, b""

    def bytes(self, count: int) -> bytes:
        more = max(0, -(-(count - len(self._left)) // 16))
        found = self._left + self._aes(counters(self._counter, more)).tobytes()
        self._counter += more
        self._left = found[count:]
        return found[:count]

    def elements(self, count: int) -> np.ndarray:
        return np.frombuffer(self.bytes(8 * count), "<u8").copy()

    def blocks(self, *shape: int) -> np.ndarray:
        """uint64 (*shape, 2)."""
        return self.elements(2 * int(np.prod(shape))).reshape(*shape, 2)

    def bits(self, count: int) -> np.ndarray:
        return unpacked(self.bytes(-(-count // 8)), count)


def unpacked(body: bytes, count: int) -> np.ndarray:
    """A bit string as 0 and 1."""
    return np.unpackbits(np.frombuffer(body, np.uint8), count=count, bitorder="little")


def packed(bits: np.ndarray) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


class Hash:
    """H of blocks, uint64 (n, 2), under the hash key."""

    def __init__(self, of: bytes) -> None:
        self._aes = Aes(key(of))

    def permuted(self, blocks: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(blocks, "<u8").view(np.uint8).reshape(-1, 16)
        return self._aes(flat).view("<u8").reshape(blocks.shape)

    def __call__(self, blocks: np.ndarray, first: int, use: int) -> np.ndarray:
        """Block i with the tweak (first + i, use)."""
        inner = self.permuted(blocks)
        tweaks = np.empty((len(blocks), 2), np.uint64)
        tweaks[:, 0], tweaks[:, 1] = np.arange(first, first + len(blocks)), use
        return self.permuted(inner ^ tweaks) ^ inner
