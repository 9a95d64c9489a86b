"""What the ops of ONNX that move numbers are in torch: shapes, selections, paddings, sizes; see `onnx_ops`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.models.onnx_graph import LARGEST, Call, Known, Value, Writer
from parelu.models.onnx_ops import rule

# TensorProto.DataType → torch's; what is left out are texts and packed numbers.
TYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float32, 11: torch.float32, 16: torch.float32,
}  # fmt: skip


def rank(x: Known) -> int:
    return x.dim() if isinstance(x, Tensor) else x.like.dim()


@rule("Identity", "Dropout")
def identity(g: Writer, call: Call) -> Known:
    return call.value()


@rule("Cast", "CastLike")
def cast(g: Writer, call: Call) -> Known:
    x = call.value()
    to = call.value(1) if call.op == "CastLike" else TYPES.get(call.get("to"))
    kind = torch.float32 if isinstance(to, Value) else to.dtype if isinstance(to, Tensor) else to
    if kind is None:
        raise call.refuse(f"a cast to type {call.get('to')} cannot be read")
    if isinstance(x, Tensor):
        return x.to(kind)
    if not kind.is_floating_point:
        raise call.refuse("it makes whole numbers of activations, which no private inference does")
    return x


@rule("Constant")
def constant(g: Writer, call: Call) -> Tensor:
    (name, value), *_ = [*call.attributes.items(), ("", None)]
    if isinstance(value, Tensor):
        return value
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    raise call.refuse(f"a constant given as {name or 'nothing'} cannot be read")


@rule("ConstantOfShape")
def constant_of_shape(g: Writer, call: Call) -> Tensor:
    shape, value = call.weight(0), call.attributes.get("value", torch.zeros(1))
    assert shape is not None
    return value.reshape(()).expand(*_sizes(call, shape.tolist())).contiguous()


def _sizes(call: Call, shape: Any) -> list[int]:
    sizes = [int(size) for size in (shape if isinstance(shape, list) else [shape])]
    if any(size < 0 for size in sizes) or math.prod(sizes) > LARGEST:
        raise call.refuse(f"it makes a tensor of shape {tuple(sizes)}, which is too large or negative")
    return sizes


@rule("Shape")
def shape(g: Writer, call: Call) -> Tensor:
    sizes = list(call.value().shape)
    return torch.tensor(sizes[call.get("start", default=0) : call.get("end", default=len(sizes))], dtype=torch.int64)


@rule("Size")
def size(g: Writer, call: Call) -> Tensor:
    return torch.tensor(math.prod(call.value().shape))


@rule("Range")
def numbers(g: Writer, call: Call) -> Tensor:
    start, end, step = (call.weight(i) for i in range(3))
    assert start is not None and end is not None and step is not None
    if step == 0 or abs((end - start) / step) > LARGEST:
        raise call.refuse("it makes too many numbers")
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@rule("Reshape")
def reshape(g: Writer, call: Call) -> Known:
    """0 keeps a size. A first size that is the batch's stays open, as any number of images may come."""
    x, given = call.value(), call.get("shape", 1, default=[])
    if not call.get("allowzero", default=0):
        given = [x.shape[i] if size == 0 and i < rank(x) else size for i, size in enumerate(given)]
    if isinstance(x, Tensor):
        return x.reshape(given)
    sizes = list(x.like.reshape(given).shape)
    return g.call(torch.reshape, x, [-1, *sizes[1:]] if sizes and sizes[0] == x.shape[0] else sizes)


@rule("Flatten")
def flatten(g: Writer, call: Call) -> Known:
    x, axis = call.value(), call.get("axis", default=1)
    axis = axis % rank(x) if axis != rank(x) else axis
    if axis == 1 and isinstance(x, Value):
        return g.call(torch.flatten, x, 1)
    return g.call(torch.reshape, x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@rule("Squeeze")
def squeeze(g: Writer, call: Call) -> Known:
    x = call.value()
    axes = call.get("axes", 1)
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if size == 1 and not (i == 0 and isinstance(x, Value))]
    axes = sorted({int(a) % rank(x) for a in (axes if isinstance(axes, list) else [axes])}, reverse=True)
    for axis in axes:
        x = g.call(torch.squeeze, x, axis)
    return x


@rule("Unsqueeze")
def unsqueeze(g: Writer, call: Call) -> Known:
    x, axes = call.value(), call.get("axes", 1, default=[])
    axes = axes if isinstance(axes, list) else [axes]
    final = rank(x) + len(axes)
    for axis in sorted(int(a) % final for a in axes):
        x = g.call(torch.unsqueeze, x, axis)
    return x


@rule("Transpose")
def transpose(g: Writer, call: Call) -> Known:
    x = call.value()
    return g.permute(x, call.get("perm", default=list(reversed(range(rank(x))))))


