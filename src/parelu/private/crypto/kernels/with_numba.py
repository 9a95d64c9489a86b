"""Inner loops compiled by numba; what each computes stands in `with_numpy`."""

from __future__ import annotations

from typing import Any

import numpy as np

from parelu.network.cache import compiled

SPARSE = 0.3
FOLDED = 128  # words of all leaves at a time: they stay in the cache
COLOUR, TOP, FLAG = np.uint64(63), np.uint64(1 << 63), np.uint64(1 << 62)
_loop = compiled(nogil=True)


@_loop
def add_tweaks(blocks: Any, first: Any, uses: Any, out: Any) -> None:
    for k in range(len(blocks)):
        for i in range(blocks.shape[1]):
            out[k, i, 0] = blocks[k, i, 0] ^ (first + np.uint64(i))
            out[k, i, 1] = blocks[k, i, 1] ^ uses[k]


@_loop
def garbler_operands(a: Any, b: Any, c: Any, delta: Any, out: Any) -> None:
    for i in range(len(a)):
        for word in range(2):
            left, right = a[i, word] ^ c[i, word], b[i, word] ^ c[i, word]
            out[0, i, word] = left
            out[1, i, word] = left ^ delta[word]
            out[2, i, word] = right
            out[3, i, word] = right ^ delta[word]


@_loop
def evaluator_operands(a: Any, b: Any, c: Any, out: Any) -> None:
    for i in range(len(a)):
        for word in range(2):
            out[0, i, word] = a[i, word] ^ c[i, word]
            out[1, i, word] = b[i, word] ^ c[i, word]


# A loop over the two words of a block would be compiled into one for each colour, and a branch between them.


@_loop
def garble(operands: Any, inner: Any, outer: Any, c: Any, delta: Any, table: Any, out: Any) -> None:
    for i in range(len(c)):
        colour_a = np.uint64(np.int64(operands[0, i, 1]) >> np.int64(63))
        colour_b = np.uint64(np.int64(operands[2, i, 1]) >> np.int64(63))
        _garble_word(operands, inner, outer, c, delta, table, out, i, 0, colour_a, colour_b)
        _garble_word(operands, inner, outer, c, delta, table, out, i, 1, colour_a, colour_b)


@_loop
def _garble_word(
    operands: Any,
    inner: Any,
    outer: Any,
    c: Any,
    delta: Any,
    table: Any,
    out: Any,
    i: int,
    word: int,
    colour_a: Any,
    colour_b: Any,
) -> None:
    left, right = inner[0, i, word] ^ outer[0, i, word], inner[2, i, word] ^ outer[2, i, word]
    generator = left ^ inner[1, i, word] ^ outer[1, i, word] ^ (colour_b & delta[word])
    evaluator = right ^ inner[3, i, word] ^ outer[3, i, word]
    table[0, i, word] = generator
    table[1, i, word] = evaluator ^ operands[0, i, word]
    out[i, word] = left ^ (colour_a & generator) ^ right ^ (colour_b & evaluator) ^ c[i, word]


@_loop
def evaluate(operands: Any, inner: Any, outer: Any, c: Any, table: Any, out: Any) -> None:
    for i in range(len(c)):
        colour_a = np.uint64(np.int64(operands[0, i, 1]) >> np.int64(63))
        colour_b = np.uint64(np.int64(operands[1, i, 1]) >> np.int64(63))
        out[i, 0] = _evaluated_word(operands, inner, outer, c, table, i, 0, colour_a, colour_b)
        out[i, 1] = _evaluated_word(operands, inner, outer, c, table, i, 1, colour_a, colour_b)


@_loop
def _evaluated_word(
    operands: Any, inner: Any, outer: Any, c: Any, table: Any, i: int, word: int, colour_a: Any, colour_b: Any
) -> Any:
    left = inner[0, i, word] ^ outer[0, i, word] ^ (colour_a & table[0, i, word])
    right = inner[1, i, word] ^ outer[1, i, word] ^ (colour_b & (table[1, i, word] ^ operands[0, i, word]))
    return left ^ right ^ c[i, word]


@_loop
def select_labels(zeros: Any, delta: Any, values: Any, out: Any) -> None:
    for wire in range(len(zeros)):
        shift = np.uint64(wire)
        for i in range(zeros.shape[1]):
            chosen = np.uint64(0) - ((values[i] >> shift) & np.uint64(1))
            out[wire, i, 0] = zeros[wire, i, 0] ^ (chosen & delta[0])
            out[wire, i, 1] = zeros[wire, i, 1] ^ (chosen & delta[1])


