"""Keys of distributed comparison functions that two parties make for each other, without a dealer.

After Doerner and Shelat (CCS 2017), for the construction of `crypto.dcf`, with α shared by XOR and β by addition.
Each party grows the whole tree under its own root. Off α's path both have the same nodes, which cancel: XOR or
difference of the sums over a level are those of the two nodes on the path. So a level's correction is a choice by a
shared bit of α, which is made by oblivious transfer. Its sign is party 1's colour on the path, told by the numbers T₀
and T₁ of nodes of colour 1, which are one apart:

    t₁ on the path = h₀ ⊕ h₁ ⊕ (T₁ mod 2)    h = ⌊T / 2⌋ mod 2

The work doubles with each bit, so there is a limit of `MOST_BITS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.dcf import CHUNK, FLAG, Key, correction_blocks, parts, rooted
from parelu.private.crypto.garbling import TOP, chunks
from parelu.private.crypto.hash import OT_DOMAIN, Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.ot_extension import ExtensionReceiver, ExtensionSender, message_bytes
from parelu.private.crypto.prg import Blocks, Stream
from parelu.private.crypto.ring import Elements
from parelu.private.transport.channel import Channel
from parelu.private.transport.messages import Messages, to_client, to_server

MOST_BITS = 16
MEMORY = 1 << 26  # bytes of the lowest level of the trees that are grown together
NODES = 4096  # that are permuted together: their blocks stay in the cache

# Uses of a transfer, for its tweak.
VALUE, TOP_BIT, SIDES, PAYLOAD, NODE, SIGN = range(OT_DOMAIN + 3, OT_DOMAIN + 9)


class Connection(Protocol):
    """A party's transfers with the other, each way. compared: how many of them have made keys so far."""

    channel: Channel
    hash: Hash
    sender: ExtensionSender
    receiver: ExtensionReceiver
    compared: int


def make(
    offline: Connection, party: int, permutation: bytes, own: Stream, count: int, bits: int
) -> tuple[Key, Elements, Elements]:
    """A party's (key, share of r, share of r_t·(1, r)) as `ClientOffline.comparison` says; party: the client is 0."""
    levels, roots = bits - 1, own.blocks(count)
    choices = own.bits(bits * count).reshape(bits, count)
    transfers = _Transfers(offline, party, choices)
    weights = np.zeros((bits, count, 2), np.uint64)
    if party:
        weights[:, :, 0] = np.uint64(1) << np.arange(bits, dtype=np.uint64)[:, None]
    low = transfers.times(slice(0, bits), slice(0, count), VALUE, weights)[:, :, 0].sum(0, dtype=np.uint64)
    r = low + (own.elements(count) << np.uint64(bits))
    one_and_r = np.stack([np.full(count, party, np.uint64), r], 1)
    top = transfers.times(slice(levels, bits), slice(0, count), TOP_BIT, one_and_r[None])[0]
    betas = one_and_r - np.uint64(2) * top
    corrections = np.empty((correction_blocks(levels, count), 2), np.uint64)
    hash = Hash(permutation)
    for part in chunks(count, CHUNK):
        each = parts(corrections, levels, part)
        for few in chunks(part.stop - part.start, _together(levels)):
            trees = slice(part.start + few.start, part.start + few.stop)
            grown = _Trees(offline, party, hash, transfers, trees, roots[trees], betas[trees])
            each[:, :, few] = grown.corrections(levels)
    return Key(permutation, party, levels, roots, corrections), r, top


def _together(levels: int) -> int:
    """Trees that are grown at a time."""
    return max(1, MEMORY >> levels + 4)


def traffic(count: int, bits: int) -> Iterator[Messages]:
    """What the two send each other in `make`."""
    levels = bits - 1
    lengths = [message_bytes(bits * count), 16 * bits * count, 16 * count]
    for part in chunks(count, CHUNK):
        for few in chunks(part.stop - part.start, _together(levels)):
            trees = few.stop - few.start
            of_level = [16 * trees] * 4  # sides, payload, node, and the correction
            signed = [message_bytes((levels + 1) * trees), *[16 * (levels + 1) * trees] * 2]
            lengths += [*of_level * (levels - 1), 16 * trees, *signed]
    for length in lengths:
        yield to_client(length)
        yield to_server(length)


