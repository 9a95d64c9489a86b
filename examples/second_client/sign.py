"""ReLU protocol `sign` of docs/wire-format.md, the client's side."""

from typing import NamedTuple

import numpy as np
from primitives import packed

PART = 8192
ONE, TWO = np.uint64(1), np.uint64(2)


class Step(NamedTuple):
    low: int  # the first bit that it reads
    read: int
    entering: int
    leaving: int
    length: int  # of a row
    tweak: int  # the first

    @property
    def pad(self) -> int:
        return self.length << self.entering

    @property
    def rows(self) -> int:
        return self.pad << self.read


def steps(m: int, f: int) -> list[Step]:
    """Of numbers of m bits that are divided by 2^f."""
    ranges = [(0, f, 1), (f, m, 2)] if f else [(0, m - 1, 1)]
    found = []
    for start, stop, leaving in ranges:
        while start < stop:
            read = 2 - (stop - start) % 2
            found.append((start, read, leaving))
            start += read
    out, tweak, entering = [], 0, 0
    for k, (low, read, leaving) in enumerate(found):
        length = sum(each[2] for each in found[k:])
        out.append(Step(low, read, entering, leaving, length, tweak))
        tweak, entering = tweak - (-out[-1].pad // 128), leaving
    return out


def sigma(blocks: np.ndarray) -> np.ndarray:
    return np.stack([blocks[..., 0] ^ blocks[..., 1], blocks[..., 0]], -1)


class Sign:
    """N ReLUs of one activation; the draws are of the offline mode."""

    def __init__(self, offline, number: int, share: np.ndarray, bits: int, f: int, ring: int) -> None:
        first, offline.first = offline.first, offline.first + len(share)
        self.count, self.f, self.m = len(share), f, min(bits + f, ring)
        self.steps = steps(self.m, f)
        self.mask = offline.stream("mask", number).elements(self.count)
        self.choices = offline.stream("choice", number).bits((1 + bool(f)) * self.count).reshape(-1, self.count)
        self.bits = (share >> np.arange(self.m, dtype=np.uint64)[:, None] & ONE).astype(np.uint8)
        read = self.steps[-1].low + self.steps[-1].read
        labels = offline.labels(number, self.bits[:read])
        self.pads = [self._pad(offline.hash, first, labels, step) for step in self.steps]
        self.chosen = offline.random_transfer(number, first, self.choices[0])
        self.share = (share & np.uint64((1 << ring) - 1)) >> np.uint64(f)
        factors = [(ONE - TWO * self.choices[0]) * self.share, *self.choices[1:].astype(np.uint64)]
        of_product, offline.first = offline.first, offline.first + len(factors) * self.count
        self.products = offline.product(number, of_product, np.concatenate(factors)).reshape(-1, self.count)

    def _pad(self, hash, first: int, labels: np.ndarray, step: Step) -> np.ndarray:
        """Bits (N, 2^entering, length)."""
        base = labels[step.low]
        if step.read == 2:
            base = base ^ sigma(labels[step.low + 1])
        tweaks = range(step.tweak, step.tweak - (-step.pad // 128))
        hashed = np.concatenate([hash(base, first, tweak) for tweak in tweaks], 1)
        bits = np.unpackbits(np.ascontiguousarray(hashed).view(np.uint8), axis=1, bitorder="little")
        return bits[:, : step.pad].reshape(self.count, 1 << step.entering, step.length)

    @property
    def opened_bytes(self) -> int:
        planes = sum(step.rows for step in self.steps)
        return sum(planes * -(-len(part) // 8) for part in self._parts()) + 8 * self.count

    def _parts(self) -> list[range]:
        return [range(start, min(start + PART, self.count)) for start in range(0, self.count, PART)]

    def answer(self, body: bytes) -> bytes:
        """What the client sends for what the server opened."""
        names, at = [], 0
        for part in self._parts():
            size = sum(step.rows for step in self.steps) * -(-len(part) // 8)
            names.append(self._read(body[at : at + size], part))
            at += size
        decided = np.concatenate(names, 1)
        if not self.f:
            decided = decided ^ self.bits[self.m - 1]
        corrections = np.frombuffer(body[at:], "<u8")
        e = decided ^ self.choices
        found = decided[0] * self.share
        found = found + (ONE - TWO * e[0]) * (self.products[0] + self.chosen + self.choices[0] * corrections)
        if self.f:
            found = found + e[1] + (ONE - TWO * e[1]) * (self.choices[1] - TWO * self.products[1])
        return (found - self.mask).tobytes() + packed(e.reshape(-1))

    def _read(self, body: bytes, part: range) -> np.ndarray:
        """The names of the last state, (1 or 2, instances)."""
        count, width = len(part), -(-len(part) // 8)
        every, at = np.arange(count), 0
        state, mask = np.zeros(count, np.int64), np.zeros((1, 1), np.uint8)
        row = np.zeros((count, 0), np.uint8)
        for step, pad in zip(self.steps, self.pads, strict=True):
            planes = np.frombuffer(body[at : at + step.rows * width], np.uint8).reshape(-1, width)
            at += step.rows * width
            bits = np.unpackbits(planes, axis=1, count=count, bitorder="little")
            bits = bits.reshape(1 << step.read, 1 << step.entering, step.length, count)
            choice = sum(self.bits[step.low + k, part].astype(np.int64) << k for k in range(step.read))
            row = bits[choice, state, :, every] ^ pad[part.start + every, state] ^ mask
            state = sum(row[:, k].astype(np.int64) << k for k in range(step.leaving))
            mask = row[:, step.leaving :]
        return row.T
