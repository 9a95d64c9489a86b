"""Pools, means and interpolation: as pools over windows of one size, else as fixed matrices along dimensions.

What a call does along a dimension is found by running it on unit vectors there.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.network import functions, ops
from parelu.network.canonical import moves
from parelu.network.canonical.arithmetic import scale
from parelu.network.canonical.builder import Builder, Rule

TOLERANCE = 1e-9  # of a matrix's entries, whose largest is about 1
LARGEST_RUN = 1 << 26  # numbers of one run on unit vectors

Window = tuple[tuple[int, ...], ...]  # of each position along a dimension, the places that it sees


def resampled(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of what is linear and the same for each channel: any average pool, any interpolation."""
    source = node.all_input_nodes[0]
    if "shape" not in node.meta or len(source.meta["shape"]) != 3 or len(node.meta["shape"]) != 3:
        return None
    return write(builder, source, lambda x: builder.run(node, {source: x}))


def write(builder: Builder, source: fx.Node, function: Callable[[Tensor], Tensor]) -> fx.Node | None:
    """Write what `function` does with each channel of a batch of maps; None if it is no outer product of two matrices.

    function: of (batch, channels, H, W), float64.
    """
    found = _matrices(function, *source.meta["shape"][1:])
    if found is None:
        return None
    for axis, matrix in enumerate(found, start=1):
        source = along(builder, source, axis, matrix)
    return source


def along(builder: Builder, source: fx.Node, axis: int, matrix: Tensor) -> fx.Node:
    """Write a matrix along a dimension, from 0 without the batch; as a selection if it is one."""
    is_one = (matrix - 1).abs() < TOLERANCE
    if bool((is_one | (matrix.abs() < TOLERANCE)).all()) and int(is_one.sum(1).max()) <= 1:
        places = torch.where(is_one.any(1), is_one.int().argmax(1), functions.ZERO)
        return moves.select(builder, source, axis, places.tolist())
    layer = functions.Resample(axis, matrix.to(torch.get_default_dtype()))
    return builder.layer(builder.below("resample"), layer, source)


def _matrices(function: Callable[[Tensor], Tensor], rows: int, columns: int) -> tuple[Tensor, Tensor] | None:
    """The matrices (outputs, inputs) along both dimensions, if there are such."""
    if max(rows, columns) * rows * columns > LARGEST_RUN:
        return None
    double = torch.float64
    try:
        whole = function(torch.ones(1, 1, rows, columns, dtype=double))[0, 0]
        row, column = divmod(int(whole.abs().argmax()), whole.shape[1])
        largest_entry = float(whole[row, column])
        if largest_entry == 0 or not math.isfinite(largest_entry):
            return None
        units = torch.eye(rows, dtype=double).view(rows, 1, rows, 1).repeat(1, 1, 1, columns)
        down = function(units)[:, 0, :, column].T
        units = torch.eye(columns, dtype=double).view(columns, 1, 1, columns).repeat(1, 1, rows, 1)
        across = function(units)[:, 0, row, :].T / largest_entry
        test = torch.randn(1, 1, rows, columns, dtype=double, generator=torch.Generator().manual_seed(0))
        test = torch.cat([test, test * -3])  # what takes signs is found out
        expected = down @ test[:, 0] @ across.T
        is_right = torch.allclose(function(test)[:, 0], expected, rtol=0, atol=TOLERANCE * float(test.abs().max()))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    return (down, across) if is_right else None


