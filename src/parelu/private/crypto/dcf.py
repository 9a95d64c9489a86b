"""Distributed comparison functions: two keys that tell nothing of α and β, and whose values at a public x add up to
β where x < α, and to 0 elsewhere.

The construction of Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar and Rathee (EUROCRYPT 2021, section 3), for n functions
at once; α and x have `levels` bits, β is a pair of ring elements. A node of the tree is a block: its colour is the
control bit t, the other 127 bits are the seed. The generator is made of AES under a random public key, π:

    G(node) = F(node ⊕ 0), …, F(node ⊕ 3)    F(z) = π(z) ⊕ z    left child, left value, right child, right value

of which an evaluation takes two blocks a level. G is pseudorandom where π is an ideal permutation: the other party's
seeds on the path to α are uniform, independent and expanded once each. TMMO, whose tweaks cost a third block, would
help only against the number of seeds under one π, log2 of which is lost.

A level's correction is two blocks an instance: that of the child, whose colour is the left child's; and that of the
value, whose colour is 1 where the right child's is another.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.garbling import TOP, chunks, colours
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks
from parelu.private.crypto.ring import Ring, reduce

CHUNK = 2000  # functions at a time; with a power of two the streams of blocks would evict each other from the cache


def correction_blocks(levels: int, count: int) -> int:
    """Blocks of corrections of `count` functions; they stand chunk by chunk, then level by level."""
    return (2 * levels + 1) * count


@dataclasses.dataclass(frozen=True, eq=False)
class Key(Encodable, kind="comparison key"):
    """One party's key of n functions.

    Attributes:
        permutation: 16 bytes, the public key of π.
        party: 0 or 1.
        roots: (n, 2), uniform; no other key has them.
        corrections: (`correction_blocks`, 2), the same for both parties.
    """

    permutation: bytes
    party: int
    levels: int
    roots: Blocks
    corrections: Blocks

    def evaluate(self, points: Ring) -> Ring:
        """The party's share, (n, 2), of the values at the lowest `levels` bits of (n,) points, modulo 2^64.

        Nothing branches or indexes on the key.
        """
        hash, sums = Hash(self.permutation), np.zeros((len(points), 2), np.uint64)
        for part in chunks(len(points), CHUNK):
            size = part.stop - part.start
            levels, last = parts(self.corrections, self.levels, part)
            # One bit more, 0, behind the lowest: the node below the last level is looked at as it is.
            paths = points[part] << np.uint64(1)
            scratch = hash.scratch(2, size)
            scratch.operands[:] = rooted(self.roots[part], self.party)
            scratch.operands[:, :, 0] ^= (paths >> np.uint64(self.levels) & np.uint64(1)) << np.uint64(1)
            scratch.operands[1, :, 0] ^= np.uint64(1)
            for level, correction in enumerate(levels):
                permuted = hash.permuted(scratch)
                kernels.descend(scratch.operands, permuted, paths, self.levels - level, correction, sums[part])
            node = scratch.operands[0]
            sums[part] += node + colours(node)[:, None] * last
        return sums if self.party == 0 else np.uint64(0) - sums


def correct(permutation: bytes, levels: int, alphas: Ring, betas: Ring, roots: tuple[Blocks, Blocks]) -> Blocks:
    """The corrections that make both parties' roots keys of n functions, (blocks, 2).

    alphas: (n,), of which the lowest `levels` bits count; betas: (n, 2), below 2^59.
    """
    hash, count = Hash(permutation), len(alphas)
    corrections = np.empty((correction_blocks(levels, count), 2), np.uint64)
    children = np.arange(4, dtype=np.uint64)[:, None]
    for part in chunks(count, CHUNK):
        own, last = parts(corrections, levels, part)
        sums = np.zeros((part.stop - part.start, 2), np.uint64)  # what α's path has added up to so far
        scratch = hash.scratch(8, len(sums))
        for party in range(2):
            four = scratch.operands[4 * party : 4 * party + 4]
            four[:] = rooted(roots[party][part], party)
            four[:, :, 0] ^= children
        for level, correction in enumerate(own):
            permuted = hash.permuted(scratch)
            shift = levels - 1 - level
            kernels.correct(scratch.operands, permuted, alphas[part], shift, betas[part], sums, correction)
        first, second = scratch.operands[0], scratch.operands[4]
        sign = np.uint64(1) - np.uint64(2) * colours(second)[:, None]
        last[:] = reduce(sign * (second - first - sums))
    return corrections


def parts(corrections: Blocks, levels: int, part: slice) -> tuple[NDArray[np.uint64], Blocks]:
    """Views of a chunk's corrections: (levels, 2, size, 2) of the levels, (size, 2) of the leaves."""
    size = part.stop - part.start
    start, stop = correction_blocks(levels, part.start), correction_blocks(levels, part.stop)
    return corrections[start : stop - size].reshape(levels, 2, size, 2), corrections[stop - size : stop]


def rooted(roots: Blocks, party: int) -> Blocks:
    """The roots with the party's number as colour."""
    rooted = roots.copy()
    rooted[:, 1] = rooted[:, 1] & ~TOP | np.uint64(party) << np.uint64(63)
    return rooted