class _Transfers:
    """A transfer each way for every bit; a party chooses by its own bits, whose XOR with the other's is shared.

    bits: own ones, (rows, n).
    """

    def __init__(self, offline: Connection, party: int, bits: NDArray[np.uint8]) -> None:
        self.offline, self.party, self.bits = offline, party, bits
        message, chosen = offline.receiver.extend(bits.reshape(-1))
        theirs = exchange(offline, party, message)
        assert len(theirs) == message_bytes(bits.size)
        self._chosen = chosen.reshape(*bits.shape, 2)
        self._offered = offline.sender.extend(theirs, bits.size).reshape(*bits.shape, 2)
        self._first, offline.compared = offline.compared, offline.compared + bits.size

    def times(self, rows: slice, part: slice, use: int, values: Elements) -> Elements:
        """A share of bit · value, (rows, n, 2), of bits shared by XOR and values shared by addition."""
        bits = self.bits[rows, part].astype(np.uint64)[:, :, None]
        zero, one, chosen = self._pads(rows, part, use)
        # mine ⊕ other = mine + (1 − 2·mine)·other: the other party chooses that multiple of this one's value, or 0.
        theirs = self._swap(zero - one + (np.uint64(1) - np.uint64(2) * bits) * values)
        return bits * values - zero + chosen + bits * theirs

    def masked(self, rows: slice, part: slice, use: int, blocks: Blocks) -> Blocks:
        """A share of bit · block, (rows, n, 2), of bits and blocks shared by XOR."""
        mask = np.uint64(0) - self.bits[rows, part].astype(np.uint64)[:, :, None]
        zero, one, chosen = self._pads(rows, part, use)
        theirs = self._swap(zero ^ one ^ blocks)
        return (mask & (blocks ^ theirs)) ^ zero ^ chosen

    def _pads(self, rows: slice, part: slice, use: int) -> tuple[Blocks, Blocks, Blocks]:
        """Both that this party offers, and the one that it has of the other's."""
        hash, delta = self.offline.hash, self.offline.sender.delta
        pads = np.empty((3, rows.stop - rows.start, part.stop - part.start, 2), np.uint64)
        for at, row in enumerate(range(rows.start, rows.stop)):
            first = self._first + row * self.bits.shape[1] + part.start
            offered, chosen = self._offered[row, part], self._chosen[row, part]
            for pad, rows_of in zip(pads[:, at], (offered, offered ^ delta, chosen), strict=True):
                pad[:] = hash(rows_of, first, use)
        return pads[0], pads[1], pads[2]

    def _swap(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return exchange(self.offline, self.party, values).view(np.uint64).reshape(values.shape)


def exchange(offline: Connection, party: int, values: NDArray) -> NDArray[np.uint8]:
    """The other party's message of the same length; the server's goes first."""
    channel = offline.channel
    if party:
        channel.send("comp", values)
    theirs = channel.receive("comp", values.nbytes)
    if not party:
        channel.send("comp", values)
    return theirs


@dataclasses.dataclass(eq=False)
class _Trees:
    """A party's trees of some functions, and with the other's what corrects them. Shapes: c trees, w nodes a level."""

    offline: Connection
    party: int
    hash: Hash
    transfers: _Transfers
    part: slice
    roots: Blocks
    betas: Elements

    def corrections(self, levels: int) -> NDArray[np.uint64]:
        """(levels, 2, c, 2): what `dcf.correct` makes of the same secrets."""
        count = len(self.roots)
        nodes = rooted(self.roots, self.party)[:, None]
        sums = np.zeros((count, 2), np.uint64)  # a share of what α's path has added up to so far
        out = np.empty((levels, 2, count, 2), np.uint64)
        values, signs = [], []
        for level in range(levels - 1):
            signs.append(self._colour_on_path(nodes))
            row = slice(levels - 1 - level, levels - level)
            nodes, value, sums, out[level, 0] = self._level(nodes, sums, row)
            values.append(value)
        signs += [self._colour_on_path(nodes)] * 2
        values += self._last_level(nodes, sums)
        opened = self._with_signs(np.stack(signs), np.stack(values))
        out[:-1, 1], out[-1] = opened[:-2], opened[-2:]
        return out

    def _last_level(self, nodes: Blocks, sums: Elements) -> tuple[Elements, Elements]:
        """Shares of its left and its right value."""
        left, right = (self._signed(side) for side in _values(self.hash, nodes))
        payload = self.transfers.times(slice(0, 1), self.part, PAYLOAD, self.betas[None])[0]
        return left - sums + payload, right - sums

    def _level(self, nodes: Blocks, sums: Elements, row: slice) -> tuple[Blocks, Elements, Elements, Blocks]:
        """The children, shares of the level's value and of the path's sum, and the correction of a child."""
        children, added, mixed = _grow(self.hash, nodes)
        left, right = (self._signed(side) for side in added)
        lost = right + self.transfers.times(row, self.part, SIDES, (left - right)[None])[0]
        payload = self.transfers.times(row, self.part, PAYLOAD, self.betas[None])[0]
        node = mixed[1] ^ self.transfers.masked(row, self.part, NODE, (mixed[0] ^ mixed[1])[None])[0]
        bit = self.transfers.bits[row, self.part][0].astype(np.uint64) << np.uint64(63)
        always = np.uint64(0) if self.party else TOP
        change = (mixed[0, :, 1] ^ mixed[1, :, 1] ^ always) & TOP
        node[:, 1] = node[:, 1] & ~(TOP | FLAG) | (mixed[0, :, 1] ^ bit ^ always) & TOP | change >> np.uint64(1)
        node ^= exchange(self.offline, self.party, node).view(np.uint64).reshape(node.shape)
        value = lost - sums + payload
        kernels.correct_children(nodes, node, children)
        count, width = nodes.shape[:2]
        return children.reshape(count, 2 * width, 2), value, sums + value - (left + right - lost), node

    def _signed(self, sums: Elements) -> Elements:
        """A share of party 1's less party 0's."""
        return sums if self.party else np.uint64(0) - sums

    def _colour_on_path(self, nodes: Blocks) -> NDArray[np.uint8]:
        """A share by XOR, (c,), of party 1's colour on α's path."""
        ones = (nodes[:, :, 1] >> np.uint64(63)).sum(1, dtype=np.uint64)
        shared = ones >> np.uint64(1) ^ (ones if self.party else np.uint64(0))
        return (shared & np.uint64(1)).astype(np.uint8)

    def _with_signs(self, signs: NDArray[np.uint8], values: Elements) -> Elements:
        """(−1)^sign·value, opened; signs: (rows, c), shared by XOR; values: (rows, c, 2), by addition."""
        rows, count = signs.shape
        flipped = _Transfers(self.offline, self.party, signs).times(slice(0, rows), slice(0, count), SIGN, values)
        own = values - np.uint64(2) * flipped
        theirs = exchange(self.offline, self.party, own).view(np.uint64).reshape(own.shape)
        return own + theirs


def _grow(hash: Hash, nodes: Blocks) -> tuple[Blocks, Elements, Blocks]:
    """(c, w, 2) nodes → children (c, w, 2, 2), before correction; sums of left and right values and the XOR of left
    and right children, (2, c, 2) each."""
    count, width = nodes.shape[:2]
    flat, children = nodes.reshape(-1, 2), np.empty((count * width, 2, 2), np.uint64)
    added, mixed = np.zeros((2, 2, count, 2), np.uint64)
    for part in chunks(len(flat), NODES):  # whole trees, or parts of one: both numbers are powers of two
        scratch = hash.scratch(4, part.stop - part.start)
        kernels.spread(flat[part], scratch.operands)
        permuted = hash.permuted(scratch)
        kernels.grow(scratch.operands, permuted, part.start, width, children[part], added, mixed)
    return children.reshape(count, width, 2, 2), added, mixed


def _values(hash: Hash, nodes: Blocks) -> Elements:
    """The sums of left and right values of (c, w, 2) nodes, (2, c, 2)."""
    count, width = nodes.shape[:2]
    flat, added = nodes.reshape(-1, 2), np.zeros((2, count, 2), np.uint64)
    for part in chunks(len(flat), NODES):
        scratch = hash.scratch(2, part.stop - part.start)
        scratch.operands[:] = flat[part]
        scratch.operands[:, :, 0] ^= np.array([[1], [3]], np.uint64)
        found = (hash.permuted(scratch) ^ scratch.operands).reshape(2, -1, min(width, part.stop - part.start), 2)
        trees = slice(part.start // width, part.start // width + found.shape[1])
        added[:, trees] += found.sum(2, dtype=np.uint64)
    return added