@rule("Concat")
def concat(g: Writer, call: Call) -> Known:
    parts, axis = [call.value(i) for i in range(len(call.inputs))], call.get("axis", default=1)
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat([part for part in parts if isinstance(part, Tensor)], axis)
    axis %= rank(parts[0])
    orders = {part.order for part in parts if isinstance(part, Value)}
    first = next(part for part in parts if isinstance(part, Value))
    if len(orders) > 1 or not all(isinstance(part, Value) for part in parts) or first.is_plain:
        return _joined(g, call, parts, axis)
    like = torch.cat([part.like for part in parts if isinstance(part, Value)], axis)
    nodes = [part.node for part in parts if isinstance(part, Value)]
    node = g.graph.call_function(torch.cat, (nodes, first.order[axis]))
    return Value(node, like, first.order)


def _joined(g: Writer, call: Call, parts: list[Known], axis: int) -> Known:
    """Zeros among the parts become padding, which has room for any number of images."""
    kept = [i for i, part in enumerate(parts) if isinstance(part, Value)]
    fixed = [part for part in parts if isinstance(part, Tensor) and part.numel()]
    if not fixed:
        return g.call(torch.cat, [parts[i] for i in kept], axis)
    if any(part.any() for part in fixed) or kept != list(range(kept[0], kept[-1] + 1)) or axis == 0:
        raise call.refuse("it joins activations with fixed numbers; only zeros around them can be read")
    before, after = (sum(p.shape[axis] for p in side) for side in (parts[: kept[0]], parts[kept[-1] + 1 :]))
    x = g.call(torch.cat, [parts[i] for i in kept], axis) if len(kept) > 1 else parts[kept[0]]
    return g.call(F.pad, x, [0] * 2 * (rank(x) - 1 - axis) + [before, after])


