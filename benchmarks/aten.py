"""What a module costs, counted as torch runs it: each aten op that is dispatched for one image, in evaluation mode.

It shares no code with parelu's own counts, traces nothing and reads no source; so the two can be compared:

    python -c "import aten, torchvision; print(aten.count(torchvision.models.resnet18(), (3, 224, 224)))"

Shapes alone are computed where the module is on the meta device.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

aten: Any = torch.ops.aten

# Overload packet → ReLUs an element: of relu(x), s·x + (1 − s)·relu(x), or a − relu(b − relu(x − c)).
RELUS = {
    **dict.fromkeys((aten.relu, aten.relu_, aten.threshold, aten.threshold_, aten.clamp_min, aten.clamp_min_), 1),
    **dict.fromkeys((aten.leaky_relu, aten.leaky_relu_, aten._prelu_kernel, aten.rrelu_with_noise, aten.abs), 1),
    **dict.fromkeys((aten.clamp_max, aten.clamp_max_, aten.maximum, aten.minimum), 1),
    **dict.fromkeys((aten.hardtanh, aten.hardtanh_, aten.hardsigmoid, aten.hardsigmoid_), 2),
    **dict.fromkeys((aten.hardswish, aten.hardswish_), 2),
}
SIGMOIDS = (aten.sigmoid, aten.sigmoid_)
PRODUCTS = (aten.mul, aten.mul_, aten.hardswish, aten.hardswish_)
# What is smooth: no number of ReLUs is the same.
SMOOTH = (aten.silu, aten.silu_, aten.gelu, aten.mish, aten.elu, aten.tanh, aten.softplus, aten._softmax, aten.exp)


@dataclasses.dataclass
class Cost:
    """Of one image.

    Attributes:
        relus: ReLUs that the activations are exactly; comparisons: of max-pools, rows and columns one after the other.
        macs: multiply-adds of matrices and of convolutions whose filter is a parameter, or made of one.
        filtered: multiply-adds of convolutions with a filter that is no parameter, such as a blur.
        sigmoids: elements of sigmoids, and of softmaxes of two; products: of products of two tensors that depend on the
            image.
        smooth: elements of each other activation, by name; "gelu tanh" is the one approximated by a tanh.
    """

    relus: int = 0
    comparisons: int = 0
    macs: int = 0
    filtered: int = 0
    sigmoids: int = 0
    products: int = 0
    smooth: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self)))


def count(module: nn.Module, shape: tuple[int, ...]) -> Cost:
    """What the module dispatches for an image of this shape, on the module's own device, but for what nobody reads."""
    first = next(module.parameters())
    counter, was_training = _Counter(module), module.training
    with torch.no_grad(), counter:
        image = torch.zeros((1, *shape), device=first.device, dtype=first.dtype)
        counter.step(image, Cost(), ())
        output = module.eval()(image)
    module.train(was_training)
    return counter.cost(output)


