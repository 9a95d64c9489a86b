"""What a server does with a client's ciphertexts under hints: a plain convolution of their coefficients, by BLAS."""

from __future__ import annotations

import numpy as np

from parelu.fusion.hint_layout import Reader
from parelu.private.crypto.lattice.parameters import PRIMES
from parelu.private.crypto.lattice.residues import Residues, columns
from parelu.private.crypto.ring import scratch

TOGETHER = 1 << 19  # elements of columns at a time: they stay in the cache until BLAS has read them


def convolved(reader: Reader, matrix: Residues, sent: Residues) -> Residues:
    """Σ_i b_i·w_i, (primes, elements in order of the slots in use), exact integers.

    matrix: of `Reader.matrix`; sent: (primes, tiles, parts, coefficients), balanced.
    """
    tiles = reader.upload.tiles
    sums = np.empty((len(PRIMES), reader.groups, reader.group_rows, tiles, reader.slots))
    for tile in range(tiles):
        sequences = reader.sequences(sent[:, tile])
        for group in range(reader.groups):
            _multiply(reader, matrix[group], sequences, group, sums[:, group, :, tile])
    return sums.reshape(len(PRIMES), reader.rows, tiles, reader.slots)[:, reader.used]


def _multiply(reader: Reader, weights: Residues, sequences: Residues, group: int, out: Residues) -> None:
    """One group of one tile, as many primes at once as the cache has room for; out: (primes, rows, slots)."""
    step = max(1, TOGETHER // (reader.columns * reader.slots))
    for first in range(0, len(PRIMES), step):
        of_primes = sequences[first : first + step]
        found = columns(of_primes, reader.parts[group], reader.taps, reader.index)
        product = scratch("products of columns", len(weights), found.shape[1])
        np.matmul(weights, found, out=product)
        out[first : first + step] = product.reshape(len(weights), len(of_primes), -1).swapaxes(0, 1)
