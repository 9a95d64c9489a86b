"""The oracle against the engine: the same integers by other arithmetic, and every mistake of the engine is seen."""

import numpy as np
import pytest
import torch
import two_parties
from hand_programs import Hand
from hypothesis import given, settings
from hypothesis import strategies as st
from two_parties import Pair, Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError
from parelu.private.crypto.prg import Stream
from parelu.private.crypto.ring import WIDTHS, Ring, encode
from parelu.private.lowering import encode as engine
from parelu.private.lowering import reference
from parelu.private.lowering.ops import Add, Conv, Linear, Multiply, Pool, local, sources
from parelu.private.protocol import delphi


class Given:
    """What encoding asks of a program."""

    def __init__(self, mean, std, fraction):
        self.preprocessing, self.fraction = {"mean": mean, "std": std}, fraction


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 3)), min_size=1, max_size=3), st.integers(1, 24))
def test_every_byte_is_encoded_alike(statistics, fraction):
    program = Given(*map(list, zip(*statistics, strict=True)), fraction)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, len(statistics), 16, 16)
    assert np.array_equal(reference.integers_of(program, images), engine.encode_images(program, images))


@st.composite
def linear_ops(draw):
    """(op, integers, shape of the source)."""
    stream = Stream(draw(st.integers(0, 2**31)).to_bytes(16, "little"), "weights")

    def numbers(*shape):
        return (stream.elements(*shape) % np.uint64(4001)).astype(np.int64) - 2000

    kind, groups = draw(st.sampled_from(("conv", "linear", "multiply"))), draw(st.integers(1, 3))
    ins, outs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    height, width = draw(st.integers(3, 7)), draw(st.integers(3, 7))
    if kind == "linear":
        return Linear(0, outs), {"weight": numbers(outs, ins), "bias": numbers(outs)}, (ins,)
    if kind == "multiply":
        shape = (ins, height, width)
        return Multiply(0), {"weight": numbers(*shape), "bias": numbers(*shape)}, shape
    pairs = [draw(st.tuples(st.integers(*ends), st.integers(*ends))) for ends in ((1, 3), (1, 3), (0, 2))]
    op = Conv(0, outs, *pairs, groups)
    shape = (ins, height, width)
    bias = numbers(*op.shape(shape)) if draw(st.booleans()) else numbers(outs)
    return op, {"weight": numbers(*op.weight_shape(shape)), "bias": bias}, shape


@settings(max_examples=50)
@given(linear_ops(), st.integers(0, 2**31), st.sampled_from(WIDTHS))
def test_linear_ops_are_alike(case, seed, bits):
    """In float64 for small values, by integers that wrap for any."""
    op, integers, shape = case
    ring = Ring(bits)
    stream = Stream(seed.to_bytes(16, "little"), "values")
    small, large = (ring.decode(stream.elements(2, *shape)) >> lost for lost in (bits - 19, 0))
    layer, apply = reference.ExactLinear(op, integers), engine.linear_map(op, integers, ring)

    def expected(x):
        return ring.decode(apply(encode(x)) + encode(engine.bias_of(op, integers)))

    assert np.array_equal(layer(small), expected(small))
    with pytest.raises(OverflowError, match="reaches 2"):
        layer(np.where(large < 0, large, 1 << 58))
    products = reference._modular_products(op, integers["weight"], large) + reference._bias(op, integers)
    assert np.array_equal(reference._Modulo(bits).wrapped(products), expected(large))