@_loop
def transpose_bits(columns: Any, out: Any) -> None:
    # 32 words of a column at a time: every swap is then one pass over neighbours, which the compiler vectorises.
    block = np.empty((2, 64, 32), np.uint64)
    for first in range(0, columns.shape[1], 32):
        lanes = min(32, columns.shape[1] - first)
        for k in range(64):
            for lane in range(lanes):
                block[0, k, lane], block[1, k, lane] = columns[k, first + lane], columns[64 + k, first + lane]
        _transpose_blocks(block[0])
        _transpose_blocks(block[1])
        for lane in range(lanes):
            for k in range(64):
                row = 64 * (first + lane) + k
                out[row, 0], out[row, 1] = block[0, k, lane], block[1, k, lane]


@_loop
def bit_planes(words: Any, out: Any) -> None:
    block = np.empty((64, 32), np.uint64)
    for first in range(0, out.shape[1], 32):
        lanes = min(32, out.shape[1] - first)
        for lane in range(lanes):
            for k in range(64):
                block[k, lane] = words[64 * (first + lane) + k]
        _transpose_blocks(block)
        for k in range(64):
            for lane in range(lanes):
                out[k, first + lane] = block[k, lane]


@_loop
def add_states(own: Any, names: Any, masks: Any, after: Any, fresh: Any, bits: Any, rows: Any) -> None:
    added = len(own) - (1 if len(after) == 2 and fresh.shape[1] == 0 else 0)
    for x in range(len(rows)):
        for s in range(rows.shape[1]):
            for k in range(2 * min(1, len(names))):
                which = min(k, len(names) - 1)
                _copy_flipped(names[which], np.uint8(255 * (s >> which & 1)), bits[k])
            if len(names) == 0:
                bits[0] = 0
            for k in range(added):
                _add_bit(own[k], np.uint8(255 * (x >> k & 1)), bits[0])
            for k in range(added, len(own)):
                _add_sign(own[k], np.uint8(255 * (x >> k & 1)), bits[0], bits[1])
            _add_row(bits, masks[s], after, fresh, rows[x, s])


