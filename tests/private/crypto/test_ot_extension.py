"""Extension: both ends agree, a receiver or a grower of trees that deviates is caught, and what that tells of Δ."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_sets import random_bits, slow_hash, using

from parelu.errors import ProtocolError
from parelu.private.crypto import base_ot, garbling, kernels, ot_extension, puncture
from parelu.private.crypto.hash import OT_DOMAIN, Hash, linear_hash
from parelu.private.crypto.ot_extension import (
    BASE,
    SACRIFICED,
    WIDTH,
    ExtensionReceiver,
    ExtensionSender,
    message_bytes,
    random_ot_receiver,
    random_ot_sender,
    trees_bytes,
)
from parelu.private.crypto.prg import Stream

SEED, CONTEXT = bytes(range(16)), bytes(range(32))
WIDTHS = range(1, 9)
few = settings(deadline=None, max_examples=20)


class Parties:
    """Both ends of an extension over random seeds."""

    def __init__(self, width: int = WIDTH) -> None:
        self.pairs = np.frombuffer(os.urandom(BASE * 32), np.uint8).reshape(BASE, 2, 16)
        self.choices, self.width = random_bits(BASE), width
        self.choices[-1] = 1
        self.restart()

    def restart(self) -> None:
        self.receiver = ExtensionReceiver(self.pairs, CONTEXT, self.width)
        self.sender = self.sender_with(self.choices, self.receiver.trees)

    def sender_with(self, choices: Any, trees: bytes) -> ExtensionSender:
        return ExtensionSender(choices, self.pairs[np.arange(BASE), choices], CONTEXT, trees, self.width)

    def extend(self, bits: Any) -> tuple[Any, Any, Any]:
        message, t = self.receiver.extend(bits)
        return message, t, self.sender.extend(message, len(bits))


@pytest.mark.parametrize("name", kernels.NAMES)
def test_extension_is_correlated(name):
    parties = Parties()
    with using(name):
        for n in (0, 1, 7, 128, 1000, 127, 129, 0, 8):
            bits = random_bits(n)
            message, t, q = parties.extend(bits)
            assert message.shape == (message_bytes(n),)
            assert t.shape == q.shape == (n, 2)
            assert np.array_equal(q, t ^ bits[:, None] * parties.sender.delta)


@few
@given(st.lists(st.integers(0, 700), max_size=4), st.sampled_from(WIDTHS))
def test_extension_of_any_size(sizes, width):
    parties = Parties(width)
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
    parts = np.concatenate([parties.extend(bits)[1] for _ in range(3)])
    assert len(np.unique(parts, axis=0)) == 3 * 256
    parties.restart()
    whole = parties.extend(np.concatenate([bits, np.zeros(3 * SACRIFICED, np.uint8)]))[1]
    assert np.array_equal(whole[:256], parts[:256])
    assert np.array_equal(whole[256 + SACRIFICED :], parts[256:512])


@pytest.mark.parametrize("n", [256, 1000, 1024])
def test_steps_are_calls_of_their_own(n, monkeypatch):
    parties, bits = Parties(), random_bits(n)
    parts = [parties.extend(bits[start : start + 256])[:2] for start in range(0, n, 256)]
    monkeypatch.setattr(ot_extension, "STEP", 256)
    parties.restart()
    message, t, q = parties.extend(bits)
    assert np.array_equal(message, np.concatenate([part for part, _ in parts]))
    assert np.array_equal(t, np.concatenate([rows for _, rows in parts]))
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
    expected = [slow_hash(SEED, row.tobytes(), 77 + i, OT_DOMAIN)[:8] for i, row in enumerate(t)]
    assert chosen.tolist() == [int.from_bytes(x, "little") for x in expected]


def test_random_transfers_differ_with_their_tweak():
    t = Stream(SEED, "t").blocks(10)
    runs = [random_ot_receiver(t, Hash(SEED), *tweak) for tweak in ((0,), (1,), (0, OT_DOMAIN + 1))]
    assert len(np.unique(np.concatenate(runs))) == 30


def bits_of(values: Any, m: int) -> Any:
    return (values >> np.arange(m, dtype=np.uint64)[:, None] & np.uint64(1)).astype(np.uint8)


def test_labels_by_extension_over_base_transfers():
    m, count, choices = 21, 50, random_bits(BASE)
    choices[-1] = 1
    base_sender, base_receiver = base_ot.Sender(BASE, b"labels"), base_ot.Receiver(choices, b"labels")
    pairs = base_sender.seeds(base_receiver.respond(base_sender.message()))
    receiver = ExtensionReceiver(pairs, base_sender.transcript)
    sender = ExtensionSender(choices, base_receiver.seeds(), base_receiver.transcript, receiver.trees)

    theirs, ours = Stream(SEED, "shares").elements(2, count) & np.uint64((1 << m) - 1)
    message, active = receiver.extend(bits_of(theirs, m).reshape(-1))
    zeros = sender.extend(message, m * count).reshape(m, count, 2)
    own = Stream(SEED, "labels").blocks(m, count)
    sent = np.empty_like(own)
    garbling.kernels.select_labels(own, sender.delta, ours, sent)

    tables = np.zeros((2 * (m - 1) * count, 2), np.uint64)
    zero = garbling.sign(garbling.Garbler(Hash(SEED), sender.delta, 0, tables), list(zeros), list(own))[0]
    evaluator = garbling.Evaluator(Hash(SEED), 0, tables)
    label = garbling.sign(evaluator, list(active.reshape(m, count, 2)), list(sent))[0]
    expected = [(int(x) + int(y)) >> (m - 1) & 1 ^ 1 for x, y in zip(theirs, ours, strict=True)]
    assert (garbling.colours(label) ^ garbling.colours(zero)).tolist() == expected


# A receiver that deviates


def cheating(parties: Parties, rows: int) -> tuple[Any, Any, list[slice]]:
    """A message whose choices differ in row k for group k, and the honest t; all choices are 0."""
    groups = ot_extension._groups(parties.width)
    message, t = parties.receiver.extend(np.zeros(rows, np.uint8))
    length = (rows + SACRIFICED) // 8
    for number in range(len(groups)):
        message[number * length + number // 8] ^= 1 << number % 8
    return message, t, groups


def differences(bits: slice) -> Any:
    """(2^k, 2): the numbers that a group's bits of Δ can make, at their place."""
    numbers = np.arange(1 << (bits.stop - bits.start))
    spread = np.zeros((len(numbers), BASE), np.uint8)
    spread[:, bits] = numbers[:, None] >> np.arange(bits.stop - bits.start) & 1
    return np.packbits(spread, axis=1, bitorder="little").view(np.uint64)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_receiver_of_inconsistent_choices_would_read_delta(width, monkeypatch):
    """The attack on an extension without the check: each group's bits from one transfer whose contents are known."""
    monkeypatch.setattr(ot_extension.hmac, "compare_digest", lambda *_: True)
    parties = Parties(width)
    message, t, groups = cheating(parties, BASE)
    zero, _ = random_ot_sender(parties.sender.extend(message, BASE), parties.sender.delta, Hash(SEED), 0)
    read = np.zeros(2, np.uint64)
    for number, bits in enumerate(groups):
        for guess in differences(bits):
            if random_ot_receiver(t[number : number + 1] ^ guess, Hash(SEED), number)[0] == zero[number]:
                read ^= guess
    assert np.array_equal(read, parties.sender.delta)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_receiver_of_inconsistent_choices_is_caught(width):
    parties = Parties(width)
    message, _, _ = cheating(parties, BASE)
    with pytest.raises(ProtocolError, match="choices of oblivious transfers are not consistent"):
        parties.sender.extend(message, BASE)


