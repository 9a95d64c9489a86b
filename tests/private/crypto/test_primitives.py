"""Primitives of the protocol: against slow definitions, plain integers, and between both sets of kernels."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_sets import kernels_named, slow_hash, using

from parelu.private.crypto import garbling, kernels
from parelu.private.crypto.hash import OT_DOMAIN, Hash, linear_hash
from parelu.private.crypto.prg import Stream, derive

SEED = bytes(range(16))
few = settings(deadline=None, max_examples=40)


# The generator


def test_a_stream_is_aes_in_counter_mode():
    encryptor = Cipher(algorithms.AES(derive(SEED, "a", 3)), modes.CTR(bytes(16))).encryptor()
    assert Stream(SEED, "a", 3).bytes(100).tobytes() == encryptor.update(bytes(100))


def test_labels_separate_streams():
    labels = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", 2), ("a1",), ("", "a"), ("a", "")]
    keys = {derive(seed, *each) for each in labels for seed in (SEED, bytes(16))}
    assert len(keys) == 2 * len(labels)
    assert len({Stream(SEED, *each).bytes(16).tobytes() for each in labels}) == len(labels)


def test_equal_seeds_and_labels_give_equal_bytes_and_none_comes_twice():
    first, second = Stream(SEED, "a"), Stream(SEED, "a")
    whole = first.bytes(1000)
    parts = np.concatenate([second.bytes(n) for n in (0, 1, 15, 16, 17, 951)])
    assert np.array_equal(whole, parts)
    blocks = Stream(SEED, "a").blocks(1000)
    assert len(np.unique(blocks, axis=0)) == 1000


def test_elements_and_bits_are_in_range():
    elements, bits = Stream(SEED, "a").elements(50, 200), Stream(SEED, "b").bits(10001)
    assert elements.shape == (50, 200)
    assert int(elements.max()) >= 1 << 63
    assert bits.shape == (10001,)
    assert set(np.unique(bits)) == {0, 1}
    assert 4500 < bits.sum() < 5500


# The hash


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("use", [0, 7, OT_DOMAIN, OT_DOMAIN + 1])
def test_hash_is_its_definition(name, use):
    blocks, first = Stream(SEED, "a").blocks(20), (1 << 40) + 5
    with using(name):
        got = Hash(SEED)(blocks, first, use)
    expected = [slow_hash(SEED, block.tobytes(), first + i, use) for i, block in enumerate(blocks)]
    assert [row.tobytes() for row in got] == expected


def test_hash_keeps_its_input_and_its_earlier_results():
    hash, blocks = Hash(SEED), Stream(SEED, "a").blocks(20)
    before = blocks.copy()
    first = hash(blocks, 0, 0)
    kept = first.copy()
    assert not np.array_equal(hash(blocks, 0, 1), kept)
    assert np.array_equal(first, kept)
    assert np.array_equal(blocks, before)
    assert hash(blocks[:0], 0, 0).shape == (0, 2)


def slow_ghash(key: bytes, row: bytes) -> bytes:
    """GHASH of a row and its length (NIST SP 800-38D, section 6.4), bit by bit."""

    def times(x: int, y: int) -> int:
        total = 0
        for k in range(127, -1, -1):
            total ^= y if x >> k & 1 else 0
            y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
        return total

    h = int.from_bytes(Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes(16)), "big")
    total = 0
    for start in range(0, len(row), 16):
        total = times(total ^ int.from_bytes(row[start : start + 16], "big"), h)
    return times(total, h).to_bytes(16, "big")


@pytest.mark.parametrize("length", [16, 32, 160])
def test_the_linear_hash_is_its_definition_and_linear(length):
    rows = Stream(SEED, "rows").bytes(3 * length).reshape(3, length)
    rows[2] = rows[0] ^ rows[1]
    got = linear_hash(SEED, rows)
    assert [row.tobytes() for row in got] == [slow_ghash(SEED, row.tobytes()) for row in rows]
    assert np.array_equal(got[2], got[0] ^ got[1])
    assert not linear_hash(SEED, np.zeros((1, length), np.uint8)).any()
    assert not np.array_equal(got, linear_hash(bytes(16), rows))


# Columns of bits


def slow_transpose(columns: Any) -> Any:
    bits = np.unpackbits(columns.view(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(np.packbits(bits.T, axis=1, bitorder="little")).view(np.uint64)


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("words", [1, 2, 31, 32, 33, 70])
def test_transposition(name, words):
    columns = Stream(SEED, "columns").bytes(128 * words * 8).view(np.uint64).reshape(128, words)
    before, out = columns.copy(), np.zeros((64 * words, 2), np.uint64)
    kernels_named(name).transpose_bits(columns, out)
    assert np.array_equal(out, slow_transpose(columns))
    assert np.array_equal(columns, before)


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize(("height", "words"), [(1, 2), (2, 130), (4, 128), (8, 4)])
def test_sums_of_leaves(name, height, words):
    leaves = Stream(SEED, "leaves").bytes((1 << height) * (words + 2) * 8).view(np.uint64).reshape(-1, words + 2)
    columns = Stream(SEED, "columns").bytes(height * words * 8).view(np.uint64).reshape(height, words)
    expected = columns.copy()
    for number, leaf in enumerate(leaves):
        for bit in range(height):
            expected[bit] ^= leaf[:words] * np.uint64(number >> bit & 1)
    total = np.bitwise_xor.reduce(leaves[:, :words], 0)
    kernels_named(name).fold(leaves, columns)
    assert np.array_equal(columns, expected)
    assert np.array_equal(leaves[0, :words], total)


# Garbled circuits

Circuit = Callable[..., list[Any]]


def bits_of(values: Any, m: int) -> list[Any]:
    return [(values >> np.uint64(k) & np.uint64(1)).astype(np.uint8) for k in range(m)]


def numbers(wires: Sequence[Any]) -> list[int]:
    """The integer of each instance, lowest bit first."""
    return [sum(int(bit) << k for k, bit in enumerate(column)) for column in zip(*wires, strict=True)]


def signed(value: int, m: int) -> int:
    value %= 1 << m
    return value - (1 << m) if value >> (m - 1) else value


class Garbled:
    """One run of a circuit on m-bit inputs: garbled with some kernels, evaluated with others."""

    def __init__(
        self, circuit: Circuit, inputs: Sequence[Any], m: int, garbler: str, evaluator: str, *options: int
    ) -> None:
        clear, count, seed = garbling.Clear(), len(inputs[0]), Stream(SEED, "garbling")
        self.expected = circuit(clear, *(bits_of(x, m) for x in inputs), *options)
        self.gates, self.tables = clear.gates, np.zeros((clear.blocks, 2), np.uint64)
        delta, zeros = garbling.with_colour(seed.blocks()), seed.blocks(len(inputs), m, count)
        with using(garbler):
            machine = garbling.Garbler(Hash(SEED), delta, 1000, self.tables)
            self.zeros = circuit(machine, *(list(x) for x in zeros), *options)
            active = np.empty_like(zeros)
            for k, values in enumerate(inputs):
                garbling.kernels.select_labels(zeros[k], delta, values, active[k])
        with using(evaluator):
            machine = garbling.Evaluator(Hash(SEED), 1000, self.tables)
            self.active = circuit(machine, *(list(x) for x in active), *options)
        self.delta = delta

    def decoded(self) -> list[Any]:
        """The output bits by colour; each active label is one of the garbler's two."""
        outputs = []
        for zero, active in zip(self.zeros, self.active, strict=True):
            bits = garbling.colours(active) ^ garbling.colours(zero)
            assert np.array_equal(active, zero ^ bits[:, None] * self.delta)
            outputs.append(bits)
        return outputs


