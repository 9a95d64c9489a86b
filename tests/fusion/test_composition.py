"""Composed convolutions against the two that they stand for, and the cost of a layer."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parelu.fusion.composition import Convolution
from parelu.fusion.weights import compose, fitted

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def convolutions(draw, inputs, size):
    """A convolution that reads so many channels of a map of this size."""
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if inputs % g == 0]))
    outputs = groups * draw(st.integers(1, 2))
    kernel, stride = draw(PAIRS), draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    layer = Convolution(inputs, outputs, size, kernel, stride, padding, groups)
    assume(all(n + 2 * p >= k for n, k, p in zip(size, kernel, padding, strict=True)))
    return layer


@st.composite
def pairs(draw):
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    first = draw(convolutions(draw(st.sampled_from([1, 2, 4])), size))
    return first, draw(convolutions(first.outputs, first.output_size))


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def apply(layer, weight, x):
    return F.conv2d(x, weight, None, layer.stride, layer.padding, 1, layer.groups)


def window_of(layer):
    return layer.kernel, layer.stride, layer.padding


def same(a, b):
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-9)


@given(pairs(), st.integers(0, 2**32))
def test_two_in_a_row_are_one_with_the_padding_ahead(layers, seed):
    """With all padding at the first, which pads for both, composition is exact at the border."""
    torch.manual_seed(seed)
    first, second = layers
    x, w1, w2 = random(2, first.inputs, *first.size), random(*first.weight_shape), random(*second.weight_shape)
    whole = first.before(second)
    assert whole.output_size == second.output_size
    rows, columns = whole.padding
    between = F.conv2d(F.pad(x, (columns, columns, rows, rows)), w1, None, first.stride, 0, 1, first.groups)
    expected = F.conv2d(between, w2, None, second.stride, 0, 1, second.groups)
    found = apply(whole, compose(first, w1, second, w2), x)
    assert same(found, expected[..., : found.shape[2], : found.shape[3]])


@settings(max_examples=400)
@given(pairs(), st.integers(0, 2**32))
def test_it_is_known_where_composition_is_exact_at_the_border(layers, seed):
    """For random numbers it is exact where it is said to be, and elsewhere differs, unless strides jump over it."""
    torch.manual_seed(seed)
    first, second = (layer.trimmed() for layer in layers)
    x, w1, w2 = random(2, first.inputs, *first.size), random(*first.weight_shape), random(*second.weight_shape)
    found = apply(first.before(second), compose(first, w1, second, w2), x)
    is_exact = same(found, apply(second, w2, apply(first, w1, x)))
    if first.is_exact_before(second):
        assert is_exact
    elif all(p < k >= s for layer in (first, second) for k, s, p in zip(*window_of(layer), strict=True)):
        assert not is_exact


def test_where_the_two_convolutions_of_a_block_merge_exactly():
    def block(stride, size):
        first = Convolution(4, 4, (size, size), (3, 3), (stride, stride), (1, 1))
        return first, Convolution(4, 4, first.output_size, (3, 3), (1, 1), (1, 1))

    for size in range(2, 12):
        assert not block(1, size)[0].is_exact_before(block(1, size)[1])
        assert block(2, size)[0].is_exact_before(block(2, size)[1]) == bool(size % 2)
    whole = block(2, 7)[0].before(block(2, 7)[1])
    assert (whole.kernel, whole.stride, whole.padding) == ((7, 7), (2, 2), (3, 3))
    whole = block(1, 7)[0].before(block(1, 7)[1])
    assert (whole.kernel, whole.stride, whole.padding) == ((5, 5), (1, 1), (2, 2))


@given(pairs(), st.integers(0, 2**32))
def test_a_trimmed_kernel_makes_the_same(layers, seed):
    torch.manual_seed(seed)
    layer = layers[0].before(layers[1])
    weight, x = random(*layer.weight_shape), random(2, layer.inputs, *layer.size)
    trimmed = layer.trimmed()
    assert trimmed.trimmed() == trimmed and trimmed.macs <= layer.macs
    assert same(apply(trimmed, fitted(layer, weight, trimmed), x), apply(layer, weight, x))


@given(st.data(), st.integers(0, 2**32))
def test_two_side_by_side_are_one(data, seed):
    torch.manual_seed(seed)
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    one, other = (data.draw(convolutions(4, size)) for _ in range(2))
    whole = one.beside(other)
    if one.output_size != other.output_size or one.outputs != other.outputs or one.stride != other.stride:
        assert whole is None
        return
    assume(whole is not None)  # zeros at the end of one kernel would change the size of the output
    x, w1, w2 = random(2, 4, *size), random(*one.weight_shape), random(*other.weight_shape)
    weight = fitted(one, w1, whole) + fitted(other, w2, whole)
    assert same(apply(whole, weight, x), apply(one, w1, x) + apply(other, w2, x))


@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 8), (2, 7)])
def test_a_residual_block_is_one_convolution_with_its_shortcut(stride, size):
    torch.manual_seed(0)
    main = Convolution(
        4, 4, (size, size), (5, 5) if stride == 1 else (7, 7), (stride,) * 2, ((5, 7)[stride - 1] // 2,) * 2
    )
    shortcut = Convolution(4, 4, (size, size), (1, 1), (stride, stride), groups=4 if stride == 1 else 1)
    whole = main.beside(shortcut)
    assert whole == main and shortcut.beside(main) == main
    x, w1, w2 = random(1, 4, size, size), random(*main.weight_shape), random(*shortcut.weight_shape)
    found = apply(whole, w1 + fitted(shortcut, w2, whole), x)
    assert same(found, apply(main, w1, x) + apply(shortcut, w2, x))


def test_layers_that_do_not_follow_each_other_are_refused():
    first = Convolution(3, 8, (6, 6), (3, 3), (2, 2), (1, 1))
    for channels, size in ((4, (3, 3)), (8, (6, 6))):
        with pytest.raises(ValueError, match=rf"{channels} channels of .* cannot follow one that makes 8 of \(3, 3\)"):
            first.before(Convolution(channels, 8, size))
