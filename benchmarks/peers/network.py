"""The network that a peer runs: a CIFAR ResNet20 with folded batch norms and random ReLU masks.

Needs numpy alone, so that it loads in the peer's own environment. Activations are height × width × channels here;
an engine's `Ops` may lay them out as it likes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

INPUT = (32, 32, 3)
CLASSES = 10
WIDTHS = (16, 32, 64)
BLOCKS = 3


class Ops(Protocol):
    """What an engine must do; activations and parameters are of its own types."""

    def conv(self, x: Any, weight: Any, bias: Any, stride: int) -> Any: ...
    def relu(self, x: Any, site: str) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def head(self, x: Any, weight: Any, bias: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Block:
    """A basic block: its name, its channels and its stride."""

    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def projects(self) -> bool:
        """Whether its shortcut is a 1×1 convolution."""
        return self.stride != 1 or self.inputs != self.outputs


def blocks() -> list[Block]:
    """The nine basic blocks."""
    found, inputs = [], WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        for index in range(BLOCKS):
            stride = 2 if stage and not index else 1
            found.append(Block(f"layer{stage + 1}.{index}", inputs, width, stride))
            inputs = width
    return found


def sites() -> dict[str, tuple[int, int, int]]:
    """The shape of each activation by its name, in order of execution."""
    size = INPUT[0]
    shapes = {"stem": (size, size, WIDTHS[0])}
    for block in blocks():
        size //= block.stride
        shapes |= {f"{block.name}.relu{half}": (size, size, block.outputs) for half in (1, 2)}
    return shapes


def masks(keep: float, seed: int = 1) -> dict[str, np.ndarray]:
    """Which elements of each site keep their ReLU: a random share `keep`, the same at every site."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in sites().items():
        size = int(np.prod(shape))
        mask = np.zeros(size, bool)
        mask[generator.permutation(size)[: round(keep * size)]] = True
        found[name] = mask.reshape(shape)
    return found


def parameters(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random weights (height × width × inputs × outputs) and biases; variances keep activations near 1 at any mask."""
    generator = np.random.default_rng(seed)

    def layer(*shape: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        deviation = scale / np.sqrt(np.prod(shape[:-1]))
        weight = generator.normal(0, deviation, shape).astype(np.float32)
        return weight, generator.normal(0, 0.1, shape[-1:]).astype(np.float32)

    found = {"stem": layer(3, 3, INPUT[2], WIDTHS[0])}
    for block in blocks():
        found[f"{block.name}.conv1"] = layer(3, 3, block.inputs, block.outputs)
        found[f"{block.name}.conv2"] = layer(3, 3, block.outputs, block.outputs, scale=0.5)
        if block.projects:
            found[f"{block.name}.shortcut"] = layer(1, 1, block.inputs, block.outputs)
    found["head"] = layer(WIDTHS[-1], CLASSES)
    return found


def image(seed: int = 2) -> np.ndarray:
    """The client's input, 1 × 32 × 32 × 3."""
    return np.random.default_rng(seed).normal(0, 1, (1, *INPUT)).astype(np.float32)


def forward(ops: Ops, weights: dict[str, tuple[Any, Any]], x: Any) -> Any:
    """The logits, by the operations of one engine."""
    x = ops.relu(ops.conv(x, *weights["stem"], 1), "stem")
    for block in blocks():
        y = ops.relu(ops.conv(x, *weights[f"{block.name}.conv1"], block.stride), f"{block.name}.relu1")
        y = ops.conv(y, *weights[f"{block.name}.conv2"], 1)
        if block.projects:
            x = ops.conv(x, *weights[f"{block.name}.shortcut"], block.stride)
        x = ops.relu(ops.add(x, y), f"{block.name}.relu2")
    return ops.head(x, *weights["head"])


class FloatOps:
    """Plain numpy in float64: what the engines' logits are compared with."""

    def __init__(self, kept: dict[str, np.ndarray]):
        self.kept = kept

    def conv(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
        """A convolution with the padding that keeps the size."""
        kernel = weight.shape[0]
        pad = kernel // 2
        x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("nhwcij,ijco->nhwo", windows, weight, optimize=True) + bias

    def relu(self, x: np.ndarray, site: str) -> np.ndarray:
        """ReLU where the mask keeps it, identity elsewhere."""
        return np.where(self.kept[site], np.maximum(x, 0), x)

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The sum of a block."""
        return x + y

    def head(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Average pool and the linear layer."""
        return x.mean(axis=(1, 2)) @ weight + bias


def reference(keep: float) -> np.ndarray:
    """The float logits."""
    return forward(FloatOps(masks(keep)), parameters(), image())


def relus(keep: float) -> int:
    """How many ReLUs are kept."""
    return sum(int(mask.sum()) for mask in masks(keep).values())
