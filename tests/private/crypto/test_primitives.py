"""Primitives of the protocol: against slow definitions, plain integers, and between both sets of kernels."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl import bindings

from parelu.errors import ProtocolError
from parelu.private.crypto import base_ot, garbling, kernels, ot_extension
from parelu.private.crypto import hash as hash_module
from parelu.private.crypto.hash import OT_DOMAIN, Hash
from parelu.private.crypto.ot_extension import (
    BASE,
    ExtensionReceiver,
    ExtensionSender,
    message_bytes,
    random_ot_receiver,
    random_ot_sender,
)
from parelu.private.crypto.prg import Stream, derive, fresh_seed
from parelu.private.crypto.ring import BITS

SEED = bytes(range(16))
few = settings(deadline=None, max_examples=40)


def kernels_named(name: str) -> ModuleType:
    if name == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba")
    return kernels.load(name)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Both parties' code with these kernels."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (garbling, hash_module, ot_extension):
            patch.setattr(module, "kernels", kernels_named(name))
        yield


def random_bits(count: int) -> Any:
    return Stream(fresh_seed(), "test").bits(count)


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


def test_ring_elements_and_bits_are_in_range():
    ring, bits = Stream(SEED, "a").ring(50, 200), Stream(SEED, "b").bits(10001)
    assert ring.shape == (50, 200)
    assert int(ring.max()) < 1 << BITS
    assert int(ring.max()) >= 1 << (BITS - 1)
    assert bits.shape == (10001,)
    assert set(np.unique(bits)) == {0, 1}
    assert 4500 < bits.sum() < 5500


# The hash


def slow_hash(key: bytes, block: bytes, instance: int, use: int) -> bytes:
    def permute(x: bytes) -> bytes:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(x)

    inner = permute(block)
    tweak = instance.to_bytes(8, "little") + use.to_bytes(8, "little")
    outer = permute(bytes(x ^ y for x, y in zip(inner, tweak, strict=True)))
    return bytes(x ^ y for x, y in zip(outer, inner, strict=True))


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
    m, count = draw(st.integers(2, BITS)), draw(st.integers(1, 8))
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
    """The sign and its carry, and the ReLU of the shifted sum, in the clear: every pair, cut and some masks."""
    a, b = (grid.reshape(-1).astype(np.uint64) for grid in np.meshgrid(*[np.arange(1 << m)] * 2))
    total = np.array([signed(int(x) + int(y), m) for x, y in zip(a, b, strict=True)])
    for cut in range(1, m):
        clear = garbling.Clear()
        is_positive, both = garbling.sign_and_carry(clear, bits_of(a, m), bits_of(b, m), cut)
        assert clear.gates == m
        carry = [(int(x) % (1 << cut) + int(y) % (1 << cut)) >> cut for x, y in zip(a, b, strict=True)]
        assert np.array_equal(is_positive, total >= 0) and np.array_equal(both, (total >= 0) & np.array(carry))
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
    for circuit, count in ((garbling.sign_and_carry, 2), (garbling.masked_relu, 3)):
        run = Garbled(circuit, inputs[:count], m, garbler, evaluator, cut)
        assert numbers(run.decoded()) == numbers(run.expected)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_argmax(count):
    m, seed = 20, Stream(SEED, "argmax")
    shares = seed.ring(count) & np.uint64((1 << m) - 1)
    values = (seed.ring(count) % np.uint64(1 << (m - 2))).astype(np.int64) - (1 << (m - 3))
    others = (values.view(np.uint64) - shares) & np.uint64((1 << m) - 1)
    run = Garbled(garbling.argmax, [shares, others], m, *kernels.NAMES)
    index = numbers(run.decoded()[::-1])[0] if count > 1 else 0
    assert index == values.argmax()


CIRCUITS = [
    (garbling.sign, 2),
    (garbling.masked_relu, 3),
    (functools.partial(garbling.sign_and_carry, cut=5), 2),
    (functools.partial(garbling.masked_relu, cut=5), 3),
]


@pytest.mark.parametrize(("circuit", "inputs"), CIRCUITS)
def test_both_sets_of_kernels_make_the_same_tables(circuit, inputs):
    m = 17
    values = list(Stream(SEED, "values").ring(inputs, 300) & np.uint64((1 << m) - 1))
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


# Base transfers

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
TORSION = [  # the points of order 2, 4, 4, 8, 8, 8, 8
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
IDENTITY = "01" + 31 * "00"


def is_on_the_curve(y: int) -> bool:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    return square == 0 or pow(square, (P - 1) // 2, P) == 1


def encoded(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def some_point() -> bytes:
    return base_ot.Sender(1, b"").message()


def bad_points() -> dict[str, bytes]:
    small = {f"of small order {k}": bytes.fromhex(point) for k, point in enumerate(TORSION)}
    mixed = {f"plus one {name}": bindings.crypto_core_ed25519_add(some_point(), point) for name, point in small.items()}
    not_reduced = {f"{y} + p, sign {s}": encoded(y + P, s) for y in range(19) for s in (0, 1)}
    off = {f"off the curve {y}": encoded(y) for y in range(2, 30) if not is_on_the_curve(y)}
    named = {
        "identity": bytes.fromhex(IDENTITY),
        "identity with a sign": encoded(1, 1),
        "order 2 with a sign": encoded(P - 1, 1),
        "short": some_point()[:31],
        "long": some_point() + b"\0",
        "empty": b"",
    }
    return small | mixed | not_reduced | off | named


@pytest.mark.parametrize("count", [1, 128])
def test_base_transfers_agree(count):
    choices = random_bits(count)
    sender, receiver = base_ot.Sender(count, b"context"), base_ot.Receiver(choices, b"context")
    pairs = sender.seeds(receiver.respond(sender.message()))
    seeds = receiver.seeds()
    rows = np.arange(count)
    assert pairs.shape == (count, 2, 16)
    assert np.array_equal(seeds, pairs[rows, choices])
    assert (seeds != pairs[rows, 1 - choices]).any(axis=1).all()
    assert len(np.unique(pairs.reshape(-1, 16), axis=0)) == 2 * count


def test_another_context_gives_other_seeds():
    sender, receiver = base_ot.Sender(4, b"one"), base_ot.Receiver(np.array([0, 1, 0, 1], np.uint8), b"two")
    pairs = sender.seeds(receiver.respond(sender.message()))
    assert (receiver.seeds()[:, None] != pairs).any(axis=2).all()


def test_seeds_are_bound_to_the_number_of_the_transfer():
    sender, receiver = base_ot.Sender(2, b""), base_ot.Receiver(np.zeros(2, np.uint8), b"")
    response = receiver.respond(sender.message())
    swapped = sender.seeds(response[32:] + response[:32])
    assert not np.array_equal(swapped[::-1], sender.seeds(response))


@pytest.mark.parametrize(("name", "point"), bad_points().items(), ids=bad_points())
def test_a_malformed_point_ends_the_connection(name, point):
    with pytest.raises(ProtocolError):
        base_ot.Receiver(np.zeros(2, np.uint8), b"").respond(point)
    with pytest.raises(ProtocolError):
        base_ot.Sender(2, b"").seeds(some_point() + point)


def test_the_senders_own_point_is_no_response():
    sender = base_ot.Sender(1, b"")
    with pytest.raises(ProtocolError):
        sender.seeds(sender.message())


# Extension


class Parties:
    """Both ends of an extension over random seeds."""

    def __init__(self) -> None:
        self.pairs = np.frombuffer(os.urandom(BASE * 32), np.uint8).reshape(BASE, 2, 16)
        self.choices = random_bits(BASE)
        self.choices[-1] = 1
        self.restart()

    def restart(self) -> None:
        self.receiver = ExtensionReceiver(self.pairs)
        self.sender = ExtensionSender(self.choices, self.pairs[np.arange(BASE), self.choices])

    def extend(self, bits: Any) -> tuple[Any, Any, Any]:
        message, t = self.receiver.extend(bits)
        return message, t, self.sender.extend(message, len(bits))


def slow_transpose(columns: Any) -> Any:
    bits = np.unpackbits(columns.view(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(np.packbits(bits.T, axis=1, bitorder="little")).view(np.uint64)


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("words", [1, 2, 31, 32, 33, 70])
def test_transposition(name, words):
    columns = Stream(SEED, "columns").bytes(BASE * words * 8).view(np.uint64).reshape(BASE, words)
    before, out = columns.copy(), np.zeros((64 * words, 2), np.uint64)
    kernels_named(name).transpose_bits(columns, out)
    assert np.array_equal(out, slow_transpose(columns))
    assert np.array_equal(columns, before)


@pytest.mark.parametrize("name", kernels.NAMES)
def test_extension_is_correlated(name):
    parties = Parties()
    with using(name):
        for n in (0, 1, 7, 128, 1000, 127, 129, 0, 8):
            bits = random_bits(n)
            message, t, q = parties.extend(bits)
            assert message.shape == (BASE * -(-n // 8),) == (message_bytes(n),)
            assert t.shape == q.shape == (n, 2)
            assert np.array_equal(q, t ^ bits[:, None] * parties.sender.delta)


@few
@given(st.lists(st.integers(0, 700), max_size=4))
def test_extension_of_any_size(sizes):
    parties = Parties()
    for n in sizes:
        bits = random_bits(n)
        _, t, q = parties.extend(bits)
        assert np.array_equal(q, t ^ bits[:, None] * parties.sender.delta)


def test_delta_holds_the_choices_and_has_colour_one():
    parties = Parties()
    delta = int.from_bytes(parties.sender.delta.tobytes(), "little")
    assert [delta >> k & 1 for k in range(BASE)] == parties.choices.tolist()
    assert np.array_equal(garbling.with_colour(parties.sender.delta), parties.sender.delta)
    parties.choices[-1] = 0
    with pytest.raises(AssertionError, match="colour"):
        parties.restart()


def test_streams_go_on_and_no_byte_is_used_twice():
    parties, bits = Parties(), random_bits(256)
    parts = np.concatenate([parties.extend(bits[:128])[1], parties.extend(bits[128:])[1]])
    parties.restart()
    assert np.array_equal(parties.extend(bits)[1], parts)
    assert len(np.unique(parts, axis=0)) == 256


def test_steps_do_not_change_the_result(monkeypatch):
    parties, bits = Parties(), random_bits(1000)
    _, whole, _ = parties.extend(bits)
    monkeypatch.setattr(ot_extension, "STEP", 256)
    parties.restart()
    _, t, q = parties.extend(bits)
    assert np.array_equal(t, whole)
    assert np.array_equal(q, t ^ bits[:, None] * parties.sender.delta)


def test_both_sets_of_kernels_send_the_same_bytes():
    parties, bits, runs = Parties(), random_bits(5000), []
    for name in kernels.NAMES:
        parties.restart()
        with using(name):
            runs.append([x.tobytes() for x in parties.extend(bits)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("n", "change"), [(n, c) for n in (0, 1, 8, 1000) for c in (-128, -1, 1, 16, 128) if n or c > 0]
)
def test_a_message_of_another_length_ends_the_connection(n, change):
    parties = Parties()
    message, _ = parties.receiver.extend(random_bits(n))
    wrong = np.resize(np.append(message, np.uint8(0)), len(message) + change)
    with pytest.raises(ProtocolError):
        parties.sender.extend(wrong, n)


def test_a_message_for_a_huge_count_is_refused_at_once():
    with pytest.raises(ProtocolError):
        Parties().sender.extend(np.zeros(BASE, np.uint8), 1 << 60)


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("n", [0, 1, 3000])
def test_random_transfers_agree(name, n, monkeypatch):
    monkeypatch.setattr(ot_extension, "HASHED", 1024)
    parties, bits = Parties(), random_bits(n)
    with using(name):
        _, t, q = parties.extend(bits)
        zero, one = random_ot_sender(q, parties.sender.delta, Hash(SEED), 77)
        chosen = random_ot_receiver(t, Hash(SEED), 77)
    other = np.where(bits == 1, zero, one)
    assert np.array_equal(chosen, np.where(bits == 1, one, zero))
    assert (chosen != other).all()
    assert ((zero | one) >> np.uint64(BITS) == 0).all()
    expected = [slow_hash(SEED, row.tobytes(), 77 + i, OT_DOMAIN)[:8] for i, row in enumerate(t)]
    assert chosen.tolist() == [int.from_bytes(x, "little") % (1 << BITS) for x in expected]


def test_random_transfers_differ_with_their_tweak():
    t = Stream(SEED, "t").blocks(10)
    runs = [random_ot_receiver(t, Hash(SEED), *tweak) for tweak in ((0,), (1,), (0, OT_DOMAIN + 1))]
    assert len(np.unique(np.concatenate(runs))) == 30


def test_labels_by_extension_over_base_transfers():
    m, count, choices = 21, 50, random_bits(BASE)
    choices[-1] = 1
    base_sender, base_receiver = base_ot.Sender(BASE, b"labels"), base_ot.Receiver(choices, b"labels")
    receiver = ExtensionReceiver(base_sender.seeds(base_receiver.respond(base_sender.message())))
    sender = ExtensionSender(choices, base_receiver.seeds())

    theirs, ours = Stream(SEED, "shares").ring(2, count) & np.uint64((1 << m) - 1)
    message, active = receiver.extend(np.concatenate(bits_of(theirs, m)))
    zeros = sender.extend(message, m * count).reshape(m, count, 2)
    own = Stream(SEED, "labels").blocks(m, count)
    sent = np.empty_like(own)
    garbling.kernels.select_labels(own, sender.delta, ours, sent)

    tables = np.zeros((2 * (m - 1) * count, 2), np.uint64)
    zero = garbling.sign(garbling.Garbler(Hash(SEED), sender.delta, 0, tables), list(zeros), list(own))[0]
    evaluator = garbling.Evaluator(Hash(SEED), 0, tables)
    label = garbling.sign(evaluator, list(active.reshape(m, count, 2)), list(sent))[0]
    expected = [int(signed(int(x) + int(y), m) >= 0) for x, y in zip(theirs, ours, strict=True)]
    assert (garbling.colours(label) ^ garbling.colours(zero)).tolist() == expected