def guessing(parties: Parties, group: int, guess: int, at: int) -> Any:
    """A message that deviates in one group and one row, with the check that fits if the guess of its bits is right."""
    bits = ot_extension._groups(parties.width)[group]
    message, t = parties.receiver.extend(np.zeros(BASE, np.uint8))
    length = (BASE + SACRIFICED) // 8
    corrections = message[:-48].reshape(-1, length)
    error = np.zeros((1, length), np.uint8)
    error[0, at // 8] = 1 << at % 8
    corrections[group] ^= error[0]
    parties.receiver._number -= 1
    key = parties.receiver._challenge(corrections)
    rows = np.unpackbits(t.base.view(np.uint8), axis=1, bitorder="little")
    columns = np.ascontiguousarray(np.packbits(rows.T, axis=1, bitorder="little"))
    hashes = linear_hash(key, columns)
    taken = guess >> np.arange(bits.stop - bits.start) & 1
    hashes[bits] ^= (taken[:, None] * linear_hash(key, error)).astype(np.uint8)
    sacrificed = np.zeros((1, length), np.uint8)
    sacrificed[0, -16:] = parties.sacrificed
    message[-48:-32] = linear_hash(key, sacrificed)[0]
    message[-32:] = np.frombuffer(ot_extension._check(key, hashes), np.uint8)
    return message


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_receiver_that_deviates_passes_by_a_guess_of_delta_only(width, monkeypatch):
    """It knows all else, and has made the check fit: of all guesses of the group's bits, the right one passes."""
    sums = ot_extension._Extension._sums
    parties = Parties(width)

    def kept(self: Any, columns: Any) -> Any:
        for number, total in enumerate(sums(self, columns)):
            if self is parties.receiver and not number:
                parties.sacrificed = total[-16:].copy()
            yield total

    monkeypatch.setattr(ot_extension._Extension, "_sums", kept)
    groups = ot_extension._groups(width)
    for group in (0, 1, len(groups) - 1):
        passed = []
        for guess in range(1 << (groups[group].stop - groups[group].start)):
            parties.restart()
            message = guessing(parties, group, guess, at=7)
            try:
                parties.sender.extend(message, BASE)
                passed.append(guess)
            except ProtocolError:
                continue
        bits = parties.choices[groups[group]]
        assert passed == [sum(int(bit) << k for k, bit in enumerate(bits))]


@few
@given(st.data())
def test_a_flipped_bit_is_refused(data):
    parties, n = Parties(), data.draw(st.integers(1, 300))
    message, _ = parties.receiver.extend(random_bits(n))
    at = data.draw(st.integers(0, 8 * len(message) - 1))
    message[at // 8] ^= 1 << at % 8
    with pytest.raises(ProtocolError, match="not consistent"):
        parties.sender.extend(message, n)


def test_a_message_of_another_connection_or_of_before_is_refused():
    parties, bits = Parties(), random_bits(200)
    first, _ = parties.receiver.extend(bits)
    second, _ = parties.receiver.extend(bits)
    with pytest.raises(ProtocolError, match="not consistent"):
        parties.sender.extend(second, 200)
    parties.restart()
    parties.sender.extend(first, 200)
    with pytest.raises(ProtocolError, match="not consistent"):
        parties.sender.extend(first, 200)
    other = ExtensionReceiver(parties.pairs, bytes(32))
    with pytest.raises(ProtocolError, match="trees"):
        parties.sender_with(parties.choices, other.trees)


def test_what_the_check_shows_is_masked():
    """The hash of the choices comes out otherwise each time, though the choices are the same."""
    shown = set()
    for _ in range(20):
        message, _, _ = Parties().extend(np.zeros(100, np.uint8))
        shown.add(message[-48:-32].tobytes())
    assert len(shown) == 20
    ones = np.unpackbits(np.frombuffer(b"".join(shown), np.uint8)).mean()
    assert abs(ones - 0.5) < 0.05


# Trees that are not consistent


def outcomes(parties: Parties, trees: bytes, bits: slice) -> list[bool]:
    """Whether a sender takes the trees, for each value of these bits of Δ; where it does, transfers must agree."""
    found = []
    for number in range(1 << (bits.stop - bits.start)):
        choices = parties.choices.copy()
        choices[bits] = number >> np.arange(bits.stop - bits.start) & 1
        try:
            parties.sender = parties.sender_with(choices, trees)
        except ProtocolError:
            found.append(False)
            continue
        parties.receiver = ExtensionReceiver(parties.pairs, CONTEXT, parties.width)
        parties.receiver._context = parties.sender._context  # the one that its own trees would give it
        chosen = random_bits(50)
        _, t, q = parties.extend(chosen)
        assert np.array_equal(q, t ^ chosen[:, None] * parties.sender.delta)
        found.append(True)
    return found


@pytest.mark.parametrize("width", [2, 3])
def test_inconsistent_trees_tell_a_guess_of_their_groups_bits(width):
    """A changed sum is used by those for whom its side has not the missing leaf: half of the group's numbers refuse."""
    parties, bits = Parties(width), slice(width, 2 * width)
    size = puncture.message_bytes(width)
    for level in range(1, width):
        for side in (0, 1):
            trees = bytearray(parties.receiver.trees)
            trees[size + 32 * (level - 1) + 16 * side] ^= 4
            expected = [(number >> (width - 1 - level) & 1) == side for number in range(1 << width)]
            assert outcomes(parties, bytes(trees), bits) == expected
            parties.choices[:width] ^= 1  # other bits of Δ change nothing
            assert outcomes(parties, bytes(trees), bits) == expected


@pytest.mark.parametrize("where", ["sum of checks", "digest"])
def test_checks_that_fit_nothing_are_refused_whatever_delta_is(where):
    parties = Parties(3)
    trees = bytearray(parties.receiver.trees)
    trees[puncture.message_bytes(3) - 1 if where == "sum of checks" else -1] ^= 1
    assert not any(outcomes(parties, bytes(trees), slice(0, 3)))


def test_without_the_check_trees_would_be_taken(monkeypatch):
    parties = Parties(3)
    trees = bytearray(parties.receiver.trees)
    trees[0] ^= 1
    monkeypatch.setattr(ot_extension.hmac, "compare_digest", lambda *_: True)
    for number in range(8):
        parties.choices[:3] = number >> np.arange(3) & 1
        parties.sender_with(parties.choices, bytes(trees))


@pytest.mark.parametrize("change", [-32, -1, 1, 16])
def test_trees_of_another_length_are_refused(change):
    parties = Parties()
    assert len(parties.receiver.trees) == trees_bytes()
    wrong = (parties.receiver.trees + bytes(32))[: trees_bytes() + change]
    with pytest.raises(ProtocolError, match="bytes of trees"):
        parties.sender_with(parties.choices, wrong)
