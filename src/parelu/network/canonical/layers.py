"""Convolutions, matrices and batch-norms, however they are called, as modules with plain options.

A layer keeps its parameters, and the path of its weight gives its own: state-dict names stay.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.network import functions
from parelu.network.canonical import moves, windows
from parelu.network.canonical.builder import Builder, Rule
from parelu.network.ops import two

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def convolved(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of F.conv2d."""
    source, weight, bias, stride, padding, dilation, groups = builder.arguments(
        node, ("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1),
        ("groups", 1),
    )  # fmt: skip
    kernel, offset = builder.constant(weight), builder.constant(bias)
    if kernel is None or (offset is None) != (bias is None):
        return None
    if padding == "valid":
        padding = 0
    fixed = _fixed(node, builder, source, kernel) if offset is None else None
    if fixed is not None:
        return fixed
    if padding == "same":
        sides = _same(tuple(kernel.shape[2:]), two(dilation))
    else:
        rows, columns = two(padding)
        sides = (columns, columns, rows, rows)
    layer = _convolution(kernel, offset, two(stride), two(dilation), groups)
    return _padded(builder, source, layer, sides, "constant", builder.layer_path(weight, "conv"))


def _convolution_module(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of nn.Conv2d: one with another padding than zeros by numbers is written with one without."""
    layer, source = builder.module(node), node.all_input_nodes[0]
    assert isinstance(layer, nn.Conv2d)
    is_numbered = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    is_shared = len(builder.callers(str(node.target))) > 1
    if is_numbered and type(layer) is nn.Conv2d and (is_shared or not _zeros_before(source)):
        return None
    if isinstance(layer.padding, str):
        sides = (0, 0, 0, 0) if layer.padding == "valid" else _same(layer.kernel_size, layer.dilation)
    else:
        rows, columns = layer.padding
        sides = (columns, columns, rows, rows)
    plain = _convolution(layer.weight, layer.bias, layer.stride, layer.dilation, layer.groups)
    return _padded(builder, source, plain, sides, _MODES[layer.padding_mode], str(node.target), is_shared)


def _padded(
    builder: Builder,
    source: fx.Node,
    layer: nn.Conv2d,
    sides: tuple[int, ...],
    mode: str,
    path: str,
    is_shared: bool = False,
) -> fx.Node | None:
    """Write a convolution without padding behind a padding. sides: left, right, top, bottom."""
    left, right, top, bottom = sides
    if mode == "constant" and left == right and top == bottom:
        source, (more_rows, more_columns) = (source, (0, 0)) if is_shared else _without_zeros(source)
        layer.padding = (top + more_rows, left + more_columns)
    elif any(sides):
        padded = moves.write(builder, source, lambda x: F.pad(x, sides, mode=mode))
        if padded is None:
            return None
        source = padded
    return builder.layer(path, _described(layer), source)


def _zeros_before(source: fx.Node) -> bool:
    return _without_zeros(source)[0] is not source


def _without_zeros(source: fx.Node) -> tuple[fx.Node, tuple[int, int]]:
    """What a map is before zeros were put around it, as many on both sides; and how many (rows, columns)."""
    counts, node = [0, 0], source
    while (selection := moves.selection(node)) and selection[0] in (1, 2):
        axis, indices = selection
        size = node.all_input_nodes[0].meta["shape"][axis]
        side = (len(indices) - size) // 2
        zeros = (functions.ZERO,) * side
        if side <= 0 or tuple(indices) != (*zeros, *range(size), *zeros):
            break
        counts[axis - 1] += side
        node = node.all_input_nodes[0]
    return node, (counts[0], counts[1])


def _same(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, int, int, int]:
    """left, right, top, bottom of torch's padding "same": the odd one at the end."""
    rows, columns = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _convolution(
    weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> nn.Conv2d:
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(
        inputs * groups, outputs, two(kernel), two(stride), 0, two(dilation), groups, bias=False, device="meta"
    )
    layer.weight = _parameter(weight)
    layer.bias = None if bias is None else _parameter(bias)
    return layer


def _described(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with what its padding entails."""
    rows, columns = two(layer.padding)
    layer._reversed_padding_repeated_twice = [columns, columns, rows, rows]
    return layer


def _fixed(node: fx.Node, builder: Builder, source: fx.Node, kernel: Tensor) -> fx.Node | None:
    """A depthwise convolution with one fixed kernel for all channels, such as a blur, as matrices along both sides."""
    is_depthwise = kernel.shape[1] == 1 and kernel.shape[0] == source.meta["shape"][0]
    if isinstance(kernel, nn.Parameter) or kernel.is_meta or not is_depthwise or kernel.shape[0] == 1:
        return None
    if not bool((kernel == kernel[:1]).all()):
        return None
    _, _, _, stride, padding, dilation = builder.arguments(
        node, ("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1)
    )
    one: Any = kernel[:1].detach().cpu().double()
    return windows.write(builder, source, lambda x: F.conv2d(x, one, None, stride, padding, dilation))


def multiplied_by_matrix(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of F.linear."""
    source, weight, bias = builder.arguments(node, ("input", None), ("weight", None), ("bias", None))
    matrix, offset = builder.constant(weight), builder.constant(bias)
    if matrix is None or matrix.dim() != 2 or (offset is None) != (bias is None):
        return None
    return _linear(builder, source, matrix, offset, builder.layer_path(weight, "linear"))


def _matrix_product(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of matmul with a fixed matrix."""
    source, weight = builder.arguments(node, ("input", None), ("other", None))
    matrix = builder.constant(weight)
    if matrix is None or matrix.dim() != 2 or "shape" not in source.meta:
        return None
    return _linear(builder, source, _transposed(matrix), None, builder.layer_path(weight, "linear"))


def _matrix_product_added(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of torch.addmm: bias + source · matrix."""
    bias, source, weight = builder.arguments(node, ("input", None), ("mat1", None), ("mat2", None))
    matrix, offset = builder.constant(weight), builder.constant(bias)
    if matrix is None or offset is None or offset.dim() != 1 or node.kwargs.get("beta", 1) != 1:
        return None
    if node.kwargs.get("alpha", 1) != 1:
        return None
    return _linear(builder, source, _transposed(matrix), offset, builder.layer_path(weight, "linear"))


def _einsum(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of torch.einsum with a fixed matrix that is summed over one dimension: a 1×1 convolution, or linear."""
    equation, *operands = builder.arguments(
        node, ("equation", None), *((str(i), None) for i in range(len(node.args) - 1))
    )
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or not all(isinstance(x, fx.Node | Tensor) for x in operands):
        return None
    terms, _, after = equation.replace(" ", "").partition("->")
    labels = dict(zip(operands, terms.split(","), strict=False))
    images = [x for x in operands if isinstance(x, fx.Node) and builder.constant(x) is None]
    if len(labels) != 2 or len(images) != 1 or not after.isalpha():
        return None
    (source,), (weight,) = images, (x for x in operands if x is not images[0])
    matrix, before, both = builder.constant(weight), labels[source], labels[weight]
    summed, made = ([c for c in both if (c in before) == is_read] for is_read in (True, False))
    if matrix is None or len(both) != 2 or len(summed) != 1 or len(made) != 1 or summed[0] in (before[0], *after):
        return None
    if sorted(after) != sorted(before.replace(summed[0], made[0])) or after[0] != before[0]:
        return None
    matrix = matrix if both[0] == made[0] else _transposed(matrix)
    if len(before) == 4 and after == before.replace(summed[0], made[0]) and before[1] == summed[0]:
        layer = _convolution(builder.view(matrix, (*matrix.shape, 1, 1)), None, (1, 1), (1, 1), 1)
        return builder.layer(builder.layer_path(weight, "conv"), _described(layer), source)
    others = [c for c in before if c != summed[0]]
    last = builder.call(torch.permute, source, tuple(before.index(c) for c in (*others, summed[0])))
    result = _linear(builder, last, matrix, None, builder.layer_path(weight, "linear"))
    return builder.call(torch.permute, result, tuple((*others, made[0]).index(c) for c in after))


def _linear(builder: Builder, source: fx.Node, matrix: Tensor, bias: Tensor | None, path: str) -> fx.Node:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    layer.weight = _parameter(matrix)
    layer.bias = None if bias is None else _parameter(bias)  # pyright: ignore[reportAttributeAccessIssue]
    return builder.layer(path, layer, source)


def _transposed(matrix: Tensor) -> Tensor:
    return nn.Parameter(matrix.detach().T, matrix.requires_grad) if isinstance(matrix, nn.Parameter) else matrix.T


def normalised(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of F.batch_norm with running statistics."""
    source, mean, variance, weight, bias, _, momentum, eps = builder.arguments(
        node, ("input", None), ("running_mean", None), ("running_var", None), ("weight", None), ("bias", None),
        ("training", False), ("momentum", 0.1), ("eps", 1e-5),
    )  # fmt: skip
    average = builder.constant(mean)
    rank = len(source.meta["shape"])
    if (
        average is None
        or rank not in (1, 3)
        or any(v is not None and builder.constant(v) is None for v in (weight, bias))
    ):
        return None
    kind = nn.BatchNorm2d if rank == 3 else nn.BatchNorm1d
    layer = kind(len(average), eps, momentum, affine=False, device="meta")
    tensors = {"running_mean": average, "running_var": builder.constant(variance)}
    for name, tensor in tensors.items():
        layer.register_buffer(name, tensor)
    layer.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=average.device))
    layer.affine = weight is not None
    for name, given in (("weight", weight), ("bias", bias)):
        values = builder.constant(given)
        if layer.affine:
            initial = torch.ones_like(average) if name == "weight" else torch.zeros_like(average)
            layer.register_parameter(name, _parameter(initial if values is None else values))
    return builder.layer(builder.layer_path(mean, "norm"), layer, source)


def _line_module(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of nn.Conv1d: a convolution of maps of one row."""
    layer = builder.module(node)
    assert isinstance(layer, nn.Conv1d)
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    weight, path = nn.Parameter(layer.weight.detach().unsqueeze(2), layer.weight.requires_grad), str(node.target)
    plain = _convolution(weight, layer.bias, (1, *layer.stride), (1, *layer.dilation), layer.groups)
    plain.padding = (0, *layer.padding)
    return _on_rows(node, builder, path, _described(plain))


def _norm_of_lines(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of nn.BatchNorm1d on (C, L): that of maps of one row."""
    layer = builder.module(node)
    assert isinstance(layer, nn.BatchNorm1d)
    if len(node.meta["shape"]) == 1 or layer.running_mean is None:
        return None
    plain = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, device="meta")
    plain._parameters.update(layer._parameters)
    plain._buffers.update(layer._buffers)
    return _on_rows(node, builder, str(node.target), plain)


def _on_rows(node: fx.Node, builder: Builder, path: str, layer: nn.Module) -> fx.Node:
    source = node.all_input_nodes[0]
    channels, length = source.meta["shape"]
    wide = builder.layer(path, layer, moves.reshape(builder, source, (channels, 1, length)))
    return moves.reshape(builder, wide, node.meta["shape"])


def _functional_line(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of F.conv1d: F.conv2d of maps of one row."""
    _, weight, bias, stride, padding, dilation, groups = builder.arguments(
        node, ("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1),
        ("groups", 1),
    )  # fmt: skip
    kernel = builder.constant(weight)
    if kernel is None or isinstance(padding, str):
        return None
    stride, padding, dilation = (v if isinstance(v, int) else math.prod(v) for v in (stride, padding, dilation))
    wide = nn.Parameter(kernel.detach().unsqueeze(2), kernel.requires_grad)
    layer = _convolution(wide, builder.constant(bias), (1, stride), (1, dilation), groups)
    layer.padding = (0, padding)
    return _on_rows(node, builder, builder.layer_path(weight, "conv"), _described(layer))


def _transposed_module(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of nn.ConvTranspose2d, but for one that is told its output's size."""
    layer = builder.module(node)
    assert isinstance(layer, nn.ConvTranspose2d)
    if len(node.args) + len(node.kwargs) > 1:
        return None
    options = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    return _turned_convolution(builder, node, str(node.target), layer.weight, layer.bias, *options)


def _transposed_call(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of F.conv_transpose2d."""
    _, weight, bias, *options = builder.arguments(
        node, ("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0), ("output_padding", 0),
        ("groups", 1), ("dilation", 1),
    )  # fmt: skip
    kernel, offset = builder.constant(weight), builder.constant(bias)
    if kernel is None or (offset is None) != (bias is None):
        return None
    return _turned_convolution(builder, node, builder.layer_path(weight, "conv"), kernel, offset, *options)


def _turned_convolution(
    builder: Builder,
    node: fx.Node,
    path: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> fx.Node:
    """A transposed convolution as a convolution of the map with zeros between and around; its weight is turned."""
    source, (inputs, outputs, *kernel) = node.all_input_nodes[0], weight.shape
    options = zip(kernel, *map(two, (stride, padding, output_padding, dilation)), strict=True)
    for axis, (size, step, cut, more, spread) in enumerate(options, 1):
        around = spread * (size - 1) - cut
        places = [functions.ZERO] * ((source.meta["shape"][axis] - 1) * step + 1)
        places[::step] = range(source.meta["shape"][axis])
        for added in (around, around + more):  # in front, and then, turned, behind
            places = places[-added:] if added < 0 else [functions.ZERO] * added + places
            places.reverse()
        source = moves.select(builder, source, axis, tuple(places))
    turned = weight.detach().view(groups, inputs // groups, outputs, *kernel).transpose(1, 2).flip(3, 4)
    own = nn.Parameter(turned.reshape(groups * outputs, inputs // groups, *kernel), weight.requires_grad)
    builder.note("a transposed convolution became a convolution of the map with zeros between, its weight turned")
    return builder.layer(path, _described(_convolution(own, bias, (1, 1), two(dilation), groups)), source)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)


LAYERS: Mapping[Any, Rule] = {
    **dict.fromkeys((F.conv2d, torch.conv2d), convolved),
    **dict.fromkeys((F.conv1d, torch.conv1d), _functional_line),
    nn.Conv2d: _convolution_module,
    nn.Conv1d: _line_module,
    nn.ConvTranspose2d: _transposed_module,
    **dict.fromkeys((F.conv_transpose2d, torch.conv_transpose2d), _transposed_call),
    nn.BatchNorm1d: _norm_of_lines,
    F.linear: multiplied_by_matrix,
    **dict.fromkeys((torch.matmul, operator.matmul, "matmul", torch.mm, "mm"), _matrix_product),
    torch.addmm: _matrix_product_added,
    torch.einsum: _einsum,
    **dict.fromkeys((F.batch_norm, torch.batch_norm), normalised),
}