PAIRS = [(a, b) for a in kernels.NAMES for b in kernels.NAMES]


@st.composite
def widths_and_values(draw: st.DrawFn, inputs: int) -> tuple[int, list[Any]]:
    m, count = draw(st.integers(2, 64)), draw(st.integers(1, 8))
    word = st.integers(0, (1 << m) - 1) | st.sampled_from([0, 1, (1 << (m - 1)) - 1, 1 << (m - 1), (1 << m) - 1])
    rows = draw(st.lists(st.lists(word, min_size=count, max_size=count), min_size=inputs, max_size=inputs))
    return m, [np.array(row, np.uint64) for row in rows]


@pytest.mark.parametrize(("garbler", "evaluator"), PAIRS)
@few
@given(widths_and_values(2))
def test_sign(garbler, evaluator, drawn):
    m, (a, b) = drawn
    run = Garbled(garbling.sign, [a, b], m, garbler, evaluator)
    expected = [int(signed(int(x) + int(y), m) >= 0) for x, y in zip(a, b, strict=True)]
    assert numbers(run.decoded()) == numbers(run.expected) == expected
    assert run.gates == m - 1
    assert len(run.tables) == 2 * (m - 1) * len(a)


@pytest.mark.parametrize(("garbler", "evaluator"), PAIRS)
@few
@given(widths_and_values(3))
def test_masked_relu(garbler, evaluator, drawn):
    m, (a, b, r) = drawn
    run = Garbled(garbling.masked_relu, [a, b, r], m, garbler, evaluator)
    sums = [max(signed(int(x) + int(y), m), 0) for x, y in zip(a, b, strict=True)]
    expected = [(x - int(mask)) % (1 << m) for x, mask in zip(sums, r, strict=True)]
    assert numbers(run.decoded()) == numbers(run.expected) == expected
    assert run.gates == 3 * (m - 1)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_a_cut_of_all_pairs(m):
    """The ReLU of the shifted sum, in the clear: every pair, cut and some masks."""
    a, b = (grid.reshape(-1).astype(np.uint64) for grid in np.meshgrid(*[np.arange(1 << m)] * 2))
    total = np.array([signed(int(x) + int(y), m) for x, y in zip(a, b, strict=True)])
    for cut in range(1, m):
        for mask in range(1 << m):
            clear = garbling.Clear()
            masks = np.full_like(a, mask)
            found = garbling.masked_relu(clear, *(bits_of(x, m) for x in (a, b, masks)), cut)
            assert clear.gates == 3 * (m - 1) - cut
            assert np.array_equal(numbers(found), (np.maximum(total >> cut, 0) - mask) % (1 << m))


