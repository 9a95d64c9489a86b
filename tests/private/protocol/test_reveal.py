"""What is revealed: the texts, the law of the dither, secure against clear, and what a client can do with answers."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_parties import MODES, NARROW, WIDE, Pair, Residual, images_of, lowered_of, ready

from parelu.errors import NoResult, ProtocolError, UserError
from parelu.private.crypto.garbling import Clear, total
from parelu.private.crypto.ring import encode
from parelu.private.lowering import reference
from parelu.private.lowering.ops import Activation
from parelu.private.offline.mode import modes
from parelu.private.protocol import reveal as room
from parelu.private.protocol.delphi import Terms
from parelu.private.protocol.relu import planes, relus, words
from parelu.private.protocol.reveal import (
    REVEALS,
    Exact,
    Label,
    Logits,
    Reveal,
    dither,
    reveal_for,
    reveal_of,
)

NETWORK = ready(Residual(seed=3), (1, 6, 6), lambda u: u < 0.7)
OF_RING = {ring: lowered_of(NETWORK, ring=ring) for ring in (NARROW, WIDE)}
LOWERED = OF_RING[NARROW]
PROGRAM = LOWERED.program  # of which the output is as wide in both rings
ROOT = Path(__file__).parents[3]
SEED = b"of no importance"


# The texts


@pytest.mark.parametrize("reveal", [Exact(), Label(), Label(1), Label(17), Logits(1), Logits(56)])
def test_a_text_is_read_as_it_is_stated(reveal):
    assert reveal_of(reveal.text) == reveal
    assert reveal_of(reveal.text).text == reveal.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "logits",
        "exact 2^3",
        "label 2^0",
        "label 2^01",
        "logits 2^100",
        "logits 2^١",
        "logits 2^3\n",
        " label",
        "Label",
    ],
)
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match="known are"):
        reveal_of(text)


def test_terms_leave_room_for_the_dither():
    most = PROGRAM.output_bits - 3
    for name in ("label", "logits"):
        Terms(PROGRAM, relus()["sign"], REVEALS[name](most))
        with pytest.raises(UserError, match=f"at most the low {most} can be cut"):
            Terms(PROGRAM, relus()["sign"], REVEALS[name](most + 1))


@pytest.mark.parametrize("text", ["logits 2^57", "logits", "labels"])
def test_a_client_refuses_a_reveal_that_its_program_has_no_room_for(monkeypatch, text):
    monkeypatch.setattr(Exact, "text", property(lambda self: text))
    with pytest.raises(ProtocolError, match=r"the server's terms do not go together: (reveal|known)"):
        Pair(LOWERED)


def test_the_step_is_the_largest_that_is_asked_for():
    unit = PROGRAM.output_unit
    for step in (8 * unit, 9 * unit, 15.9 * unit, 0.25):
        reveal = reveal_for("logits", PROGRAM, step)
        assert reveal.step(PROGRAM) <= step < 2 * reveal.step(PROGRAM)
    assert reveal_for("label", PROGRAM, 0) == Label() and Label().step(PROGRAM) == 0
    assert reveal_for("exact", PROGRAM) == Exact()
    for name in ("label", "logits"):
        largest = 2.0 ** (PROGRAM.output_bits - 3) * unit  # what calibration saw is between half of this and this
        assert reveal_for(name, PROGRAM).step(PROGRAM) == largest / 64


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("logits", 0.0, "--reveal exact has none"),
        ("logits", math.nan, "the smallest step"),
        ("label", -1.0, "0 is for no dither"),
        ("label", 1e9, "can be cut"),
        ("exact", 0.1, "have no step"),
    ],
)
def test_a_step_that_cannot_be_had_is_refused(name, step, message):
    with pytest.raises(UserError, match=message):
        reveal_for(name, PROGRAM, step)


# The law of the dither


def dithers(cut):
    """Every dither, as often as it comes."""
    half = 1 << cut >> 1
    return np.add.outer(np.arange(1 << cut), np.arange(1 << cut)).reshape(-1) - half


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_an_errors_first_two_moments_say_nothing_of_the_logit(cut):
    for z in range(-(1 << cut), 1 << cut):
        errors = ((z + dithers(cut)) >> cut << cut) - z
        assert errors.mean() == -0.5
        assert errors.var() == (4**cut - 1) / 4
        assert errors.min() >= -1.5 * 2**cut + 1 and errors.max() <= 1.5 * 2**cut - 2


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_label_of_three_quanta_of_margin_does_not_change(cut):
    """For every residue of the logits; three units short of that, some dithers make a tie."""
    low, high = dithers(cut).min(), dithers(cut).max()
    margin, changes = 3 << cut, 0
    for z in range(1 << cut):
        assert (z + margin + low) >> cut > (z + high) >> cut
        assert z + margin + low > z + high
        changes += (z + margin - 3 + low) >> cut <= (z + high) >> cut
    assert changes


def test_a_dither_is_the_sum_of_two_uniform_numbers_and_comes_once():
    cut, count = 3, 40_000
    found = dither(SEED, 7, count, cut).view(np.int64)
    values, seen = np.unique(found, return_counts=True)
    expected = {int(v): int(n) for v, n in zip(*np.unique(dithers(cut), return_counts=True), strict=True)}
    assert values.tolist() == sorted(expected)
    frequency = np.array([expected[int(v)] for v in values]) / 4**cut * count
    assert ((seen - frequency) ** 2 / frequency).sum() < 45  # chi-square of 14 degrees: one in 20,000
    pairs = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(pairs) < 5 / math.sqrt(count)
    assert not np.array_equal(dither(SEED, 8, 100, cut), found[:100])
    assert not dither(SEED, 7, 100, 0).any()


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1))
def test_the_circuit_adds(bits, pairs):
    a, b = (np.array(side, np.uint64) for side in zip(*pairs, strict=True))
    clear = Clear()
    found = words(np.stack(total(clear, list(planes(a, max(bits, 2))), list(planes(b, max(bits, 2))))))
    assert np.array_equal(found, a + b & np.uint64((1 << max(bits, 2)) - 1))
    assert clear.gates == max(bits, 2) - 1


# Both parties


class Drawn:
    """The dithers that the server draws."""

    def __init__(self, monkeypatch):
        self.dithers = []
        monkeypatch.setattr(room, "dither", self)

    def __call__(self, *arguments):
        self.dithers.append(dither(*arguments))
        return self.dithers[-1]


@pytest.mark.parametrize("cut", [1, 9, PROGRAM.output_bits - 3])
@pytest.mark.parametrize(("offline", "ring"), MODES)
def test_logits_in_steps_are_the_dithered_reference_cut(offline, ring, cut, monkeypatch):
    drawn, lowered = Drawn(monkeypatch), OF_RING[ring]
    with Pair(lowered, "sign", offline, f"logits 2^{cut}") as pair:
        for image in images_of(4, (1, 6, 6), seed=2):
            result, shares = pair.infer(image)
            z = ring.decode(reference.replay(lowered, image, shares, "sign"))
            expected = (z + drawn.dithers[-1].view(np.int64)) >> cut << cut
            assert np.array_equal(result, ring.reduce(encode(expected)))
            assert np.abs(ring.decode(result) - z).max() < 1.5 * 2**cut
    assert pair.server_error is None and len(drawn.dithers) == 4
    sent_to_client = pair.client.channel.traffic["online", "output"].received
    bits = PROGRAM.output_bits
    assert sent_to_client == 4 * (16 + 16 * 5 * bits + -(-5 * (bits - cut) // 8)), "no more bits can be decoded"


@pytest.mark.parametrize("cut", [0, 9, PROGRAM.output_bits - 3])
@pytest.mark.parametrize(("offline", "ring"), MODES)
def test_label_reveals_the_arg_max_and_nothing_else(offline, ring, cut, monkeypatch):
    drawn, lowered = Drawn(monkeypatch), OF_RING[ring]
    with Pair(lowered, "sign", offline, Label(cut).text) as pair:
        for image in images_of(6, (1, 6, 6), seed=2):
            result, shares = pair.infer(image)
            z = ring.decode(reference.replay(lowered, image, shares, "sign")) + drawn.dithers[-1].view(np.int64)
            assert result.shape == (1,) and z[int(result[0])] == z.max()
    assert pair.server_error is None
    sent_to_client = pair.client.channel.traffic["online", "output"].received
    bits = PROGRAM.output_bits + bool(cut)
    assert sent_to_client == 6 * (16 + 16 * 8 * bits + 1)  # header, labels of 8 padded classes, 3 decoding bits


def test_queries_of_one_image_have_dithers_of_their_own():
    image = images_of(1, (1, 6, 6))[0]
    with Pair(LOWERED, reveal=f"logits 2^{PROGRAM.output_bits - 3}") as pair:
        seen = {tuple(pair.infer(image)[0].tolist()) for _ in range(24)}
        seen |= {tuple(row.tolist()) for row in pair.infer_all(image.repeat(8, 1, 1, 1))[0]}
    assert len(seen) > 3


# Answers that cannot be


@pytest.mark.parametrize("reveal", [Exact(), Logits(1), Logits(PROGRAM.output_bits - 11)])
def test_an_answer_beyond_the_calibrated_range_is_none(reveal):
    most = 1 << (PROGRAM.output_bits - 2)
    dithered = 2 * 2**reveal.cut if reveal.cut else 0
    good = np.zeros((2, 5), np.int64)
    for inside in (most, -most):
        good[1, 4] = inside
        reveal.check_answer(PROGRAM, good)
    for outside in (most + dithered + 1, -most - dithered - 1, -(2**63), 2**63 - 1):
        bad = good.copy()
        bad[1, 4] = outside
        with pytest.raises(NoResult, match=r"is no result: a logit of .*only --tls prevents"):
            reveal.check_answer(PROGRAM, bad)


def test_an_output_that_fills_the_ring_has_no_range():
    program = dataclasses.replace(PROGRAM, output_bits=PROGRAM.ring.bits)
    Exact().check_answer(program, np.array([[-(2**58), 2**58 - 1]]))


@given(st.data())
def test_a_dithered_answer_is_within_its_range(data):
    """The bound of `check_answer`: of the largest value that calibration allows and any dither."""
    cut = data.draw(st.integers(1, PROGRAM.output_bits - 3))
    z = data.draw(st.sampled_from([-1, 1])) * ((1 << (PROGRAM.output_bits - 2)) - 1)
    drawn = data.draw(st.integers(0, 2 * ((1 << cut) - 1))) - (1 << cut >> 1)
    Logits(cut).check_answer(PROGRAM, np.array([[(z + drawn) >> cut << cut]]))


@pytest.mark.parametrize("cut", [0, 3])
def test_a_label_that_no_class_has_is_none(cut):
    Label(cut).check_answer(PROGRAM, np.array([[4], [0]]))
    with pytest.raises(NoResult, match="label 5 of 5 classes"):
        Label(cut).check_answer(PROGRAM, np.array([[0], [5]]))


# What is not claimed: a client that deviates


class Adding:
    """A ReLU protocol whose client adds a number to one of its answers at the last activation."""

    def __init__(self, relu, activations):
        self.relu, self.activations, self.asked = relu, activations, 0
        self.position, self.number = 0, 0

    def answer(self, channel, material):
        masked, *rest = self.relu.answer(channel, material)
        self.asked += 1
        if self.asked % self.activations == 0:
            masked[self.position] += np.uint64(self.number)
        return masked, *rest

    def __getattr__(self, name):
        return getattr(self.relu, name)


def read_last_layer(monkeypatch, reveal, size, offline="dealer"):
    """Weights (classes, inputs) as a client finds them that adds `size` to an input of the last layer, one a query."""
    monkeypatch.setattr(Reveal, "check_answer", lambda *_: None)  # it looks at answers of all sizes
    lowered = lowered_of(ready(Residual(seed=3), (1, 6, 6)))
    numbers = [n for n, op in enumerate(lowered.program.ops, 1) if isinstance(op, Activation)]
    channels, *pixels = lowered.program.shapes[numbers[-1]]
    image, found = images_of(1, (1, 6, 6))[0], []
    with Pair(lowered, offline=offline, reveal=reveal) as pair:
        relu = Adding(pair.client.terms.relu, len(numbers))
        object.__setattr__(pair.client.terms, "relu", relu)
        for channel, relu.number in itertools.chain([(0, 0)], ((c, size) for c in range(channels))):
            relu.position = channel * math.prod(pixels)
            found.append(lowered.program.ring.decode(pair.infer(image)[0]).astype(np.float64))
    assert pair.server_error is None
    return (np.array(found[1:]) - found[0]).T / size, lowered.weights[len(lowered.program.ops) - 1]["weight"]


@pytest.mark.parametrize("offline", modes())
def test_a_client_that_deviates_reads_the_last_layer_from_exact_logits_in_five_queries(offline, monkeypatch):
    """No claim is made against this: nothing checks the client's answers."""
    found, weight = read_last_layer(monkeypatch, "exact", 1 << 30, offline)
    assert weight.shape == (5, 4) and np.array_equal(np.rint(found), weight)


