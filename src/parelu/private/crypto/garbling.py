"""Garbled circuits: half gates, free XOR, point and permute, vectorised over instances.

A circuit is a function of a `Machine` and wires. Run by a `Garbler` it makes the tables, by an `Evaluator` it computes
on labels, by a `Clear` on bits. Instances are handled `CHUNK` at a time, so that a gate's work stays in the cache;
tables of one chunk stand together: (chunk, gate, half, instance, 16 bytes), flat, as long as `Clear.blocks` says.

Zahur, Rosulek, Evans 2015 (two blocks an AND); Kolesnikov, Schneider 2008 (XOR for free).
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.hash import Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks

CHUNK = 2048
TOP = np.uint64(1 << 63)


def with_colour(delta: Blocks) -> Blocks:
    """Δ with colour 1, as point and permute asks."""
    delta = delta.copy()
    delta[..., 1] |= TOP
    return delta


def colours(labels: Blocks) -> NDArray[np.uint8]:
    """(n, 2) → uint8 (n,): the top bits."""
    return (labels[:, 1] >> np.uint64(63)).astype(np.uint8)


def chunks(count: int, chunk: int = CHUNK) -> Iterator[slice]:
    """Slices of at most `chunk` that cover `count` instances."""
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))


class Machine(abc.ABC):
    """What a circuit is run on; a wire is an array over the instances."""

    @abc.abstractmethod
    def zero(self, like: Any) -> Any:
        """A wire that is 0: free, and the XOR of `like` with itself."""

    def xor(self, a: Any, b: Any) -> Any:
        """Free."""
        return a ^ b

    @abc.abstractmethod
    def majority(self, a: Any, b: Any, c: Any) -> Any:
        """c ⊕ (a ⊕ c)(b ⊕ c), the carry of a full adder: one AND, two blocks of table an instance."""

    def conjunction(self, a: Any, b: Any) -> Any:
        """AND."""
        return self.majority(a, b, self.zero(a))

    @abc.abstractmethod
    def invert(self, a: Any) -> Any:
        """NOT: free."""


class Clear(Machine):
    """Wires are bits, uint8 (n,): what the circuit computes, its ANDs, and how many blocks its tables have."""

    def __init__(self) -> None:
        self.gates = self.blocks = 0

    def zero(self, like: Any) -> Any:
        return np.zeros_like(like)

    def majority(self, a: Any, b: Any, c: Any) -> Any:
        self.gates += 1
        self.blocks += 2 * len(a)
        return c ^ (a ^ c) & (b ^ c)

    def invert(self, a: Any) -> Any:
        return a ^ 1


class _Labels(Machine):
    """A machine on labels, uint64 (n, 2), that goes through its tables gate by gate."""

    def __init__(self, hash: Hash, first: int, tables: Blocks) -> None:
        self.hash, self.first, self.tables = hash, first, tables
        self._gate = self._position = 0

    def zero(self, like: Any) -> Any:
        # A constant has the label 0 on both sides: nobody evaluates a gate with two constants.
        return np.zeros_like(like)

    def _next(self, count: int) -> tuple[int, Blocks]:
        """Number of the first use of the next gate, and its table (2, count, 2)."""
        use, self._gate = 2 * self._gate, self._gate + 1
        start, self._position = self._position, self._position + 2 * count
        return use, self.tables[start : self._position].reshape(2, count, 2)


class Garbler(_Labels):
    """Wires are zero labels.

    Args:
        hash: under this inference's key.
        delta: (2,), with colour 1.
        first: number of the first instance, never used before under this key and Δ.
        tables: (blocks, 2), written.
    """

    def __init__(self, hash: Hash, delta: Blocks, first: int, tables: Blocks) -> None:
        super().__init__(hash, first, tables)
        self.delta = delta

    def majority(self, a: Blocks, b: Blocks, c: Blocks) -> Blocks:
        use, table = self._next(len(a))
        scratch = self.hash.scratch(4, len(a))
        kernels.garbler_operands(a, b, c, self.delta, scratch.operands)
        inner, outer = self.hash.halves(scratch, self.first, use, use, use + 1, use + 1)
        out = np.empty_like(a)
        kernels.garble(scratch.operands, inner, outer, c, self.delta, table, out)
        return out

    def invert(self, a: Blocks) -> Blocks:
        return a ^ self.delta


class Evaluator(_Labels):
    """Wires are active labels; `first` and `tables` are the garbler's."""

    def majority(self, a: Blocks, b: Blocks, c: Blocks) -> Blocks:
        use, table = self._next(len(a))
        scratch = self.hash.scratch(2, len(a))
        kernels.evaluator_operands(a, b, c, scratch.operands)
        inner, outer = self.hash.halves(scratch, self.first, use, use + 1)
        out = np.empty_like(a)
        kernels.evaluate(scratch.operands, inner, outer, c, table, out)
        return out

    def invert(self, a: Blocks) -> Blocks:
        return a


