"""The carries' branching program: against plain integers, a reader of its own, and all of the server's randomness."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_sets import kernels_named, slow_hash, using

from parelu.private.crypto import carries, kernels
from parelu.private.crypto.garbling import with_colour
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import Stream
from parelu.private.protocol.relu import planes

KEY, FIRST = bytes(range(16)), 1000
PAIRS = [(a, b) for a in kernels.NAMES for b in kernels.NAMES]


def packed(bits: Any) -> Any:
    return np.packbits(bits, axis=-1, bitorder="little")


class Run:
    """Both parties on numbers a and b of so many bits: `found` is what the client gets, the server's bits taken off."""

    def __init__(self, a: Any, b: Any, bits: int, cut: int, server: str = "numba", client: str = "numpy") -> None:
        own, count, wires = Stream(KEY, "test"), len(a), carries.wires(bits, cut)
        self.delta, self.zeros = with_colour(own.blocks()), own.blocks(wires, count)
        self.choices = planes(a, bits)
        self.labels = self.zeros ^ self.choices[:wires, :, None] * self.delta
        self.outputs = own.bits((2 if cut else 1) * count).reshape(-1, count)
        with using(server):
            self.pads = carries.server_pads(Hash(KEY), FIRST, self.zeros, self.delta, bits, cut)
            self.message = list(carries.encode(b, self.pads, packed(self.outputs), Stream(KEY, "rows"), bits, cut))
        with using(client):
            self.opened = carries.client_pads(Hash(KEY), FIRST, self.labels, bits, cut)
            bodies = [np.frombuffer(part.tobytes(), np.uint8) for part in self.message]
            named = carries.decode(bodies, packed(self.choices), self.opened, bits, cut)
        self.found = np.unpackbits(named, axis=1, count=count, bitorder="little") ^ self.outputs


def expected(a: Any, b: Any, bits: int, cut: int) -> Any:
    """Signs, and with a cut those where a carry goes into that bit."""
    numbers = [(int(x) % (1 << bits), int(y) % (1 << bits)) for x, y in zip(a, b, strict=True)]
    signs = np.array([(x + y) >> (bits - 1) & 1 == 0 for x, y in numbers])
    low = (1 << cut) - 1
    carry = np.array([((x & low) + (y & low)) >> cut for x, y in numbers], bool)
    return np.stack([signs, signs & carry]) if cut else signs[None]


@pytest.mark.parametrize("bits", range(2, 6))
@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_all_pairs_and_all_cuts(bits, server, client):
    a, b = (grid.reshape(-1).astype(np.uint64) for grid in np.meshgrid(*[np.arange(1 << bits)] * 2))
    for cut in range(bits):
        run = Run(a, b, bits, cut, server, client)
        assert np.array_equal(run.found, expected(a, b, bits, cut))
        assert [part.size for part in run.message] == list(carries.part_bytes(len(a), bits, cut))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 64), st.data())