def test_steps_blur_what_a_client_that_deviates_reads_and_no_more(monkeypatch):
    size = 1 << (PROGRAM.output_bits - 15)
    found, weight = read_last_layer(monkeypatch, reveal_for("logits", PROGRAM).text, size)
    assert not np.array_equal(np.rint(found), weight)
    assert (found * weight).sum() > 0.99 * np.linalg.norm(found) * np.linalg.norm(weight)


# What answers tell a client that follows the protocol: benchmarks/leakage.py


def test_simulated_inferences_are_the_secure_ones(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from leakage_simulation import Inferences, toy

    lowered, images = toy()
    program = lowered.program
    with Pair(lowered) as pair:
        for image in images[:2]:
            result, shares = pair.infer(image)

            def low(number, shape, bits, shares=shares):
                return shares[program.ops[number - 1].source].astype(np.int64).reshape(shape) & ((1 << bits) - 1)

            simulated = Inferences(lowered, "local").whole(image, 1, low)
            assert np.array_equal(result, program.ring.reduce(encode(simulated[len(program.ops)][0])))
    assert pair.server_error is None


@pytest.mark.parametrize(("text", "is_read"), [("exact", True), ("logits", False)])
def test_repetitions_of_an_image_tell_the_last_layer_from_exact_logits_and_not_from_steps(monkeypatch, text, is_read):
    """To a client that follows the protocol and knows the truncations' bits; 3,000 queries, as the default step is."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from leakage import Case
    from leakage_simulation import toy

    lowered, images = toy()
    case = Case(lowered, images, repeated=2, pool=64, most=3_000, attackers=["told"])
    (found,) = case.measure(reveal_for(text, lowered.program), "local", seed=0)
    assert (found.queries is not None) == is_read
    assert is_read or found.cosine < 0.7