def sign(machine: Machine, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """[1 where a + b modulo 2^m, as a signed number, is not negative]; m = len(a), m − 1 ANDs."""
    return [machine.invert(machine.xor(machine.xor(a[-1], b[-1]), _carries(machine, a, b)[-1]))]


def total(machine: Machine, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Bits of a + b modulo 2^m; m − 1 ANDs."""
    carries = _carries(machine, a, b)
    xors = [machine.xor(x, y) for x, y in zip(a, b, strict=True)]
    return [xors[0], *(machine.xor(x, c) for x, c in zip(xors[1:], carries, strict=True))]


def masked_relu(machine: Machine, a: Sequence[Any], b: Sequence[Any], mask: Sequence[Any], cut: int = 0) -> list[Any]:
    """Bits of relu(⌊(a + b) / 2^cut⌋) − mask modulo 2^m; 3(m − 1) − cut ANDs (DELPHI, section 4.1.1)."""
    value = total(machine, a, b)
    positive = machine.invert(value[-1])
    relu = [machine.conjunction(bit, positive) for bit in value[cut:-1]]  # the bits above are 0
    relu += [machine.zero(positive)] * cut
    # y − r = ¬(¬y + r); the top bit of ¬y is 1.
    inverted = [machine.invert(bit) for bit in relu]
    borrows = _carries(machine, [*inverted, None], mask)
    low = [machine.invert(machine.xor(x, y)) for x, y in zip(inverted, mask[:-1], strict=True)]
    difference = [low[0], *(machine.xor(x, c) for x, c in zip(low[1:], borrows[:-1], strict=True))]
    return [*difference, machine.xor(mask[-1], borrows[-1])]


def argmax(machine: Machine, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Bits of the index of the largest a + b, highest first; a tournament over the instances, a power of two.

    a, b: m wires each; no sum reaches 2^(m − 2) in absolute value. Of equals, any may win.
    """
    values = total(machine, a, b)
    index: list[Any] = []
    while len(values[0]) > 1:
        half = len(values[0]) // 2
        first, second = [v[:half] for v in values], [v[half:] for v in values]
        later = sign(machine, [machine.invert(v) for v in first], second)[0]  # 1 where second − first − 1 ≥ 0
        values = [_choose(machine, later, x, y) for x, y in zip(first, second, strict=True)]
        index = [_choose(machine, later, i[:half], i[half:]) for i in index] + [later]
    return index


def _choose(machine: Machine, bit: Any, a: Any, b: Any) -> Any:
    """b where the bit is 1, else a; one AND."""
    return machine.xor(a, machine.conjunction(bit, machine.xor(a, b)))


def _carries(machine: Machine, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Carries into bits 1 to m − 1 of a + b; one AND each."""
    carries = [machine.conjunction(a[0], b[0])]
    for x, y in zip(a[1:-1], b[1:-1], strict=True):
        carries.append(machine.majority(x, y, carries[-1]))
    return carries