@settings(max_examples=80)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_ops_without_a_secret_are_alike(seed, shape, data):
    stream = Stream(seed.to_bytes(16, "little"), "values")
    values = [stream.elements(2, *shape) for _ in range(2)]
    hand, axis = Hand(tuple(shape), seed=seed), data.draw(st.integers(0, len(shape) - 1))
    hand.add(0, 0)
    hand.concat(0, 0, axis)
    hand.permute(0, *data.draw(st.permutations(range(len(shape)))))
    hand.reshape(0, *data.draw(st.permutations(shape)))
    hand.reshape(0, int(np.prod(shape)))
    hand.select(0, axis, data.draw(st.integers(1, 6)))
    hand.resample(0, axis, data.draw(st.integers(1, 6)), data.draw(st.sampled_from((1, 2**30))))
    hand.scale(0, data.draw(st.integers(1, 2**31 - 1)) * data.draw(st.sampled_from((-1, 1))))
    if len(shape) == 3 and min(shape[1:]) > 1:
        windows = [data.draw(st.tuples(st.integers(*ends), st.integers(*ends))) for ends in ((1, 2), (1, 3), (0, 1))]
        hand.ops.append(Pool(0, *windows))
    for op in hand.ops:
        expected = local(op, *values[: len(sources(op))])
        found = reference._rearranged(op, [value.astype(np.int64) for value in values[: len(sources(op))]])
        for ring in map(Ring, WIDTHS):
            assert np.array_equal(reference._Modulo(ring.bits).wrapped(found), ring.decode(expected)), op.kind


def polynomial(channels):
    """Identity, degree 1 and degree 2 in turn."""
    c = torch.tensor([[0.0, 1.0, 0.0], [0.1, 0.7, 0.0], [0.05, 0.5, 0.2], [-0.1, 0.9, -0.15]])
    return c[torch.arange(channels) % 4].T.contiguous()


NETWORK = ready(Residual(), (1, 6, 6), lambda u: u < 0.5, polynomial)
LOWERED = {bits: lowered_of(NETWORK, ring=Ring(bits)) for bits in WIDTHS}


def of_local(kind, change):
    """What an op without a secret makes, changed for one kind."""
    return lambda local: lambda op, *values: change(local(op, *values)) if isinstance(op, kind) else local(op, *values)


def of_weights(kind, change):
    def changed(linear_map):
        def mapped(op, own, ring):
            return linear_map(op, {"weight": change(own["weight"]) if isinstance(op, kind) else own["weight"]}, ring)

        return mapped

    return changed


def flipped(weight):
    return np.ascontiguousarray(weight[:, :, ::-1, ::-1])


MUTANTS = {
    "its normalisation": (engine, "normalise", lambda f: lambda images, mean, std: f(images, mean, (1.01 * std[0],))),
    "its rounding": (two_parties, "encode_images", lambda f: lambda program, images: f(program, images) - 1),
    "its kernels": (delphi, "linear_map", of_weights(Conv, flipped)),
    "its matrices": (delphi, "linear_map", of_weights(Linear, lambda weight: weight + 1)),
    "its factors": (delphi, "linear_map", of_weights(Multiply, lambda weight: weight + 1)),
    "no bias": (delphi, "bias_of", lambda f: lambda op, integers: 0 * f(op, integers)),
    "its pools": (delphi, "local", of_local(Pool, lambda x: x - x[:, :, ::-1, :1])),
    "its sums": (delphi, "local", of_local(Add, lambda x: x << np.uint64(1))),
    "the client's truncation": (Ring, "truncate_client", lambda f: lambda ring, share, cut: f(ring, share, cut - 1)),
    "the server's truncation": (Ring, "truncate_server", lambda f: lambda ring, share, cut: ring.reduce(share) >> cut),
    "its squares": (delphi, "_square", lambda f: lambda integers, *rest: f({**integers, "c0": -integers["c0"]}, *rest)),
}


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_a_mistake_of_the_engine_is_seen(mutant, bits, monkeypatch):
    if mutant:
        module, name, change = MUTANTS[mutant]
        monkeypatch.setattr(module, name, change(getattr(module, name)))
    with Pair(LOWERED[bits]) as pair:
        (image,) = images_of(1, (1, 6, 6), seed=1)
        try:
            result, shares = pair.infer(image)
        except ProtocolError as error:
            assert mutant and "is no result" in str(error)
            return
    assert np.array_equal(result, reference.replay(LOWERED[bits], image, shares, "sign")) == (mutant is None)
