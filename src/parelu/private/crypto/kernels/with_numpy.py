"""Inner loops in numpy. Blocks are uint64 (n, 2): 16 bytes, the colour is the top bit of the second word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint64]
Planes = NDArray[np.uint8]
COLOUR = np.uint64(63)
TOP = np.uint64(1 << 63)
FLAG = np.uint64(1 << 62)
SPARSE = 0.0  # of a site's positions: up to here, `add_sparse` costs less than the convolution


def add_tweaks(blocks: Blocks, first: np.uint64, uses: NDArray[np.uint64], out: Blocks) -> None:
    """out[k, i] = blocks[k, i] ⊕ (first + i, uses[k]); blocks, out: (k, n, 2)."""
    np.bitwise_xor(blocks[:, :, 0], first + np.arange(blocks.shape[1], dtype=np.uint64), out=out[:, :, 0])
    np.bitwise_xor(blocks[:, :, 1], uses[:, None], out=out[:, :, 1])


def garbler_operands(a: Blocks, b: Blocks, c: Blocks, delta: Blocks, out: Blocks) -> None:
    """out = a ⊕ c, a ⊕ c ⊕ Δ, b ⊕ c, b ⊕ c ⊕ Δ; out: (4, n, 2)."""
    for k, wire in ((0, a), (2, b)):
        np.bitwise_xor(wire, c, out=out[k])
        np.bitwise_xor(out[k], delta, out=out[k + 1])


def evaluator_operands(a: Blocks, b: Blocks, c: Blocks, out: Blocks) -> None:
    """out = a ⊕ c, b ⊕ c; out: (2, n, 2)."""
    np.bitwise_xor(a, c, out=out[0])
    np.bitwise_xor(b, c, out=out[1])


def _where(colour_of: Blocks, blocks: Blocks) -> Blocks:
    """The block where the colour is 1, else zero."""
    return (colour_of[:, 1].view(np.int64) >> 63).view(np.uint64)[:, None] & blocks


def garble(
    operands: Blocks, inner: Blocks, outer: Blocks, c: Blocks, delta: Blocks, table: Blocks, out: Blocks
) -> None:
    """c ⊕ AND of operands 0 and 2 by two half gates (Zahur, Rosulek, Evans 2015, figure 2).

    operands: (4, n, 2), of `garbler_operands`; inner ⊕ outer: their hashes; c: (n, 2); table: (2, n, 2), out: (n, 2),
    written.
    """
    hashes, a, b = inner ^ outer, operands[0], operands[2]
    generator = hashes[0] ^ hashes[1] ^ _where(b, delta)
    evaluator = hashes[2] ^ hashes[3]
    np.bitwise_xor(evaluator, a, out=table[1])
    table[0] = generator
    np.bitwise_xor(hashes[0] ^ _where(a, generator), hashes[2] ^ _where(b, evaluator) ^ c, out=out)


def evaluate(operands: Blocks, inner: Blocks, outer: Blocks, c: Blocks, table: Blocks, out: Blocks) -> None:
    """The same on active labels; operands, inner, outer: (2, n, 2); table: (2, n, 2); out: (n, 2), written."""
    hashes, (a, b) = inner ^ outer, operands
    np.bitwise_xor(hashes[0] ^ _where(a, table[0]), hashes[1] ^ _where(b, table[1] ^ a) ^ c, out=out)


def select_labels(zeros: Blocks, delta: Blocks, values: NDArray[np.uint64], out: Blocks) -> None:
    """out[w, i] = zeros[w, i] ⊕ (bit w of values[i])·Δ; zeros, out: (wires, n, 2)."""
    shifts = np.arange(len(zeros), dtype=np.uint64)[:, None]
    chosen = np.uint64(0) - ((values[None, :] >> shifts) & np.uint64(1))
    np.bitwise_xor(zeros, chosen[:, :, None] & delta, out=out)


def transpose_bits(columns: NDArray[np.uint64], out: Blocks) -> None:
    """Bit i of columns[k] becomes bit k of out[i]; columns: (128, n / 64) of 64-bit words, out: (n, 2)."""
    words = columns.shape[1]
    for half in range(2):
        block = np.empty((64, words), np.uint64)
        _transpose_blocks(columns[64 * half : 64 * half + 64], block)
        out.reshape(-1, 64, 2)[:, :, half] = block.T


def _transpose_blocks(rows: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    """Of each block of 64 × 64, out[k] is column k; rows, out: (64, blocks).

    By masked swaps, six rounds (Warren, Hacker's Delight, 7-3), all blocks at once.
    """
    np.copyto(out, rows)
    words = rows.shape[1]
    scratch = np.empty((32, words), np.uint64)
    width, mask = 32, np.uint64(0xFFFFFFFF)
    while width:
        shift, pairs = np.uint64(width), out.reshape(32 // width, 2, width, words)
        upper, lower, swapped = pairs[:, 0], pairs[:, 1], scratch.reshape(32 // width, width, words)
        np.right_shift(upper, shift, out=swapped)
        swapped ^= lower
        swapped &= mask
        lower ^= swapped
        swapped <<= shift
        upper ^= swapped
        width >>= 1
        mask ^= mask << np.uint64(width)


def bit_planes(words: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    """Bit k of words[i] becomes bit i of out[k]; words: (64n,), out: (64, n)."""
    _transpose_blocks(np.ascontiguousarray(words.reshape(-1, 64).T), out)


def add_states(
    own: Planes, names: Planes, masks: Planes, after: Planes, fresh: Planes, scratch: Planes, rows: Planes
) -> None:
    """rows[x, s] ^= masks[s] ⊕ (name of the state after, its mask): a step of `carries`, for each choice x of the
    client's bits and each name s of the state before.

    Bit planes, w bytes each: own: (1 or 2, w), the server's bits; names: (0 to 2, w), after: (1 or 2, w), what states
    are exclusive-or'd with; masks: (s, l, w); fresh: (2 or 4, l − len(after), w), by the state's name; scratch: (2, w);
    rows: (x, s, l, w). A state is the carry, or the carry and κ, which is the carry where only that comes in; where two
    bits come out and no masks, they are the sign of the sum, and it with κ.
    """
    choices, states = _all_bits(len(own))[:, :, None, None], _all_bits(len(names))[:, None, :, None]
    found = list(names[:, None, None] ^ states) or [np.zeros((1, 1, 1), np.uint8)]
    carry, kappa = found[0], found[-1]
    signs = len(after) == 2 and not fresh.shape[1]
    for k in range(len(own)):
        if signs and k == len(own) - 1:
            carry = ~(choices[k] ^ own[k] ^ carry)
            kappa = kappa & carry
        else:
            carry = carry ^ (choices[k] ^ carry) & (own[k] ^ carry)
    options = fresh[:, None, None]
    rows ^= masks
    for k, (bit, name) in enumerate(zip((carry, kappa), after, strict=False)):
        named = bit ^ name
        rows[:, :, k] ^= named
        options = options[::2] ^ (named[:, :, None] & (options[::2] ^ options[1::2]))
    rows[:, :, len(after) :] ^= options[0]


def _all_bits(width: int) -> Planes:
    """(width, 2^width): bit k of each number, 0 or 255."""
    return (np.arange(1 << width) >> np.arange(width)[:, None] & 1).astype(np.uint8) * np.uint8(255)


def fold(leaves: NDArray[np.uint64], columns: NDArray[np.uint64]) -> None:
    """Sums of leaves: columns[b] ^= that of the leaves whose number has bit b, leaves[0] becomes that of all.

    leaves: (2^k, at least words), overwritten; columns: (k, words).
    """
    nodes = leaves[:, : columns.shape[1]]
    for column in columns:
        column ^= np.bitwise_xor.reduce(nodes[1::2], 0)
        nodes = nodes[::2] ^ nodes[1::2]
    leaves[0, : columns.shape[1]] = nodes[0]


def descend(
    operands: Blocks, permuted: Blocks, paths: NDArray[np.uint64], shift: int, correction: Blocks, sums: Blocks
) -> None:
    """One level of a distributed comparison function, down to the child that bit `shift` of the path says, 1 or more.

    operands: (2, n, 2), the node ⊕ (0 or 2) and ⊕ (1 or 3), by the path's bit; replaced by the child's, by the next
    lower bit; permuted: π of them; correction: (2, n, 2), of the child and of the value; sums: (n, 2), += the value.
    """
    sums += (permuted[1] ^ operands[1]) + _where(operands[0], correction[1])
    taken = _where(operands[0], correction[0])
    child = permuted[0] ^ operands[0] ^ taken
    child[:, 1] ^= taken[:, 1] << np.uint64(1) & (paths >> np.uint64(shift)) << COLOUR
    child[:, 1] &= ~FLAG
    child[:, 0] ^= (paths >> np.uint64(shift - 1) & np.uint64(1)) << np.uint64(1)
    operands[:] = child
    operands[1, :, 0] ^= np.uint64(1)


def arrive(
    operands: Blocks, permuted: Blocks, paths: NDArray[np.uint64], correction: NDArray[np.uint64], sums: Blocks
) -> None:
    """The last level: its value alone, on the side that the path's lowest bit says.

    operands: (n, 2), the node ⊕ (1 or 3) by that bit; permuted: π of it; correction: (2, n, 2), of the left and the
    right value; sums: (n, 2), += the value.
    """
    right = (np.uint64(0) - (paths & np.uint64(1)))[:, None]
    sums += (permuted ^ operands) + _where(operands, correction[0] ^ right & (correction[0] ^ correction[1]))


def correct(
    operands: Blocks,
    permuted: Blocks,
    alphas: NDArray[np.uint64],
    shift: int,
    betas: Blocks,
    sums: Blocks,
    correction: Blocks,
) -> None:
    """The corrections of one level, and both parties' nodes below it on α's path (Boyle et al. 2021, section 3).

    shift: of α's bit, 1 or more: the last level is another.

    operands: (8, n, 2), node ⊕ 0 to 3 of party 0, then of party 1; replaced by the children's; permuted: π of them;
    betas: (n, 2); sums: (n, 2), what the path has added up to, updated; correction: (2, n, 2), written.
    """
    bit = alphas >> np.uint64(shift) & np.uint64(1)
    right = (np.uint64(0) - bit)[:, None]  # all ones where the path goes right
    left, other = np.moveaxis((permuted ^ operands).reshape(2, 2, 2, -1, 2), 1, 0)  # (party, node or value, n, 2)
    swapped = right & (left ^ other)
    path, beside = left ^ swapped, other ^ swapped
    minus = (operands[4, :, 1:].view(np.int64) >> 63).view(np.uint64)  # (−1)^t·z = (z ^ minus) − minus
    value = beside[1, 1] - beside[0, 1] - sums + (right & betas)  # β where x leaves α's path to the left
    value = (value ^ minus) - minus
    sums += path[0, 1] - path[1, 1] + (value ^ minus) - minus
    colour = left[0, 0, :, 1] ^ left[1, 0, :, 1]
    change = ~(colour ^ other[0, 0, :, 1] ^ other[1, 0, :, 1]) & TOP
    node = beside[0, 0] ^ beside[1, 0]
    node[:, 1] = node[:, 1] & ~(TOP | FLAG) | (colour ^ (~bit << COLOUR)) & TOP
    correction[0], correction[1] = node, value
    correction[0, :, 1] |= change >> np.uint64(1)
    node[:, 1] ^= change & right[:, 0]
    path[:, 0, :, 1] &= ~FLAG
    for party in range(2):
        operands[4 * party : 4 * party + 4] = path[party, 0] ^ _where(operands[4 * party], node)
    operands[:, :, 0] ^= (np.arange(8, dtype=np.uint64) & np.uint64(3))[:, None]


def spread(nodes: Blocks, out: Blocks) -> None:
    """out[k] = nodes ⊕ k; nodes: (n, 2), out: (k, n, 2)."""
    out[:] = nodes
    out[:, :, 0] ^= np.arange(len(out), dtype=np.uint64)[:, None]


def grow(
    operands: Blocks, permuted: Blocks, first: int, width: int, children: Blocks, added: Blocks, mixed: Blocks
) -> None:
    """One level of whole trees: of nodes `first` and on, `width` of them a tree, the children and the trees' sums.

    operands: (4, n, 2), the nodes ⊕ 0 to 3, either of some whole trees or of one; permuted: π of them; children:
    (n, 2, 2), written; added: (2, trees, 2), += left and right values; mixed: as much, ^= left and right children.
    """
    found = (permuted ^ operands).reshape(4, -1, min(width, operands.shape[1]), 2)
    children[:] = np.moveaxis((permuted[::2] ^ operands[::2]), 0, 1)
    trees = slice(first // width, first // width + found.shape[1])
    mixed[:, trees] ^= np.bitwise_xor.reduce(found[::2], axis=2)
    added[:, trees] += found[1::2].sum(2, dtype=np.uint64)


def correct_children(nodes: Blocks, node: Blocks, children: Blocks) -> None:
    """children, (c, w, 2, 2), ^= the correction where the node above, (c, w, 2), has colour 1; then they are nodes.

    node: (c, 2), the correction as it is in the key: with the right child's change of colour below the left's colour.
    """
    taken = np.uint64(0) - (nodes[:, :, 1] >> COLOUR)
    right = node[:, 1] ^ node[:, 1] << np.uint64(1) & TOP
    children[:, :, :, 0] ^= (taken & node[:, :1])[:, :, None]
    children[:, :, 0, 1] ^= taken & node[:, 1:]
    children[:, :, 1, 1] ^= taken & right[:, None]
    children[..., 1] &= ~FLAG


def limb_offset(width: int, count: int) -> np.uint64:
    """Half of each limb: added to an element, it makes limbs from 0 to 2^width − 1 of those that are signed."""
    return np.uint64(sum(1 << k * width + width - 1 for k in range(count)) % (1 << 64))


def limb_columns(
    x: NDArray[np.uint64], width: int, stride: tuple[int, int], padding: tuple[int, int], out: NDArray[np.float64]
) -> None:
    """out[c, u, v, k, n, i, j] = limb k of x[n, c] at row i·stride + u − padding, column j·stride + v − padding.

    Σ_k limb k·2^(k·width) is x modulo 2^(K·width), or 2^64 where that is less; |limb| ≤ 2^(width − 1).
    x: (N, C, H, W); outside of it is 0.
    """
    low, half = np.uint64((1 << width) - 1), np.int64(1 << width >> 1)
    raised = x + limb_offset(width, out.shape[3])
    parts = [(raised >> np.uint64(k * width) & low).view(np.int64) - half for k in range(out.shape[3])]
    limbs = np.stack(parts).astype(np.float64)
    (top, left), (down, across) = padding, stride
    padded = np.pad(limbs, ((0, 0), (0, 0), (0, 0), (top, top), (left, left)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, out.shape[1:3], (3, 4))
    np.copyto(out, windows[:, :, :, ::down, ::across].transpose(2, 5, 6, 0, 1, 3, 4))


def join_limbs(products: NDArray[np.float64], width: int, out: NDArray[np.uint64]) -> None:
    """out[n, o] = Σ_k products[o, k, n]·2^(k·width) modulo 2^64; products: (O, K, N, H, W), exact integers."""
    parts = products.astype(np.int64).view(np.uint64)
    shifts = (np.arange(parts.shape[1], dtype=np.uint64) * np.uint64(width))[:, None, None, None]
    np.copyto(out, (parts << shifts).sum(1, dtype=np.uint64).transpose(1, 0, 2, 3))


def add_sparse(
    weight: NDArray[np.uint64],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    positions: NDArray[np.int64],
    values: NDArray[np.uint64],
    out: NDArray[np.uint64],
) -> None:
    """out += the convolution of the x that is 0 but for `values` at flat `positions`, modulo 2^64.

    weight: (C, kh, kw, O); size: (H, W) of x; out: (O, H', W').
    """
    channel, row, column = np.unravel_index(positions, (len(weight), *size))
    total = np.zeros((*out.shape[1:], len(out)), np.uint64)
    for u, v in np.ndindex(*weight.shape[1:3]):
        (i, rest_i), (j, rest_j) = divmod(row + padding[0] - u, stride[0]), divmod(column + padding[1] - v, stride[1])
        hit = (rest_i == 0) & (rest_j == 0) & (i >= 0) & (j >= 0) & (i < out.shape[1]) & (j < out.shape[2])
        np.add.at(total, (i[hit], j[hit]), weight[channel[hit], u, v] * values[hit, None])
    out += total.transpose(2, 0, 1)
