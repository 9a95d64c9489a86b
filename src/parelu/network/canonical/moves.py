"""Movements of numbers: views, slices, paddings, shuffles, repetitions, as reshapes, permutations and selections.

What a call does is found by running it on the places of the numbers: nobody parses its arguments.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.network import functions, ops
from parelu.network.canonical.builder import Builder, Rule

_SPLITS = ("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "hsplit", "vsplit", "dsplit")
LARGEST_GATHER = 1 << 22  # numbers that a movement without any order may move

Indices = tuple[int, ...]


def moved(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The rule of all that only moves numbers."""
    if _is_canonical(node):
        return None
    source = _source(node)
    if source is None or "shape" not in node.meta:
        return None
    return write(builder, source, lambda x: builder.run(node, {source: x}))


def write(builder: Builder, source: fx.Node, move: Callable[[Tensor], Any]) -> fx.Node | None:
    """Write what `move` does with a batch of one; None where it does not only move numbers or add constants.

    Numbers from nowhere that are not zero, such as of a padding with ones, become an Affine.
    """
    before = source.meta["shape"]
    count = math.prod(before)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))  # no mean of places is a place
    numbers = (order + 1).to(torch.float64).view(1, *before)
    try:
        added, first, second = (move(numbers * factor) for factor in (0, 1, -2))
        first, second = first - added, second - added
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if len(first) != 1 or not torch.equal(second, -2 * first) or not torch.equal(first, first.round()):
        return None
    place = torch.cat([torch.tensor([functions.ZERO]), order.argsort()])
    found = first[0].long()
    if found.numel() == 0 or int(found.min()) < 0 or int(found.max()) > count:
        return None
    last = _written(builder, source, place[found])
    if last is None or not bool(added.any()):
        return last
    return constant_added(builder, last, added[0])


def constant_added(builder: Builder, source: fx.Node, constant: Tensor) -> fx.Node:
    """Write the addition of numbers that are no parameter. constant: of the tensor's shape or broadcast to it."""
    layer = functions.Affine(tuple(constant.shape), trained=())
    layer.bias = constant.to(torch.get_default_dtype())
    return builder.layer(builder.below("affine"), layer, source)


def reshape(builder: Builder, source: fx.Node, shape: Sequence[int]) -> fx.Node:
    """shape: without the batch."""
    while source.target is torch.reshape:
        source = source.all_input_nodes[0]
    if tuple(shape) == source.meta["shape"]:
        return source
    return builder.call(torch.reshape, source, (-1, *shape))


def permute(builder: Builder, source: fx.Node, order: Sequence[int]) -> fx.Node:
    """order: from 0, without the batch."""
    if source.target is torch.permute:
        first = source.args[1]
        assert isinstance(first, tuple)
        order = [int(first[d + 1]) - 1 for d in order]  # pyright: ignore[reportArgumentType]
        source = source.all_input_nodes[0]
    if list(order) == sorted(order):
        return source
    return builder.call(torch.permute, source, (0, *(d + 1 for d in order)))


def select(builder: Builder, source: fx.Node, axis: int, indices: Sequence[int]) -> fx.Node:
    """axis: from 0, without the batch."""
    before = selection(source)
    if before and before[0] == axis:
        indices = [before[1][i] if i >= 0 else functions.ZERO for i in indices]
        source = source.all_input_nodes[0]
    if tuple(indices) == tuple(range(source.meta["shape"][axis])):
        return source
    return builder.call(functions.select, source, axis, tuple(indices))


def selection(node: fx.Node) -> tuple[int, Indices] | None:
    """Axis and indices of a call of `functions.select`."""
    if node.op != "call_function" or node.target is not functions.select:
        return None
    _, axis, indices = node.args
    return axis, indices  # pyright: ignore[reportReturnType]


def _written(builder: Builder, source: fx.Node, places: Tensor) -> fx.Node | None:
    before, after, count = source.meta["shape"], tuple(places.shape), math.prod(source.meta["shape"])
    flat = places.flatten()
    if torch.equal(flat, torch.arange(count)):
        return reshape(builder, source, after)
    everything = torch.arange(count).view(before)
    turned = _turned(flat) if len(flat) == count else None
    if turned is not None:
        sizes, order = turned
        return reshape(builder, permute(builder, reshape(builder, source, sizes), order), after)
    indices = _indices(places, everything)
    if indices is not None:
        for axis, wanted in enumerate(indices):
            source = select(builder, source, axis, wanted)
        return reshape(builder, source, after)
    if places.numel() > LARGEST_GATHER:
        return None
    return reshape(builder, select(builder, reshape(builder, source, (count,)), 0, flat.tolist()), after)


