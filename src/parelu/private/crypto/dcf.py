"""Distributed comparison functions: two keys that tell nothing of α and β, and whose values at a public x add up to
β where x < α, and to 0 elsewhere.

The construction of Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar and Rathee (EUROCRYPT 2021, section 3), for n functions
at once; α and x have `levels` bits, β is a pair of elements modulo 2^64. A node of the tree is a block: its colour is
the control bit t, the next bit is 0, the other 126 are the seed. The generator is made of AES under a random public
key, π:

    G(node) = F(node ⊕ 0), …, F(node ⊕ 3)    F(z) = π(z) ⊕ z    left child, left value, right child, right value

of which an evaluation takes two blocks a level. G is pseudorandom where π is an ideal permutation: the other party's
seeds on the path to α are uniform, independent and expanded once each. TMMO, whose tweaks cost a third block, would
help only against the number of seeds under one π, log2 of which is lost.

A level's correction is two blocks an instance: that of the child, whose colour is the left child's, and whose next bit
is 1 where the right child's colour is another; and that of the value. Below the last level nothing is grown: there α's
path ends, so the values of both sides are corrected, to β left of α's path and to 0 on it and right of it, and these
are the level's two blocks. (In the paper a value of the leaf does that, made of its seed, which here has too few bits.)
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.garbling import TOP, chunks
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks
from parelu.private.crypto.ring import Elements

FLAG = np.uint64(1 << 62)  # in the second word of a node, below its colour
CHUNK = 2000  # functions at a time; with a power of two the streams of blocks would evict each other from the cache


def correction_blocks(levels: int, count: int) -> int:
    """Blocks of corrections of `count` functions; they stand chunk by chunk, then level by level."""
    return 2 * levels * count


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

    def evaluate(self, points: Elements) -> Elements:
        """The party's share, (n, 2), of the values at the lowest `levels` bits of (n,) points, modulo 2^64.

        Nothing branches or indexes on the key.
        """
        hash, sums = Hash(self.permutation), np.zeros((len(points), 2), np.uint64)
        for part in chunks(len(points), CHUNK):
            size, paths = part.stop - part.start, points[part]
            *above, lowest = parts(self.corrections, self.levels, part)
            scratch = hash.scratch(2, size)
            scratch.operands[:] = rooted(self.roots[part], self.party)
            scratch.operands[:, :, 0] ^= (paths >> np.uint64(self.levels - 1) & np.uint64(1)) << np.uint64(1)
            scratch.operands[1, :, 0] ^= np.uint64(1)
            for level, correction in enumerate(above, start=1):
                permuted = hash.permuted(scratch)
                kernels.descend(scratch.operands, permuted, paths, self.levels - level, correction, sums[part])
            values = hash.scratch(1, size)
            values.operands[0] = scratch.operands[1]
            kernels.arrive(values.operands[0], hash.permuted(values)[0], paths, lowest, sums[part])
        return sums if self.party == 0 else np.uint64(0) - sums


def correct(permutation: bytes, levels: int, alphas: Elements, betas: Elements, roots: tuple[Blocks, Blocks]) -> Blocks:
    """The corrections that make both parties' roots keys of n functions, (blocks, 2).

    alphas: (n,), of which the lowest `levels` bits count; betas: (n, 2).
    """
    hash, count = Hash(permutation), len(alphas)
    corrections = np.empty((correction_blocks(levels, count), 2), np.uint64)
    children = np.arange(4, dtype=np.uint64)[:, None]
    for part in chunks(count, CHUNK):
        *above, lowest = parts(corrections, levels, part)
        sums = np.zeros((part.stop - part.start, 2), np.uint64)  # what α's path has added up to so far
        scratch = hash.scratch(8, len(sums))
        for party in range(2):
            four = scratch.operands[4 * party : 4 * party + 4]
            four[:] = rooted(roots[party][part], party)
            four[:, :, 0] ^= children
        for level, correction in enumerate(above, start=1):
            permuted = hash.permuted(scratch)
            kernels.correct(scratch.operands, permuted, alphas[part], levels - level, betas[part], sums, correction)
        values = hash.scratch(4, len(sums))
        values.operands[:] = scratch.operands[1::2]  # left and right of party 0, then of party 1
        lowest[:] = np.subtract(*(hash.permuted(values) ^ values.operands).reshape(2, 2, -1, 2)[::-1]) - sums
        lowest[0] += (alphas[part] & np.uint64(1))[:, None] * betas[part]
        _negate_where(scratch.operands[4], lowest)
    return corrections


def _negate_where(nodes: Blocks, values: NDArray[np.uint64]) -> None:
    """values, (k, n, 2), become their negatives where the node, (n, 2), has colour 1; without a branch."""
    minus = np.uint64(0) - (nodes[:, 1:] >> np.uint64(63))
    values ^= minus
    values -= minus


def parts(corrections: Blocks, levels: int, part: slice) -> NDArray[np.uint64]:
    """View of a chunk's corrections, (levels, 2, size, 2): of the child and the value, on the last level of the left
    and the right value."""
    start, stop = correction_blocks(levels, part.start), correction_blocks(levels, part.stop)
    return corrections[start:stop].reshape(levels, 2, part.stop - part.start, 2)


def rooted(roots: Blocks, party: int) -> Blocks:
    """The roots with the party's number as colour."""
    rooted = roots.copy()
    rooted[:, 1] = rooted[:, 1] & ~(TOP | FLAG) | np.uint64(party) << np.uint64(63)
    return rooted
