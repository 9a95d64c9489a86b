"""Products of packed polynomials against convolutions over the ring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.private.primitives.packing import Packing, packing
from parelu.private.program import Conv, Linear
from parelu.private.ring import LinearMap, Ring, reduce


def negacyclic(a: Ring, b: Ring) -> Ring:
    """a·b modulo X^N + 1 and 2^64."""
    full = np.append(np.convolve(a, b), np.uint64(0))
    return full[: len(a)] - full[len(a) :]


def multiply(packed: Packing, weight: np.ndarray, values: Ring) -> Ring:
    """What the two parties compute together, without encryption."""
    tiles = packed.pack_input(values).reshape(len(packed.inputs), packed.input_blocks, -1)
    out = np.full(packed.maps[0] * packed.maps[1], 1, np.uint64)
    seen = np.zeros(len(out), int)
    for tile, blocks in enumerate(tiles):
        for block in range(packed.output_blocks):
            total = np.zeros(packed.degree, np.uint64)
            for read in packed.products(block):
                total += negacyclic(blocks[read], packed.pack_weight(weight, block, read).view(np.uint64))
            coefficients, positions = packed.needed(block, tile)
            out[positions] = total[coefficients]
            seen[positions] += 1
    assert (seen == 1).all(), "each output stands in one polynomial"
    return reduce(out)


@settings(max_examples=300)
@given(st.data())
def test_convolutions(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = draw(1, 3)
    channels, outputs = groups * draw(1, 4), groups * draw(1, 4)
    kernel, stride, padding = ((draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3)), (draw(0, 3), draw(0, 3)))
    height = draw(max(1, kernel[0] - 2 * padding[0]), 9)
    width = draw(max(1, kernel[1] - 2 * padding[1]), 9)
    op = Conv(0, outputs, kernel, stride, padding, groups)
    source = channels, height, width
    rng = np.random.default_rng(draw(0, 9))
    weight = rng.integers(-(1 << 12), 1 << 12, op.weight_shape(source))
    values = rng.integers(0, 1 << 59, source).astype(np.uint64)
    packed = packing(op, source, data.draw(st.sampled_from([64, 128, 1024])))
    expected = LinearMap(weight, stride, padding, groups)(values[None])
    got = multiply(packed, weight.reshape(outputs, -1), values.reshape(-1))
    np.testing.assert_array_equal(got, reduce(expected.reshape(-1)))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 3), (100, 10), (300, 5), (5, 300)])
def test_matrices(inputs: int, outputs: int):
    rng = np.random.default_rng(0)
    weight = rng.integers(-(1 << 12), 1 << 12, (outputs, inputs))
    values = rng.integers(0, 1 << 59, inputs).astype(np.uint64)
    got = multiply(packing(Linear(0, outputs), (inputs,), 128), weight, values)
    np.testing.assert_array_equal(got, reduce(weight.view(np.uint64) @ values))


def test_padding_is_shared():
    """A map of 4×4 under a 3×3 kernel takes 25 coefficients, not 36; a strided 1×1 kernel only what it reads."""
    assert packing(Conv(0, 512, (3, 3), (1, 1), (1, 1), 1), (512, 4, 4), 8192).size == 25
    assert packing(Conv(0, 128, (1, 1), (2, 2), (0, 0), 1), (64, 32, 32), 8192).size == 256


def test_a_map_that_is_too_wide_is_refused():
    with pytest.raises(ValueError, match="a map 60 wide with a kernel of 3 rows does not fit"):
        packing(Conv(0, 1, (3, 3), (1, 1), (1, 1), 1), (1, 60, 60), 128)