def _turned(places: Tensor) -> tuple[list[int], list[int]] | None:
    """The sizes and the order of dimensions, if these are all places of a tensor with its dimensions in another order.

    A run of equal steps is the last dimension; the runs' first places are a tensor of one dimension less.
    """
    sizes: list[int] = []
    steps: list[int] = []
    while len(places) > 1:
        taken = places.diff()
        step = int(taken[0])
        ends = (taken != step).nonzero()
        size = int(ends[0]) + 1 if len(ends) else len(places)
        if len(places) % size:
            return None
        runs = places.view(-1, size)
        if not torch.equal(runs, runs[:, :1] + step * torch.arange(size)):
            return None
        sizes.insert(0, size)
        steps.insert(0, step)
        places = runs[:, 0]
    by_step = sorted(range(len(sizes)), key=steps.__getitem__, reverse=True)
    before = [sizes[d] for d in by_step]
    is_whole = [steps[d] for d in by_step] == [math.prod(before[i + 1 :]) for i in range(len(before))]
    return (before, [by_step.index(d) for d in range(len(sizes))]) if is_whole and not int(places[0]) else None


def _indices(places: Tensor, everything: Tensor) -> list[Indices] | None:
    """What a selection along each dimension takes; the result is then of another shape, but in the same order."""
    for found in (_aligned(places, everything), _dropped(places, everything)):
        if found is not None:
            result = everything.unsqueeze(0)
            for axis, wanted in enumerate(found):
                result = functions.select(result + 1, axis, wanted) - 1
            if torch.equal(result.flatten(), places.flatten()):
                return found
    return None


