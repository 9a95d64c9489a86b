"""The carries of a sum of two secrets as a branching program, garbled without a cipher: one message, no tables.

The client knows a, the server b, both of them m bits. An automaton reads the two from the lowest bit, two bits of each
at a step, and its state is the carry. For each step the server holds four pads, and the client the one that its two
bits choose, by oblivious transfer and long before b is known. Then the server, which knows b, sends for each step, each
choice x of the client's and each state s the state that follows: the row (x, s), under x's pad and under a mask that
only who is in state s has. It gets that mask from the row before, beside the state's name, which is the state
exclusive-or bits of the server's; the first step has one state. So a row is one bit longer than the one of the step
after it, and m bits take some m² bits altogether: fewer than labels of 128 bits as long as m is below 128.

This is a private simultaneous message for branching programs (Feige, Kilian, Naor 1994, section 3), as gate evaluation
secret sharing (Kolesnikov 2005) with the doubling always on the fresh inputs. Of all rows the client can open one a
step: the others are each under a pad or a mask that it lacks and that hides, of the rows under its pad, no other. So
what it sees is uniform but for the outputs, without any assumption beyond the pads.

**Pads.** The transfers are correlated, A_x = A_0 ⊕ xΔ for the step's first bit, B_y = B_0 ⊕ yΔ for its second. With
σ(u, v) = (u ⊕ v, u) on halves of 64 bits (Guo, Katz, Wang, Yu 2020, section 7.3) the pad of (x, y) is the hash of
A_x ⊕ σ(B_y). The four inputs differ by Δ, σ(Δ) and Δ ⊕ σ(Δ), each of them a bijection of Δ: what is hashed is as hard
to guess as Δ, and the tweak is the step's.

Bits stand in planes: uint8 (…, ⌈n/8⌉), instance i at bit i mod 8 of byte i div 8.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.garbling import chunks
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks, Stream
from parelu.private.crypto.ring import Elements

PART = 1 << 13  # instances at a time, whose rows stay in the cache; a multiple of 64
Planes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Step:
    """What is read and the size of rows. first: number of the first bit; width: bits of each number; entering, leaving:
    bits of the state before and after; length: bits of a row; use: the first tweak."""

    first: int
    width: int
    entering: int
    leaving: int
    length: int
    use: int

    @property
    def pad(self) -> int:
        """Bits of a pad: all rows of one choice."""
        return self.length << self.entering

    @property
    def rows(self) -> int:
        """Bits of all rows."""
        return self.pad << self.width

    @property
    def drawn(self) -> int:
        """Bits that the server draws: the names of the states after, and their masks; those of outputs are given."""
        rest = self.length - self.leaving
        return self.leaving + (rest << self.leaving) if rest else 0

    @property
    def uses(self) -> range:
        """Tweaks: one for 128 bits of a pad."""
        return range(self.use, self.use - -self.pad // 128)


@functools.cache
def steps(bits: int, cut: int) -> tuple[Step, ...]:
    """The steps for numbers of so many bits, at least 2.

    Without a cut all bits are read but the highest, and the state is the carry. With one all are read, the state is
    the carry and, from there on, also κ, the carry into bit `cut`, and the last one is the sum's sign and that and κ.
    """
    assert bits > max(cut, 1)
    low, high = _symbols(0, cut or bits - 1), _symbols(cut, bits) if cut else []
    symbols = [*low, *high]
    leaving = [1] * len(low) + [2] * len(high)
    entering = [0, *leaving[:-1]]
    lengths = np.cumsum(leaving[::-1])[::-1].tolist()
    found, use = [], 0
    for (first, width), before, after, length in zip(symbols, entering, leaving, lengths, strict=True):
        found.append(Step(first, width, before, after, length, use))
        use = found[-1].uses.stop
    return tuple(found)


def _symbols(start: int, stop: int) -> list[tuple[int, int]]:
    """First bit and number of bits of each step: two, but for one bit at the start of an odd number."""
    odd = (stop - start) % 2
    return [(start, 1)] * odd + [(first, 2) for first in range(start + odd, stop, 2)]


def wires(bits: int, cut: int) -> int:
    """The bits of the client's that are transferred, from the lowest."""
    return steps(bits, cut)[-1].first + steps(bits, cut)[-1].width