@pytest.mark.parametrize(("garbler", "evaluator"), PAIRS)
@few
@given(widths_and_values(3), st.data())
def test_a_cut_is_garbled_as_it_is_in_the_clear(garbler, evaluator, drawn, data):
    m, inputs = drawn
    cut = data.draw(st.integers(1, m - 1))
    run = Garbled(garbling.masked_relu, inputs, m, garbler, evaluator, cut)
    assert numbers(run.decoded()) == numbers(run.expected)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_argmax(count):
    m, seed = 20, Stream(SEED, "argmax")
    shares = seed.elements(count) & np.uint64((1 << m) - 1)
    values = (seed.elements(count) % np.uint64(1 << (m - 2))).astype(np.int64) - (1 << (m - 3))
    others = (values.view(np.uint64) - shares) & np.uint64((1 << m) - 1)
    run = Garbled(garbling.argmax, [shares, others], m, *kernels.NAMES)
    index = numbers(run.decoded()[::-1])[0] if count > 1 else 0
    assert index == values.argmax()


CIRCUITS = [
    (garbling.sign, 2),
    (garbling.masked_relu, 3),
    (functools.partial(garbling.masked_relu, cut=5), 3),
]


@pytest.mark.parametrize(("circuit", "inputs"), CIRCUITS)
def test_both_sets_of_kernels_make_the_same_tables(circuit, inputs):
    m = 17
    values = list(Stream(SEED, "values").elements(inputs, 300) & np.uint64((1 << m) - 1))
    numba, numpy = (Garbled(circuit, values, m, name, name) for name in kernels.NAMES)
    assert numba.tables.any(axis=1).all()
    assert numba.tables.tobytes() == numpy.tables.tobytes()
    for ours, theirs in zip(numba.zeros + numba.active, numpy.zeros + numpy.active, strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(("circuit", "inputs"), CIRCUITS)
def test_no_tweak_is_used_twice(circuit, inputs, monkeypatch):
    calls, halves = [], Hash.halves

    def recorded(self: Hash, scratch: Any, first: int, *uses: int) -> Any:
        calls.append((first, uses))
        return halves(self, scratch, first, *uses)

    monkeypatch.setattr(Hash, "halves", recorded)
    m = 9
    run = Garbled(circuit, list(np.zeros((inputs, 3), np.uint64)), m, "numpy", "numpy")
    gates = range(run.gates)
    # A tweak of the garbler's is for both labels of one wire; the evaluator's is for the one it has.
    assert calls[: run.gates] == [(1000, (2 * g, 2 * g, 2 * g + 1, 2 * g + 1)) for g in gates]
    assert calls[run.gates :] == [(1000, (2 * g, 2 * g + 1)) for g in gates]