@rule("Split")
def split(g: Writer, call: Call) -> list[Known]:
    x, axis = call.value(), call.get("axis", default=0) % rank(call.value())
    count, total = call.get("num_outputs", default=len(call.outputs)), x.shape[axis]
    step = -(-total // count)
    sizes = call.get("split", 1) or [min(step, total - i * step) for i in range(count)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [g.call(torch.narrow, x, axis, a, n) for a, n in zip(starts, sizes, strict=True)]


@rule("Slice")
def cut(g: Writer, call: Call) -> Known:
    x, starts, ends = call.value(), call.get("starts", 1, default=[]), call.get("ends", 2, default=[])
    axes = call.get("axes", 3) or list(range(len(starts)))
    steps = call.get("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, chosen = axis % rank(x), range(x.shape[axis])[start:end:step]
        if isinstance(x, Value) and axis == 0:
            if len(chosen) != x.shape[0]:
                raise call.refuse("it takes images out of the batch; export it for one image at a time")
            continue
        if step == 1:
            x = g.call(torch.narrow, x, axis, chosen.start if len(chosen) else 0, len(chosen))
        else:
            x = g.call(torch.index_select, x, axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


@rule("Gather")
def gather(g: Writer, call: Call) -> Known:
    x, indices, axis = call.value(), call.weight(1), call.get("axis", default=0)
    axis %= rank(x)
    if indices is None:
        raise call.refuse("its indices depend on the image; only fixed ones can be read")
    if isinstance(x, Value) and axis == 0:
        raise call.refuse("it takes images out of the batch; export it for one image at a time")
    places = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if places.dim() == 0:
        return g.call(torch.select, x, axis, int(places))
    found = g.call(torch.index_select, x, axis, places.flatten())
    if places.dim() == 1:
        return found
    sizes = [*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]]
    return g.call(torch.reshape, found, [-1, *sizes[1:]] if isinstance(x, Value) else sizes)


@rule("Expand")
def expand(g: Writer, call: Call) -> Known:
    x, sizes = call.value(), _sizes(call, call.get("shape", 1, default=[]))
    wanted = list(torch.broadcast_shapes(x.shape, sizes))
    if isinstance(x, Tensor):
        return x.expand(wanted)
    return x if wanted == list(x.shape) else g.call(torch.Tensor.expand, x, [-1, *wanted[1:]])


@rule("Tile")
def tile(g: Writer, call: Call) -> Known:
    x, times = call.value(), _sizes(call, call.get("repeats", 1, default=[]))
    _sizes(call, [a * b for a, b in zip(x.shape, times, strict=True)])
    return g.call(torch.tile, x, times)


@rule("Where")
def where(g: Writer, call: Call) -> Known:
    condition = call.weight(0)
    return g.call(torch.where, condition, call.value(1), call.value(2))


@rule("NonZero")
def places(g: Writer, call: Call) -> Tensor:
    x = call.weight(0)
    assert x is not None
    return x.nonzero().T


@rule("Pad")
def pad(g: Writer, call: Call) -> Known:
    """On the node's own dimensions, so that a padding before the layout changes needs no move."""
    x, mode = call.value(), call.get("mode", default=b"constant").decode()
    value = call.get("value", 2, default=0.0)
    given, axes = call.get("pads", 1, default=[]), call.get("axes", 3) or list(range(rank(x)))
    sides = {int(a) % rank(x): (given[i], given[i + len(axes)]) for i, a in enumerate(axes)}
    x_order = list(range(rank(x)) if isinstance(x, Tensor) else x.order)
    flat: list[int] = []
    for dimension in reversed(range(rank(x))):
        flat += sides.get(x_order.index(dimension), (0, 0))
    while flat[-2:] == [0, 0]:
        del flat[-2:]
    if not flat:
        return x
    kind = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(mode)
    if kind is None:
        raise call.refuse(f"a padding of mode {mode} cannot be read")
    options: tuple[Any, ...] = (
        ("constant", value[0] if isinstance(value, list) else value) if kind == "constant" else (kind,)
    )
    if isinstance(x, Tensor):
        return F.pad(x, flat, *options)
    shape = [size + sum(sides.get(d, (0, 0))) for d, size in enumerate(x.shape)]
    return g.on_node(x, F.pad, flat, *options, like=torch.empty(shape, device="meta"), order=x.order)


@rule("DepthToSpace", "SpaceToDepth")
def depth_and_space(g: Writer, call: Call) -> Known:
    x, block = call.value(), call.get("blocksize", default=1)
    _, channels, height, width = x.shape
    if call.op == "SpaceToDepth":
        x = g.call(torch.reshape, x, [-1, channels, height // block, block, width // block, block])
        x = g.call(torch.permute, x, (0, 3, 5, 1, 2, 4))
        return g.call(torch.reshape, x, [-1, channels * block * block, height // block, width // block])
    if call.get("mode", default=b"DCR") == b"CRD":
        return g.layer(call.path, nn.PixelShuffle(block), x)  # pyright: ignore[reportArgumentType]
    fewer = channels // block**2
    x = g.call(torch.reshape, x, [-1, block, block, fewer, height, width])
    x = g.call(torch.permute, x, (0, 3, 4, 1, 5, 2))
    return g.call(torch.reshape, x, [-1, fewer, height * block, width * block])


@rule("Resize", "Upsample")
def resize(g: Writer, call: Call) -> Known:
    """Nearest as a choice of places a dimension; linear as torch interpolates."""
    x = call.value()
    if isinstance(x, Tensor) or rank(x) != 4:
        raise call.refuse("only maps (batch, C, H, W) can be resized")
    scales = call.get("scales", 1 if call.op == "Upsample" or call.opset < 11 else 2)
    sizes = call.get("sizes", 3)
    outputs = sizes[2:] if sizes else [int(size * scale) for size, scale in zip(x.shape[2:], scales[2:], strict=True)]
    _sizes(call, [*x.shape[:2], *outputs])
    if list(sizes or [math.floor(a * b) for a, b in zip(x.shape, scales, strict=True)])[:2] != list(x.shape[:2]):
        raise call.refuse("only rows and columns can be resized")
    ratios = scales[2:] if scales and not sizes else [a / b for a, b in zip(outputs, x.shape[2:], strict=True)]
    old = call.op == "Upsample" or call.opset < 11
    frame = "asymmetric" if old else call.get("coordinate_transformation_mode", default=b"half_pixel").decode()
    mode = call.get("mode", default=b"nearest").decode()
    if mode == "nearest":
        rounding = "floor" if old else call.get("nearest_mode", default=b"round_prefer_floor").decode()
        for axis, output, ratio in zip((2, 3), outputs, ratios, strict=True):
            places = torch.tensor(_nearest(x.shape[axis], output, ratio, frame, rounding, call))
            x = g.call(torch.index_select, x, axis, places)
        return x
    exact = all(math.isclose(a * r, o) for a, r, o in zip(x.shape[2:], ratios, outputs, strict=True))
    is_torchs = frame in ("half_pixel", "align_corners") or (frame == "pytorch_half_pixel" and min(outputs) > 1)
    if mode == "linear" and is_torchs and exact:
        return g.call(F.interpolate, x, list(outputs), mode="bilinear", align_corners=frame == "align_corners")
    raise call.refuse(f"a resizing of mode {mode}, {frame} cannot be read; nearest and linear with half_pixel can")


def _nearest(size: int, output: int, ratio: float, frame: str, rounding: str, call: Call) -> list[int]:
    """The place that each output reads (onnx.ai/onnx/operators/onnx__Resize.html)."""
    at = {
        "half_pixel": lambda i: (i + 0.5) / ratio - 0.5,
        "pytorch_half_pixel": lambda i: (i + 0.5) / ratio - 0.5 if output > 1 else 0.0,
        "asymmetric": lambda i: i / ratio,
        "align_corners": lambda i: i * (size - 1) / (output - 1) if output > 1 else 0.0,
    }
    rounded = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda v: math.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: math.floor(v + 0.5),
    }
    if frame not in at or rounding not in rounded:
        raise call.refuse(f"a resizing of mode nearest, {frame}, {rounding} cannot be read")
    return [min(max(rounded[rounding](at[frame](i)), 0), size - 1) for i in range(output)]