def _aligned(places: Tensor, everything: Tensor) -> list[Indices] | None:
    """The indices where no dimension goes or comes."""
    if places.dim() != everything.dim():
        return None
    found = []
    for axis, size in enumerate(everything.shape):
        stride = math.prod(everything.shape[axis + 1 :])
        others = tuple(d for d in range(places.dim()) if d != axis)
        largest = places.amax(others) if others else places
        found.append(tuple(torch.where(largest < 0, functions.ZERO, largest // stride % size).tolist()))
    return found


def _dropped(places: Tensor, everything: Tensor) -> list[Indices] | None:
    """The indices where each coordinate along a dimension is met once or not at all."""
    flat, found = places.flatten(), []
    if int(flat.min()) < 0:
        return None
    for axis, size in enumerate(everything.shape):
        stride = math.prod(everything.shape[axis + 1 :])
        found.append(tuple(dict.fromkeys((flat // stride % size).tolist())))
    return found if math.prod(map(len, found)) == len(flat) else None


def _is_canonical(node: fx.Node) -> bool:
    """Whether a node is a reshape or a permutation as we write it, that does something."""
    if node.op != "call_function" or len(node.args) != 2 or not isinstance(node.args[1], tuple):
        return False
    source, argument = node.all_input_nodes[0], list(node.args[1])
    if node.target is torch.reshape:
        return argument == [-1, *node.meta["shape"]] and node.meta["shape"] != source.meta["shape"]
    dimensions = list(range(len(argument)))
    return node.target is torch.permute and argument[0] == 0 and sorted(argument) == dimensions != argument  # pyright: ignore


def _source(node: fx.Node) -> fx.Node | None:
    """The one tensor that a node moves, seen through nodes that make several tensors."""
    found: list[fx.Node] = []
    pending = list(node.all_input_nodes)
    while pending:
        term = pending.pop()
        if "shape" in term.meta and term.op != "get_attr":
            found.append(term)
        elif ops.name(term) in _SPLITS:
            pending += term.all_input_nodes
    return found[0] if len(set(found)) == 1 else None


def _as_other(node: fx.Node, builder: Builder) -> fx.Node | None:
    """expand_as, view_as, reshape_as: the other tensor gives its shape alone."""
    source, other = (*node.args, *node.kwargs.values())
    if not isinstance(source, fx.Node) or not isinstance(other, fx.Node) or "shape" not in other.meta:
        return None
    method, shape = str(node.target).removesuffix("_as"), (1, *other.meta["shape"])
    return write(builder, source, lambda x: getattr(x, method)(shape))


def _stacked(node: fx.Node, builder: Builder) -> fx.Node | None:
    parts, dim = builder.arguments(node, ("tensors", None), ("dim", 0))
    dim = dim % (len(node.meta["shape"]) + 1)
    if dim == 0 or not all(isinstance(part, fx.Node) for part in parts):
        return None
    return builder.call(torch.cat, [reshape(builder, part, _with_one(part, dim - 1)) for part in parts], dim)


def _with_one(node: fx.Node, axis: int) -> tuple[int, ...]:
    shape = node.meta["shape"]
    return (*shape[:axis], 1, *shape[axis:])


def _joined(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Concatenation under another name, of one part, or with the dimension counted from the end."""
    parts, dim = builder.arguments(node, ("tensors", None), ("dim", 0))
    dim = dim % (len(node.meta["shape"]) + 1)
    if dim == 0 or not all(isinstance(part, fx.Node) for part in parts):
        return None
    if len(parts) == 1:
        return parts[0]
    is_canonical = node.target is torch.cat and node.args == (list(parts), dim)
    return None if is_canonical else builder.call(torch.cat, list(parts), dim)


def _side_by_side(node: fx.Node, builder: Builder) -> fx.Node | None:
    """torch.hstack: the batch comes first, so it is a concatenation along the next dimension."""
    (parts,) = builder.arguments(node, ("tensors", None))
    return builder.call(torch.cat, parts, 1)


def _cast(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Another precision of the same numbers, of which a network has one; of what rounds to whole numbers: None."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or "shape" not in source.meta:
        return None
    numbers = torch.tensor([[-2.5, -0.25, 0, 0.5, 1.75]])
    result = builder.run(node, dict.fromkeys(node.all_input_nodes, numbers))
    return source if torch.equal(result.float(), numbers) else None


def _source_itself(node: fx.Node, builder: Builder) -> fx.Node | None:
    """What returns its input at inference."""
    return node.all_input_nodes[0]


def _dropped_out(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Functional dropout, which returns its input at inference; a module stays, for the training."""
    is_training = builder.arguments(node, ("input", None), ("p", 0.5), ("training", True))[2]
    return None if is_training else node.all_input_nodes[0]


def _all(rule: Rule, *targets: Any) -> dict[Any, Rule]:
    return dict.fromkeys(targets, rule)


def _with_methods(*functions_: Callable[..., Any]) -> Iterable[Any]:
    return itertools.chain.from_iterable((function, function.__name__) for function in functions_)


MOVES: dict[Any, Rule] = {
    **_all(moved, *_with_methods(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze)),
    **_all(moved, *_with_methods(torch.permute, torch.transpose, torch.movedim, torch.moveaxis)),
    **_all(moved, *_with_methods(torch.swapaxes, torch.swapdims, torch.flip, torch.roll, torch.rot90, torch.tile)),
    **_all(moved, *_with_methods(torch.narrow, torch.select, torch.index_select, torch.repeat_interleave)),
    **_all(moved, *_with_methods(torch.diagonal, torch.take_along_dim, torch.broadcast_to), torch.fliplr, torch.flipud),
    **_all(moved, operator.getitem, "view", "expand", "repeat", "unfold"),
    **_all(moved, F.pad, torch.constant_pad_nd, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, F.unfold),
    **_all(moved, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unfold),
    **_all(moved, nn.ConstantPad1d, nn.ConstantPad2d, nn.ZeroPad1d, nn.ZeroPad2d),
    **_all(moved, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    **_all(moved, nn.CircularPad1d, nn.CircularPad2d),
    **_all(_as_other, "expand_as", "view_as", "reshape_as"),
    **_all(_stacked, torch.stack),
    **_all(_joined, torch.cat, torch.concat, torch.concatenate),
    **_all(_dropped_out, F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout),
    **_all(_side_by_side, torch.hstack),
    **_all(_cast, "to", "type", "type_as", "float", "double", "half", "bfloat16"),
    **_all(_source_itself, "contiguous", "clone", torch.clone, "detach", "alias", nn.Identity),
}