@_loop
def _copy_flipped(name: Any, flip: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = name[i] ^ flip


@_loop
def _add_bit(own: Any, choice: Any, carry: Any) -> None:
    for i in range(len(carry)):
        carry[i] ^= (choice ^ carry[i]) & (own[i] ^ carry[i])


@_loop
def _add_sign(own: Any, choice: Any, carry: Any, kappa: Any) -> None:
    for i in range(len(carry)):
        carry[i] = ~(choice ^ own[i] ^ carry[i])
        kappa[i] &= carry[i]


@_loop
def _add_row(bits: Any, masks: Any, after: Any, fresh: Any, row: Any) -> None:
    leaving = len(after)
    for k in range(leaving):
        bit, name, mask, out = bits[k], after[k], masks[k], row[k]
        for i in range(len(out)):
            bit[i] ^= name[i]
            out[i] ^= bit[i] ^ mask[i]
    low, high = bits[0], bits[1]
    for k in range(fresh.shape[1]):
        first, second, third, fourth = fresh[0, k], fresh[1, k], fresh[leaving * 2 - 2, k], fresh[leaving * 2 - 1, k]
        mask, out = masks[leaving + k], row[leaving + k]
        if leaving == 1:
            for i in range(len(out)):
                out[i] ^= mask[i] ^ first[i] ^ (low[i] & (first[i] ^ second[i]))
        else:
            for i in range(len(out)):
                even, odd = first[i] ^ (low[i] & (first[i] ^ second[i])), third[i] ^ (low[i] & (third[i] ^ fourth[i]))
                out[i] ^= mask[i] ^ even ^ (high[i] & (even ^ odd))


@_loop
def _transpose_blocks(block: Any) -> None:
    width, mask = 32, np.uint64(0xFFFFFFFF)
    while width:
        shift = np.uint64(width)
        for pair in range(32):
            k = pair + (pair & -width)  # the rows without the bit `width`
            for lane in range(32):
                upper, lower = block[k, lane], block[k + width, lane]
                swapped = ((upper >> shift) ^ lower) & mask
                block[k, lane] = upper ^ (swapped << shift)
                block[k + width, lane] = lower ^ swapped
        width >>= 1
        mask ^= mask << np.uint64(width)


@_loop
def fold(leaves: Any, columns: Any) -> None:
    for first in range(0, columns.shape[1], FOLDED):
        last, half = min(first + FOLDED, columns.shape[1]), len(leaves)
        for b in range(len(columns)):
            half //= 2
            column = columns[b, first:last]
            for k in range(half):
                # Rows of their own, so that the compiler sees that they are apart, and vectorises.
                even, odd, out = leaves[2 * k, first:last], leaves[2 * k + 1, first:last], leaves[k, first:last]
                for i in range(len(column)):
                    column[i] ^= odd[i]
                    out[i] = even[i] ^ odd[i]


@_loop
def descend(operands: Any, permuted: Any, paths: Any, shift: int, correction: Any, sums: Any) -> None:
    now, ahead, one = np.uint64(shift), np.uint64(shift - 1), np.uint64(1)
    for i in range(len(paths)):
        taken = np.uint64(0) - (operands[0, i, 1] >> COLOUR)
        right = (paths[i] >> now & one) << COLOUR
        below = (paths[i] >> ahead & one) << one
        change = correction[0, i, 1]
        sums[i, 0] += (permuted[1, i, 0] ^ operands[1, i, 0]) + (taken & correction[1, i, 0])
        sums[i, 1] += (permuted[1, i, 1] ^ operands[1, i, 1]) + (taken & correction[1, i, 1])
        low = permuted[0, i, 0] ^ operands[0, i, 0] ^ (taken & correction[0, i, 0]) ^ below
        high = permuted[0, i, 1] ^ operands[0, i, 1] ^ (taken & (change ^ (change << one & right)))
        high &= ~FLAG
        operands[0, i, 0], operands[0, i, 1] = low, high
        operands[1, i, 0], operands[1, i, 1] = low ^ one, high


@_loop
def arrive(operands: Any, permuted: Any, paths: Any, correction: Any, sums: Any) -> None:
    for i in range(len(paths)):
        taken = np.uint64(0) - (operands[i, 1] >> COLOUR)
        right = np.uint64(0) - (paths[i] & np.uint64(1))
        low = correction[0, i, 0] ^ (right & (correction[0, i, 0] ^ correction[1, i, 0]))
        high = correction[0, i, 1] ^ (right & (correction[0, i, 1] ^ correction[1, i, 1]))
        sums[i, 0] += (permuted[i, 0] ^ operands[i, 0]) + (taken & low)
        sums[i, 1] += (permuted[i, 1] ^ operands[i, 1]) + (taken & high)


@_loop
def correct(operands: Any, permuted: Any, alphas: Any, shift: int, betas: Any, sums: Any, correction: Any) -> None:
    for i in range(len(alphas)):
        bit = alphas[i] >> np.uint64(shift) & np.uint64(1)
        right = np.uint64(0) - bit
        taken = np.uint64(0) - (operands[0, i, 1] >> COLOUR)
        minus = np.uint64(0) - (operands[4, i, 1] >> COLOUR)
        colour, change = ~bit << COLOUR, TOP
        for left in (0, 4):
            colour ^= permuted[left, i, 1] ^ operands[left, i, 1]
            change ^= permuted[left, i, 1] ^ operands[left, i, 1] ^ permuted[left + 2, i, 1] ^ operands[left + 2, i, 1]
        colour, change = colour & TOP, change & TOP
        for word in range(2):
            path, beside = _sides(operands, permuted, 0, i, word, right)
            their_path, their_beside = _sides(operands, permuted, 4, i, word, right)
            added, value = _sides(operands, permuted, 1, i, word, right)
            their_added, their_value = _sides(operands, permuted, 5, i, word, right)
            value = their_value - value - sums[i, word] + (right & betas[i, word])
            value = (value ^ minus) - minus
            sums[i, word] += added - their_added + (value ^ minus) - minus
            node = beside ^ their_beside
            if word:
                node = (node & ~(TOP | FLAG)) | colour
                path, their_path = path & ~FLAG, their_path & ~FLAG
            correction[0, i, word] = node | change >> np.uint64(1) if word else node
            correction[1, i, word] = value
            if word:
                node ^= change & right
            child, their_child = path ^ (taken & node), their_path ^ (minus & node)
            for k in range(4):
                number = np.uint64(0) if word else np.uint64(k)
                operands[k, i, word], operands[4 + k, i, word] = child ^ number, their_child ^ number


@_loop
def _sides(operands: Any, permuted: Any, k: int, i: int, word: int, right: Any) -> Any:
    """The node or value k of the side that the path takes, and that of the other."""
    left = permuted[k, i, word] ^ operands[k, i, word]
    other = permuted[k + 2, i, word] ^ operands[k + 2, i, word]
    swapped = right & (left ^ other)
    return left ^ swapped, other ^ swapped


@_loop
def spread(nodes: Any, out: Any) -> None:
    for k in range(len(out)):
        for i in range(len(nodes)):
            out[k, i, 0], out[k, i, 1] = nodes[i, 0] ^ np.uint64(k), nodes[i, 1]


@_loop
def grow(operands: Any, permuted: Any, first: int, width: int, children: Any, added: Any, mixed: Any) -> None:
    together = min(width, operands.shape[1])
    for start in range(0, operands.shape[1], together):
        tree = (first + start) // width
        for side in range(2):
            low, high, low_mixed, high_mixed = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
            for i in range(start, start + together):
                child = permuted[2 * side, i, 0] ^ operands[2 * side, i, 0]
                other = permuted[2 * side, i, 1] ^ operands[2 * side, i, 1]
                children[i, side, 0], children[i, side, 1] = child, other
                low_mixed ^= child
                high_mixed ^= other
                low += permuted[2 * side + 1, i, 0] ^ operands[2 * side + 1, i, 0]
                high += permuted[2 * side + 1, i, 1] ^ operands[2 * side + 1, i, 1]
            added[side, tree, 0] += low
            added[side, tree, 1] += high
            mixed[side, tree, 0] ^= low_mixed
            mixed[side, tree, 1] ^= high_mixed


@_loop
def correct_children(nodes: Any, node: Any, children: Any) -> None:
    for tree in range(len(nodes)):
        right = node[tree, 1] ^ ((node[tree, 1] << np.uint64(1)) & TOP)
        for i in range(nodes.shape[1]):
            taken = np.uint64(0) - (nodes[tree, i, 1] >> COLOUR)
            children[tree, i, 0, 0] ^= taken & node[tree, 0]
            children[tree, i, 0, 1] = (children[tree, i, 0, 1] ^ (taken & node[tree, 1])) & ~FLAG
            children[tree, i, 1, 0] ^= taken & node[tree, 0]
            children[tree, i, 1, 1] = (children[tree, i, 1, 1] ^ (taken & right)) & ~FLAG


@_loop
def limb_columns(x: Any, width: int, stride: Any, padding: Any, out: Any) -> None:
    (top, left), (down, across) = padding, stride
    low, half, offset = np.uint64((1 << width) - 1), np.int64((1 << width) >> 1), np.uint64(0)
    for k in range(out.shape[3]):
        if k * width + width <= 64:  # in C a shift by more bits is undefined
            offset += np.uint64(1) << np.uint64(k * width + width - 1)
    padded = np.zeros((x.shape[2] + 2 * top, x.shape[3] + 2 * left))
    for c in range(x.shape[1]):
        for k in range(out.shape[3]):
            for n in range(len(x)):
                for i in range(x.shape[2]):
                    for j in range(x.shape[3]):
                        limb = np.int64(((x[n, c, i, j] + offset) >> np.uint64(k * width)) & low) - half
                        padded[top + i, left + j] = np.float64(limb)
                # One function, so that the compiler sees that no index is negative, and vectorises.
                for u in range(out.shape[1]):
                    for v in range(out.shape[2]):
                        for i in range(out.shape[5]):
                            row = padded[i * down + u]
                            if across == 1:
                                for j in range(out.shape[6]):
                                    out[c, u, v, k, n, i, j] = row[j + v]
                            else:
                                for j in range(out.shape[6]):
                                    out[c, u, v, k, n, i, j] = row[j * across + v]


@_loop
def join_limbs(products: Any, width: int, out: Any) -> None:
    for n in range(out.shape[0]):
        for o in range(out.shape[1]):
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    total = np.uint64(np.int64(products[o, 0, n, i, j]))
                    for k in range(1, products.shape[1]):
                        total += np.uint64(np.int64(products[o, k, n, i, j])) << np.uint64(k * width)
                    out[n, o, i, j] = total


@_loop
def add_sparse(weight: Any, size: Any, stride: Any, padding: Any, positions: Any, values: Any, out: Any) -> None:
    total = np.zeros((out.shape[1], out.shape[2], out.shape[0]), np.uint64)
    for p in range(len(positions)):
        rest, column = divmod(positions[p], size[1])
        channel, row = divmod(rest, size[0])
        for u in range(weight.shape[1]):
            i, rest_i = divmod(row + padding[0] - u, stride[0])
            if rest_i or i < 0 or i >= out.shape[1]:
                continue
            for v in range(weight.shape[2]):
                j, rest_j = divmod(column + padding[1] - v, stride[1])
                if rest_j or j < 0 or j >= out.shape[2]:
                    continue
                factors, sums = weight[channel, u, v], total[i, j]
                for o in range(len(factors)):
                    sums[o] += factors[o] * values[p]
    for o in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                out[o, i, j] += total[i, j, o]