def averaged(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of F.avg_pool2d and nn.AvgPool2d: a pool where windows are whole and padding counts."""
    source = node.all_input_nodes[0]
    shape = source.meta["shape"]
    names = (
        ("kernel_size", None), ("stride", None), ("padding", 0), ("ceil_mode", False), ("count_include_pad", True),
        ("divisor_override", None),
    )  # fmt: skip
    kernel, stride, padding, _, counted, divisor = options(builder, node, names)
    kernel, padding = ops.two(kernel), ops.two(padding)
    stride = ops.two(stride) if stride else kernel
    if len(shape) != 3:
        return None
    floors = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True))
    if floors != node.meta["shape"][1:] or (padding != (0, 0) and not counted and not divisor):
        return resampled(node, builder)
    pool = pooled(builder, source, kernel, stride, padding, node)
    factor = math.prod(kernel) / divisor if divisor else 1.0
    return pool if pool is None or factor == 1 else scale(builder, pool, factor)


def pooled(
    builder: Builder,
    source: fx.Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    node: fx.Node | None = None,
) -> fx.Node | None:
    """Write an average pool; None if `node` is it already."""
    if kernel == (1, 1) and padding == (0, 0):
        for axis, step in enumerate(stride, start=1):
            source = moves.select(builder, source, axis, range(0, source.meta["shape"][axis], step))
        return source
    args = (source, kernel, stride, padding)
    if node is not None and (node.op == "call_module" or (node.target is F.avg_pool2d and node.args == args)):
        options_ = getattr(builder.module(node), "__dict__", {})
        if not (options_.get("ceil_mode") or options_.get("divisor_override")) and not node.kwargs:
            return None
    return builder.call(F.avg_pool2d, *args)


def adaptive(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of adaptive average pools: windows of one size, or any."""
    source = node.all_input_nodes[0]
    before, after = source.meta["shape"], node.meta["shape"]
    if len(before) != 3:
        return None
    if any(n % m for n, m in zip(before[1:], after[1:], strict=True)):
        return resampled(node, builder)
    if before == after:
        return source
    if node.op == "call_module":
        return None
    kernel = before[1] // after[1], before[2] // after[2]
    return pooled(builder, source, kernel, kernel)


def meant(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of means: over a whole map it is a pool, over other dimensions a matrix of one row."""
    source, dims, keeps = builder.arguments(node, ("input", None), ("dim", None), ("keepdim", False))
    before = source.meta["shape"]
    axes = _axes(dims, len(before))
    if axes is None:
        return None
    if len(before) == 3 and axes == [1, 2]:
        is_canonical = node.target is torch.mean and node.args[1:] in (((2, 3),), ((2, 3), True)) and not node.kwargs
        return None if is_canonical else builder.call(torch.mean, source, (2, 3), *([True] if keeps else []))
    for axis in axes:
        size = source.meta["shape"][axis]
        source = along(builder, source, axis, torch.full((1, size), 1 / size, dtype=torch.float64))
    return moves.reshape(builder, source, node.meta["shape"])


def summed(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of sums over dimensions: means times the number of terms."""
    source, dims, keeps = builder.arguments(node, ("input", None), ("dim", None), ("keepdim", False))
    axes = _axes(dims, len(source.meta.get("shape", ())))
    if axes is None:
        return None
    mean = builder.call(torch.mean, source, tuple(axis + 1 for axis in axes), keeps)
    return scale(builder, mean, math.prod(source.meta["shape"][axis] for axis in axes))


def largest_pooled(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of F.max_pool2d and nn.MaxPool2d: with padding that is never the largest, also where a pad wrote it.

    Where no max-pool of torch's has its windows: the places that each sees, side by side.
    """
    names = (
        ("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False),
        ("return_indices", False),
    )  # fmt: skip
    kernel, stride, padding, dilation, _, indices = options(builder, node, names)
    source = node.all_input_nodes[0]
    if indices or "shape" not in node.meta or len(source.meta["shape"]) != 3:
        return None
    kernel, padding, dilation = ops.two(kernel), ops.two(padding), ops.two(dilation)
    stride = ops.two(stride) if stride else kernel
    source, (left, _, top, _) = _without_infinity(source, builder)
    padding = padding[0] + top, padding[1] + left
    shape, after = source.meta["shape"][1:], node.meta["shape"][1:]
    sides = list(zip(shape, kernel, stride, padding, strict=True))
    for ceil in (False, True) if dilation == (1, 1) else ():
        if all(2 * p <= k for _, k, _, p in sides) and after == tuple(_outputs(*side, ceil) for side in sides):
            return _largest_call(node, builder, source, (kernel, stride, padding), ceil)
    windows = [
        tuple(tuple(i * s - p + d * j for j in range(k) if 0 <= i * s - p + d * j < n) for i in range(m))
        for (n, k, s, p), m, d in zip(sides, after, dilation, strict=True)
    ]
    return largest(builder, source, windows)


def _largest_call(
    node: fx.Node, builder: Builder, source: fx.Node, window: tuple[tuple[int, int], ...], ceil: bool
) -> fx.Node | None:
    """Write a max-pool; None if `node` is it already."""
    module = builder.module(node)
    args = (source, *window, *((1, True) if ceil else ()))
    if source in node.all_input_nodes and not node.kwargs:
        if module is not None and module.ceil_mode == ceil:
            return None
        if node.target is F.max_pool2d and node.args == args:
            return None
    return builder.call(F.max_pool2d, *args)


def _outputs(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Windows along a dimension; the last one may hang over, but starts within the map or the padding before it."""
    rest = size + 2 * padding - kernel
    if not ceil:
        return rest // stride + 1
    count = -(-rest // stride) + 1
    return count - ((count - 1) * stride >= size + padding)


def _without_infinity(source: fx.Node, builder: Builder) -> tuple[fx.Node, tuple[int, int, int, int]]:
    """What a map is before −∞ was put around it, and how much: left, right, top, bottom."""
    if source.target is F.pad:
        inner, sides, mode, value = builder.arguments(
            source, ("input", None), ("pad", ()), ("mode", "constant"), ("value", None)
        )
        if mode == "constant" and value == -math.inf and len(sides) == 4 and min(sides) >= 0:
            return inner, tuple(sides)
    return source, (0, 0, 0, 0)


def _adaptive_largest(node: fx.Node, builder: Builder) -> fx.Node | None:
    source = node.all_input_nodes[0]
    if "shape" not in node.meta or len(source.meta["shape"]) != 3:
        return None
    sizes = zip(source.meta["shape"][1:], node.meta["shape"][1:], strict=True)
    windows = [tuple(tuple(range(i * n // m, -(-(i + 1) * n // m))) for i in range(m)) for n, m in sizes]
    return largest(builder, source, windows)


def _largest_over(node: fx.Node, builder: Builder) -> fx.Node | None:
    """torch.amax."""
    source, dims, _ = builder.arguments(node, ("input", None), ("dim", None), ("keepdim", False))
    before = source.meta["shape"]
    axes = _axes(dims, len(before))
    if axes is None:
        return None
    if axes == [1, 2] and len(before) == 3:
        return moves.reshape(builder, builder.call(F.max_pool2d, source, before[1:]), node.meta["shape"])
    others = [axis for axis in range(len(before)) if axis not in axes]
    rows = math.prod(before[axis] for axis in others)
    columns = math.prod(before[axis] for axis in axes)
    source = moves.reshape(builder, moves.permute(builder, source, (*others, *axes)), (1, rows, columns))
    return moves.reshape(builder, builder.call(F.max_pool2d, source, (1, columns)), node.meta["shape"])


def _item(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The values of torch.max over a dimension; any other item is a movement."""
    several, index = node.args
    assert isinstance(several, fx.Node)
    if ops.name(several) != "max" or "shape" in several.meta or index != 0:
        return moves.moved(node, builder)
    source, dim, keeps = builder.arguments(several, ("input", None), ("dim", None), ("keepdim", False))
    return builder.call(torch.amax, source, dim, keeps)


def largest(builder: Builder, source: fx.Node, windows: Sequence[Window]) -> fx.Node | None:
    """Write the largest of what each position sees. windows: along rows and columns."""
    if not all(all(window) for window in windows):
        return None
    kernel = []
    for axis, window in enumerate(windows, start=1):
        size = max(map(len, window))
        indices = [place for places in window for place in (*places, *[places[-1]] * (size - len(places)))]
        source = moves.select(builder, source, axis, indices)
        kernel.append(size)
    return source if kernel == [1, 1] else builder.call(F.max_pool2d, source, tuple(kernel), tuple(kernel), (0, 0))


def _resampled_line(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of average pools of (C, L)."""
    source = node.all_input_nodes[0]
    if "shape" not in node.meta or len(source.meta["shape"]) != 2:
        return None
    channels, length = source.meta["shape"]
    wide = moves.reshape(builder, source, (channels, 1, length))
    found = write(builder, wide, lambda x: builder.run(node, {source: x[:, :, 0]})[:, :, None])
    return found if found is None else moves.reshape(builder, found, node.meta["shape"])


def options(builder: Builder, node: fx.Node, named: Sequence[tuple[str, Any]]) -> list[Any]:
    """The options of a pool, by the names of its module's attributes, which are those of the function's arguments."""
    module = builder.module(node)
    if module is not None:
        return [getattr(module, name, default) for name, default in named]
    return builder.arguments(node, ("input", None), *named)[1:]


def _axes(dims: Any, rank: int) -> list[int] | None:
    """Dimensions from 0 without the batch, in order; None where the batch is one of them."""
    if dims is None:
        return None
    axes = sorted(d % (rank + 1) - 1 for d in ((dims,) if isinstance(dims, int) else dims))
    return axes if axes and min(axes) >= 0 else None


WINDOWS: dict[Any, Rule] = {
    **dict.fromkeys((F.avg_pool2d, nn.AvgPool2d), averaged),
    **dict.fromkeys((F.adaptive_avg_pool2d, nn.AdaptiveAvgPool2d), adaptive),
    **dict.fromkeys((F.interpolate, F.upsample, nn.Upsample), resampled),
    **dict.fromkeys((torch.mean, "mean"), meant),
    **dict.fromkeys((torch.sum, "sum"), summed),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, nn.MaxPool2d), largest_pooled),
    **dict.fromkeys((F.adaptive_max_pool2d, nn.AdaptiveMaxPool2d), _adaptive_largest),
    **dict.fromkeys((torch.amax, "amax"), _largest_over),
    operator.getitem: _item,
    **dict.fromkeys((F.avg_pool1d, nn.AvgPool1d, F.adaptive_avg_pool1d, nn.AdaptiveAvgPool1d), _resampled_line),
}