class _Counter(TorchDispatchMode):
    """Follows what depends on the image, and what on a parameter, from op to op."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.steps: list[tuple[Cost, set[int]]] = []  # of each op that reads the image: its cost, and what it reads
        self.images, self.trained = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()  # the first: tensor → its step
        self.padded = WeakTensorKeyDictionary()  # tensor → the −∞ around it: left, right, top, bottom
        for parameter in module.parameters():
            self.trained[parameter] = True

    def step(self, made: Any, cost: Cost, read: Iterable[Tensor]) -> None:
        """Take down an op that reads the image."""
        self.steps.append((cost, {self.images[tensor] for tensor in read if tensor in self.images}))
        for tensor in _tensors(made):
            self.images[tensor] = len(self.steps) - 1

    def cost(self, output: Any) -> Cost:
        """Of all steps that lead to these tensors."""
        waiting, found = [self.images[tensor] for tensor in _tensors(output)], set()
        while waiting:
            step = waiting.pop()
            if step not in found:
                found.add(step)
                waiting += self.steps[step][1]
        return sum((self.steps[step][0] for step in found), Cost())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, made = list(_tensors((args, kwargs))), list(_tensors(result))
        if any(tensor in self.trained for tensor in read):
            for tensor in made:
                self.trained[tensor] = True
        if any(tensor in self.images for tensor in read):
            self.step(made, self._cost(func.overloadpacket, args, kwargs or {}, made), read)
        return result

    def _cost(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Sequence[Tensor]) -> Cost:
        """Of one op that reads the image."""
        cost, elements = Cost(), made[0].numel() if made else 0
        if op in RELUS:
            cost.relus += RELUS[op] * elements
        elif op in (aten.clamp, aten.clamp_):
            cost.relus += sum(bound is not None for bound in (*args[1:], *kwargs.values())) * elements
        elif op is aten.convolution:
            weight = args[1]
            multiplied = elements * math.prod(weight.shape[1:])
            if weight in self.trained or weight in self.images:
                cost.macs += multiplied
            else:
                cost.filtered += multiplied
        elif op in (aten.mm, aten.bmm):
            cost.macs += elements * args[0].shape[-1]
        elif op in (aten.addmm, aten.baddbmm):
            cost.macs += elements * args[1].shape[-1]
        elif op in SIGMOIDS:
            cost.sigmoids += elements
        elif op is aten._softmax and args[0].shape[args[1]] == 2:  # the sigmoid of a difference, and the rest to 1
            cost.sigmoids += elements // 2
        elif op in SMOOTH:
            by_tanh = " tanh" if "tanh" in (*args[1:], *kwargs.values()) else ""
            cost.smooth[str(op).split(".")[-1].strip("_") + by_tanh] += elements
        elif op is aten.constant_pad_nd and len(args) > 2 and args[2] == -math.inf:
            self.padded[made[0]] = args[1]
        else:
            is_padded = isinstance(args[0], Tensor) and args[0] in self.padded
            padded: Sequence[int] = self.padded[args[0]] if is_padded else (0, 0, 0, 0)
            cost.comparisons += _comparisons(op, args, made, padded)
        if op in PRODUCTS and all(isinstance(factor, Tensor) and factor in self.images for factor in args[:2]):
            cost.products += elements
        return cost


def _comparisons(op: Any, args: Sequence[Any], made: Sequence[Tensor], padded: Sequence[int]) -> int:
    """Of a max-pool; 0 of any other op. padded: left, right, top, bottom of its input."""
    if op is aten.amax:
        return args[0].numel() - made[0].numel()
    if op in (aten.max_pool2d_with_indices, aten.max_pool2d):
        left, right, top, bottom = padded
        height, width = args[0].shape[-2] - top - bottom, args[0].shape[-1] - left - right
        kernel, stride, padding, dilation = map(_two, (*args[1:5], *(args[1], 0, 1)[len(args) - 2 :]))
        padding = padding[0] + top, padding[1] + left
        sides = zip((height, width), made[0].shape[-2:], kernel, stride, padding, dilation, strict=True)
        windows = [_windows(*side) for side in sides]
    elif op is aten.adaptive_max_pool2d:
        height, width = args[0].shape[-2:]
        sides = zip((height, width), made[0].shape[-2:], strict=True)
        windows = [[range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in sides]
    else:
        return 0
    rows, columns = made[0].shape[-2:]
    in_rows, in_columns = map(_compared, windows)
    maps = math.prod(made[0].shape[:-2])
    return maps * min(in_rows * width + in_columns * rows, in_columns * height + in_rows * columns)


def _compared(windows: Sequence[range]) -> int:
    """Comparisons along one dimension, where equal parts of windows are compared once.

    A part of n places is made of its first 2^k and the others, or of its first 2^k and its last 2^k, 2^k < n ≤ 2^(k+1).
    """
    made: dict[bool, set[range]] = {False: set(), True: set()}
    for overlap, parts in made.items():
        waiting = [window for window in windows if len(window) > 1]
        while waiting:
            part = waiting.pop()
            if part not in parts and len(part) > 1:
                parts.add(part)
                half = 1 << (len(part) - 1).bit_length() - 1
                waiting += [part[:half], part[-half:] if overlap else part[half:]]
    return min(map(len, made.values()))


def _windows(size: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> list[range]:
    """What each window sees of a side; padding is never the largest."""
    found = []
    for start in range(-padding, count * stride - padding, stride):
        first = start if start >= 0 else start % dilation
        found.append(range(first, min(size, start + (kernel - 1) * dilation + 1), dilation))
    return found


def _two(value: Any) -> tuple[int, int]:
    """Rows and columns of what aten takes as one number, a list of one, or a list of two."""
    first, *others = value if isinstance(value, list | tuple) else (value,)
    return first, *(others or (first,))


def _tensors(value: Any) -> Iterator[Tensor]:
    match value:
        case Tensor():
            yield value
        case dict():
            for part in value.values():
                yield from _tensors(part)
        case list() | tuple():
            for part in value:
                yield from _tensors(part)
        case _:
            return