def bit_planes(words: NDArray[np.uint64]) -> Planes:
    """(n,) → (64, ⌈n/8⌉)."""
    padded = np.zeros(-(-len(words) // 64) * 64, np.uint64)
    padded[: len(words)] = words
    out = np.empty((64, len(padded) // 64), np.uint64)
    kernels.bit_planes(padded, out)
    return np.ascontiguousarray(out.view(np.uint8)[:, : -(-len(words) // 8)])


# Before the server's number is known


def server_pads(hash: Hash, first: int, zeros: Blocks, delta: Blocks, bits: int, cut: int) -> Planes:
    """All pads, (planes, ⌈n/8⌉). zeros: the zero labels, (wires, n, 2); first: number of the first instance, never
    used before under this key and Δ."""
    mixed = _mix(delta)
    offsets = np.stack([np.zeros_like(delta), delta, mixed, delta ^ mixed])
    return _pads(hash, first, zeros, offsets, bits, cut)


def client_pads(hash: Hash, first: int, labels: Blocks, bits: int, cut: int) -> Planes:
    """The pads of the client's choices, (planes, ⌈n/8⌉). labels: the active ones, (wires, n, 2)."""
    return _pads(hash, first, labels, np.zeros((1, 2), np.uint64), bits, cut)


def pad_planes(bits: int, cut: int) -> tuple[int, int]:
    """Of `client_pads` and of `server_pads`."""
    done = steps(bits, cut)
    return sum(step.pad for step in done), sum(step.rows for step in done)


def _pads(hash: Hash, first: int, labels: Blocks, offsets: Blocks, bits: int, cut: int) -> Planes:
    count, done = labels.shape[1], steps(bits, cut)
    choices = [min(len(offsets), 1 << step.width) for step in done]
    total = sum(each * step.pad for each, step in zip(choices, done, strict=True))
    out = np.empty((total, -(-count // 8)), np.uint8)
    for part in chunks(count, PART):
        columns, position = out[:, _columns(part)], 0
        for step, each in zip(done, choices, strict=True):
            base = labels[step.first, part]
            if step.width == 2:
                base = base ^ _mix(labels[step.first + 1, part])
            hashed = _hashes(hash, first + part.start, base, offsets[:each], step)
            columns[position : position + each * step.pad] = _gathered(hashed, step.pad)
            position += each * step.pad
    return out


def _mix(labels: Blocks) -> Blocks:
    """σ."""
    return np.stack([labels[..., 0] ^ labels[..., 1], labels[..., 0]], axis=-1)


def _hashes(hash: Hash, first: int, base: Blocks, offsets: Blocks, step: Step) -> Blocks:
    """The words that a pad needs, (words, offsets, n)."""
    scratch = hash.scratch(len(offsets), len(base))
    np.bitwise_xor(base, offsets[:, None], out=scratch.operands)
    words = np.empty((-(-step.pad // 64), len(offsets), len(base)), np.uint64)
    for start, use in enumerate(step.uses):
        inner, outer = hash.halves(scratch, first, *[use] * len(offsets))
        for half, out in enumerate(words[2 * start : 2 * start + 2]):
            np.bitwise_xor(inner[..., half], outer[..., half], out=out)
    return words


def _gathered(hashed: NDArray[np.uint64], size: int) -> Planes:
    """The lowest bits of each, as planes: (words, k, n) → (k·size, ⌈n/8⌉)."""
    if size > 32:
        return np.concatenate(
            [np.concatenate(list(map(bit_planes, words)))[:size] for words in np.moveaxis(hashed, 0, 1)]
        )
    together, mask, found = 64 // size, np.uint64((1 << size) - 1), []  # so many in a word
    for start in range(0, hashed.shape[1], together):
        some = hashed[0, start : start + together]
        joined = [(each & mask) << np.uint64(k * size) for k, each in enumerate(some)]
        found.append(bit_planes(np.bitwise_or.reduce(joined))[: size * len(some)])
    return np.concatenate(found)


# With it


def encode(
    numbers: Elements, pads: Planes, outputs: Planes, stream: Stream, bits: int, cut: int
) -> Iterator[NDArray[np.uint8]]:
    """The server's message, in parts.

    numbers: its own; pads: of `server_pads`; outputs: what the outputs are exclusive-or'd with, (1, ⌈n/8⌉), or (2, …)
    with a cut; stream: the server's own, for this use alone.
    """
    for part in chunks(len(numbers), PART):
        own, columns = bit_planes(numbers[part]), _columns(part)
        message = pads[:, columns].copy()
        # Kernels are compiled for contiguous arrays alone.
        names = outputs[:, columns].copy() if cut else ~(outputs[:, columns] ^ own[bits - 1])
        _add_rows(steps(bits, cut), own, names, stream, message)
        yield message


def _add_rows(done: Sequence[Step], own: Planes, outputs: Planes, stream: Stream, message: Planes) -> None:
    """outputs: names of the last state; message: the pads, (planes, ⌈n/8⌉), to which the rows are added."""
    width, position = own.shape[1], 0
    drawn = stream.bytes(sum(step.drawn for step in done) * width).reshape(-1, width)
    names, masks, scratch = own[:0], np.zeros((1, done[0].length, width), np.uint8), np.empty((2, width), np.uint8)
    for step in done:
        rest = step.length - step.leaving
        after, fresh = (drawn[: step.leaving] if rest else outputs), drawn[step.leaving : step.drawn]
        drawn, fresh = drawn[step.drawn :], fresh.reshape(1 << step.leaving, rest, width)
        rows = message[position : position + step.rows]
        rows = rows.reshape(1 << step.width, 1 << step.entering, step.length, width)
        kernels.add_states(own[step.first : step.first + step.width], names, masks, after, fresh, scratch, rows)
        names, masks, position = after, fresh, position + step.rows


def _select(options: NDArray[np.uint8], index: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """options[Σ index[k]·2^k], bit by bit. options: (2^k, …); index: planes."""
    for plane in index:
        even, odd = options[::2], options[1::2]
        options = even ^ (plane & (even ^ odd))
    return options[0]


def part_bytes(count: int, bits: int, cut: int) -> Iterator[int]:
    """The lengths of the parts of the server's message about so many instances."""
    rows = sum(step.rows for step in steps(bits, cut))
    return (rows * (end.stop - end.start) for end in map(_columns, chunks(count, PART)))


def decode(message: Iterable[NDArray[np.uint8]], chosen: Planes, pads: Planes, bits: int, cut: int) -> Planes:
    """The outputs under the server's bits, (1 or 2, ⌈n/8⌉): 1 where a + b modulo 2^m, as a signed number, is not
    negative; with a cut also that and κ.

    message: its parts; chosen: planes of the client's numbers, (m, ⌈n/8⌉); pads: of `client_pads`.
    """
    out = np.empty((2 if cut else 1, chosen.shape[1]), np.uint8)
    for body, part in zip(message, chunks(8 * chosen.shape[1], PART), strict=True):
        columns = _columns(part)
        out[:, columns] = _read(steps(bits, cut), body, chosen[:, columns], pads[:, columns])
    return out if cut else out ^ chosen[bits - 1]


def _read(done: Sequence[Step], body: NDArray[np.uint8], chosen: Planes, pads: Planes) -> Planes:
    """Names of the last state."""
    width, position, start = chosen.shape[1], 0, 0
    names, masks = chosen[:0], np.zeros((1, 1), np.uint8)
    for step in done:
        rows = body[position : position + step.rows * width]
        pad = pads[start : start + step.pad]
        position, start = position + len(rows), start + len(pad)
        rows = rows.reshape(1 << step.width, 1 << step.entering, step.length, width)
        rows = _select(rows, chosen[step.first : step.first + step.width]) ^ pad.reshape(rows.shape[1:])
        row = _select(rows, names) ^ masks
        names, masks = row[: step.leaving], row[step.leaving :]
    return names


def _columns(part: slice) -> slice:
    """The bytes of a plane that hold these instances."""
    return slice(part.start // 8, -(-part.stop // 8))
