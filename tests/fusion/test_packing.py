"""Products of packed polynomials against convolutions over the ring."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.fusion.composition import Convolution
from parelu.fusion.packing import DEGREE, Packing, packing, seconds, stated
from parelu.private.crypto.ring import Elements, LinearMap


def negacyclic(a: Elements, b: Elements) -> Elements:
    """a·b modulo X^N + 1 and 2^64."""
    full = np.append(np.convolve(a, b), np.uint64(0))
    return full[: len(a)] - full[len(a) :]


def multiply(packed: Packing, weight: np.ndarray, values: Elements) -> Elements:
    """What the two parties compute together, without encryption."""
    tiles = packed.pack_input(values).reshape(packed.tiles, packed.input_blocks, -1)
    out = np.full(packed.layer.outputs * packed.positions, 1, np.uint64)
    seen = np.zeros(len(out), int)
    for tile, blocks in enumerate(tiles):
        for block in range(packed.output_blocks):
            total = np.zeros(packed.degree, np.uint64)
            for read in packed.reads(block):
                total += negacyclic(blocks[read], packed.pack_weight(weight, block, read).view(np.uint64))
            coefficients, positions = packed.needed(block, tile)
            out[positions] = total[coefficients]
            seen[positions] += 1
    assert (seen == 1).all(), "each output stands in one polynomial"
    return out


@settings(max_examples=300)
@given(st.data())
def test_convolutions(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = draw(1, 3)
    channels, outputs = groups * draw(1, 4), groups * draw(1, 4)
    kernel, stride, padding = ((draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3)), (draw(0, 3), draw(0, 3)))
    height = draw(max(1, kernel[0] - 2 * padding[0]), 9)
    width = draw(max(1, kernel[1] - 2 * padding[1]), 9)
    layer = Convolution(channels, outputs, (height, width), kernel, stride, padding, groups)
    rng = np.random.default_rng(draw(0, 9))
    weight = rng.integers(-(1 << 12), 1 << 12, layer.weight_shape)
    values = rng.integers(0, 1 << 64, (channels, height, width), np.uint64)
    cheapest = packing(layer, data.draw(st.sampled_from([64, 128, 1024])))
    assert stated(layer, cheapest.channels, cheapest.degree) == cheapest
    packed = stated(layer, draw(1, min(cheapest.parts, cheapest.degree // cheapest.size)), cheapest.degree)
    expected = LinearMap(weight, stride, padding, groups)(values[None])
    got = multiply(packed, weight.reshape(outputs, -1), values.reshape(-1))
    np.testing.assert_array_equal(got, expected.reshape(-1))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 3), (100, 10), (300, 5), (5, 300)])
def test_matrices(inputs: int, outputs: int):
    rng = np.random.default_rng(0)
    weight = rng.integers(-(1 << 12), 1 << 12, (outputs, inputs))
    values = rng.integers(0, 1 << 64, inputs, np.uint64)
    got = multiply(packing(Convolution(inputs, outputs, (1, 1)), 128), weight, values)
    np.testing.assert_array_equal(got, weight.view(np.uint64) @ values)


@pytest.mark.parametrize("channels", [0, 3, -1])
def test_channels_that_are_none_are_refused(channels):
    with pytest.raises(ValueError, match="channels a polynomial, where there are 2"):
        stated(Convolution(2, 1, (9, 9), (3, 3)), channels)


def test_padding_is_shared():
    """A map of 4×4 under a 3×3 kernel takes 25 coefficients, not 36; a strided 1×1 kernel only what it reads."""
    assert packing(Convolution(512, 512, (4, 4), (3, 3), (1, 1), (1, 1))).size == 25
    assert packing(Convolution(64, 128, (32, 32), (1, 1), (2, 2))).size == 256


def test_a_map_that_is_too_wide_is_refused():
    with pytest.raises(ValueError, match="a map 60 wide with a kernel of 3 rows does not fit"):
        packing(Convolution(1, 1, (60, 60), (3, 3), (1, 1), (1, 1)), 128)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 40), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
def test_a_packing_holds_what_it_must(inputs, outputs, size, kernel, stride):
    layer = Convolution(inputs, outputs, (size, size), (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))
    found = packing(layer)
    assert found.uploads * DEGREE >= inputs * (math.prod(layer.size) if kernel >= stride else found.positions)
    assert found.downloads * DEGREE >= outputs * found.positions
    assert found.products == found.input_blocks * found.output_blocks * found.tiles
    assert found.bytes > 8 * outputs * found.positions
    assert 1e-6 * found.microseconds() < seconds(layer) < math.inf
    splits = [dataclasses.replace(found, channels=n) for n in range(1, min(found.parts, DEGREE // found.size) + 1)]
    every = [dataclasses.replace(one, kernels=min(outputs, DEGREE // (one.channels * one.size))) for one in splits]
    assert found.microseconds() == min(one.microseconds() for one in every), "no split is cheaper"


def test_groups_read_their_own_channels_only():
    """Depthwise: each product has as many kernels as channels, so one polynomial up is one product and one down."""
    found = packing(Convolution(64, 64, (32, 32), (3, 3), (1, 1), (1, 1), groups=64))
    dense = packing(Convolution(64, 64, (32, 32), (3, 3), (1, 1), (1, 1)))
    assert found.products < dense.products / 8
    assert sum(len(found.reads(block)) for block in range(found.output_blocks)) == found.products


def test_a_map_that_is_larger_than_a_polynomial_is_cut():
    layer = Convolution(3, 8, (224, 224), (3, 3), (1, 1), (1, 1))
    assert packing(layer).uploads == 3 * packing(layer).tiles >= 3 * -(-(225**2) // DEGREE)
    assert seconds(Convolution(3, 8, (9000, 9000), (3, 3))) == math.inf


def test_the_number_of_products_does_not_see_the_kernel():
    """ResNet18's S1: two 3×3 convolutions against a 5×5 one: half the products, 25/18 of the multiply-adds."""
    three, five = (Convolution(64, 64, (32, 32), (k, k), (1, 1), (k // 2, k // 2)) for k in (3, 5))
    assert packing(five).products < 1.2 * packing(three).products
    assert five.macs * 18 == 2 * three.macs * 25
    assert seconds(five) < 2 * seconds(three)