def test_numbers_of_any_width_in_parts(bits, data):
    cut = data.draw(st.integers(0, bits - 1))
    words = st.integers(0, (1 << 64) - 1) | st.sampled_from(
        [0, 1, (1 << bits) - 1, 1 << (bits - 1), 1 << max(cut - 1, 0)]
    )
    a, b = np.array(data.draw(st.lists(st.tuples(words, words), min_size=1, max_size=200)), np.uint64).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carries, "PART", 64)
        run = Run(a.copy(), b.copy(), bits, cut, *data.draw(st.sampled_from(PAIRS)))
        assert len(run.message) == -(-len(a) // 64)
    assert np.array_equal(run.found, expected(a, b, bits, cut))


def sigma(block: int) -> int:
    low, high = block & (1 << 64) - 1, block >> 64
    return low ^ high | low << 64


def pad_of(step: carries.Step, labels: list[bytes], instance: int) -> int:
    """A pad by the definition, as an integer. labels: of the step's wires."""
    mixed = int.from_bytes(labels[0], "little")
    if step.width == 2:
        mixed ^= sigma(int.from_bytes(labels[1], "little"))
    block = mixed.to_bytes(16, "little")
    words = b"".join(slow_hash(KEY, block, instance, use) for use in step.uses)
    return int.from_bytes(words, "little") & (1 << step.pad) - 1


def read(message: Any, run: Run, bits: int, cut: int, instance: int) -> list[int]:
    """The outputs' names of one instance, bit by bit, from the labels and the message of one part."""
    position, name, mask = 0, 0, 0
    bit_at = message[:, instance // 8] >> instance % 8 & 1
    for step in carries.steps(bits, cut):
        wires = range(step.first, step.first + step.width)
        pad = pad_of(step, [run.labels[wire, instance].tobytes() for wire in wires], FIRST + instance)
        choice = sum(int(run.choices[wire, instance]) << k for k, wire in enumerate(wires))
        start = position + ((choice << step.entering) + name) * step.length
        row = sum(int(bit) << k for k, bit in enumerate(bit_at[start : start + step.length]))
        row ^= (pad >> name * step.length & (1 << step.length) - 1) ^ mask
        name, mask = row & (1 << step.leaving) - 1, row >> step.leaving
        position += step.rows
    return [name >> k & 1 for k in range(2 if cut else 1)]


@pytest.mark.parametrize(("bits", "cut"), [(16, 0), (17, 0), (20, 12), (59, 5), (45, 40)])
def test_another_reader_finds_the_same(bits, cut):
    a, b = Stream(KEY, "numbers").elements(2, 12)
    run = Run(a, b, bits, cut)
    (message,) = run.message
    for instance in range(len(a)):
        found = read(message, run, bits, cut, instance)
        if not cut:
            found[0] ^= int(run.choices[-1, instance])
        assert np.array_equal(np.array(found) ^ run.outputs[:, instance], run.found[:, instance])


VARIED = 11


class Counted:
    """In the place of a stream: some of the bits are those of the instance's number, the others fixed."""

    def __init__(self, bits: int, seed: int) -> None:
        random, count = np.random.default_rng(seed), 1 << min(bits, VARIED)
        drawn = np.repeat(random.integers(0, 2, (bits, 1), np.uint8), count, axis=1)
        drawn[random.permutation(bits)[:VARIED]] = planes(np.arange(count, dtype=np.uint64), min(bits, VARIED))
        self.count, self.planes, self.drawn = count, packed(drawn), 0

    def bytes(self, count: int) -> Any:
        self.drawn += count // self.planes.shape[1]
        return self.planes[: self.drawn].reshape(-1)


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize(
    ("bits", "cut"), [(2, 0), (4, 0), (6, 0), (7, 0), (16, 0), (3, 1), (4, 2), (5, 4), (4, 1), (9, 3)]
)
def test_what_a_client_can_open_is_uniform_whatever_the_numbers_are(name, bits, cut):
    """From what the server can draw, outputs' bits among it, to all rows under the client's pads is one to one, and
    between sets of one size: for each pair of numbers what the client can open is uniform."""
    done, random = carries.steps(bits, cut), np.random.default_rng(bits)
    total, ends = sum(step.pad for step in done), 2 if cut else 1
    for seed, (a, b) in enumerate(random.integers(0, 1 << bits, (8, 2))):
        own = Counted(total, seed)
        numbers = np.full(own.count, b, np.uint64)
        pads = np.zeros((sum(step.rows for step in done), own.planes.shape[1]), np.uint8)
        with using(name):
            parts = carries.encode(numbers, pads, own.planes[-ends:], own, bits, cut)  # pyright: ignore[reportArgumentType]
            (message,) = parts
        assert own.drawn + ends == total
        seen, position = [], 0
        for step in done:
            choice = int(a) >> step.first & (1 << step.width) - 1
            seen.append(message[position + choice * step.pad :][: step.pad])
            position += step.rows
        seen = np.unpackbits(np.concatenate(seen), axis=1, count=own.count, bitorder="little")
        assert len(seen) == total and len(np.unique(seen, axis=1).T) == own.count


def test_the_client_has_one_pad_of_each_step_and_the_others_are_apart():
    bits, cut, count = 21, 6, 40
    a, b = Stream(KEY, "numbers").elements(2, count)
    run = Run(a, b, bits, cut)
    position = start = 0
    for step in carries.steps(bits, cut):
        pads = run.pads[position : position + step.rows].reshape(1 << step.width, step.pad, -1)
        own = run.opened[start : start + step.pad]
        position, start = position + step.rows, start + step.pad
        bits_of = [np.unpackbits(pad, axis=1, count=count, bitorder="little") for pad in (*pads, own)]
        choice = sum(run.choices[step.first + k].astype(int) << k for k in range(step.width))
        for x, pad in enumerate(bits_of[:-1]):
            same = (pad == bits_of[-1]).all(axis=0)
            assert same[choice == x].all()
            assert not same[choice != x].any() or step.pad < 12
            assert abs((pad == bits_of[-1])[:, choice != x].mean() - 0.5) < 0.15
        assert abs(np.bitwise_xor.reduce(bits_of[:-1]).mean() - 0.5) < 0.15  # nor do they add up to zero
    assert (position, start) == (len(run.pads), len(run.opened))


def test_no_tweak_is_used_twice(monkeypatch):
    calls, halves = [], Hash.halves

    def recorded(self: Hash, scratch: Any, first: int, *uses: int) -> Any:
        calls.append((first, scratch.operands.shape[1], uses))
        return halves(self, scratch, first, *uses)

    monkeypatch.setattr(Hash, "halves", recorded)
    monkeypatch.setattr(carries, "PART", 64)
    for bits, cut in ((9, 0), (12, 5), (36, 1)):
        calls.clear()
        a, b = Stream(KEY, "numbers").elements(2, 100)
        Run(a, b, bits, cut)
        sides = [[], []]
        for first, count, uses in calls:
            assert len(set(uses)) == 1
            sides[len(uses) == 1].append((first, count, uses[0]))
        for side in sides:
            assert len(set(side)) == len(side)
            assert {(first, count) for first, count, _ in side} == {(FIRST, 64), (FIRST + 64, 36)}
        assert sides[0] == sides[1]


@pytest.mark.parametrize(("bits", "cut"), [(16, 0), (17, 0), (12, 5), (40, 1), (64, 20)])
@pytest.mark.parametrize("count", [1, 7, 64, 500])
def test_both_sets_of_kernels_add_the_same_states(bits, cut, count):
    draw, width = np.random.default_rng(count), -(-count // 8)
    shapes: Any
    for step in carries.steps(bits, cut):
        rest = step.length - step.leaving
        shapes = (step.width,), (step.entering,), (1 << step.entering, step.length), (step.leaving,)
        shapes += (1 << step.leaving, rest), (2,)
        inputs = [draw.integers(0, 256, (*shape, width), np.uint8) for shape in shapes]
        rows = draw.integers(0, 256, (1 << step.width, 1 << step.entering, step.length, width), np.uint8)
        found = []
        for name in kernels.NAMES:
            found.append(rows.copy())
            kernels_named(name).add_states(*inputs, found[-1])
        assert np.array_equal(*found) and not np.array_equal(found[0], rows)


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("count", [1, 8, 63, 64, 65, 5000])
def test_bits_become_planes(name, count):
    words = Stream(KEY, "words").bytes(8 * count).view(np.uint64)
    with using(name):
        assert np.array_equal(carries.bit_planes(words), packed(planes(words, 64)))


def test_a_message_has_some_m_squared_bits():
    """Bytes an instance, by hand: at 16 bits a step of one bit, 2 rows of 8, then 8 rows of 7 to 1 bits."""
    assert list(carries.part_bytes(8, 16, 0)) == [2 * 8 + 8 * (7 * 8 // 2)]
    assert list(carries.part_bytes(8, 17, 0)) == [4 * 8 + 8 * (7 * 8 // 2)]
    assert list(carries.part_bytes(8, 3, 1)) == [2 * 3 + 8 * 2]
