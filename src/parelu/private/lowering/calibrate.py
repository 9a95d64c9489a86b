"""Calibration: how large the values of a fused network are on training images."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from parelu.network import maxpool, ops
from parelu.network.preprocessing import normalise
from parelu.network.sites import Network, Site

BATCH = 64  # images at once, fewer of large ones
PIXELS = 1 << 18  # of a batch
MOST_PIXELS, LEAST_IMAGES = 1 << 21, 32  # of all that are looked at, where there are as many


@dataclasses.dataclass
class Seen:
    """Of |x|: the largest, and what its mean is made of."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, x: Tensor) -> None:
        size = x.abs()
        self.largest = max(self.largest, float(size.max()) if size.numel() else 0.0)
        self.total += float(size.sum(dtype=torch.float64))
        self.count += size.numel()

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)


class Ranges(Protocol):
    """How large the numbers of a network are.

    Attributes:
        values: node → its tensor.
        relus: node of a site → the input at its ReLUs.
        squares: node of a site → the output at its squares.
        products: node of a product → the squares of either factor.
        levels: node of a max-pool → the differences that each of its levels compares.
    """

    values: dict[fx.Node, Seen]
    relus: dict[fx.Node, Seen]
    squares: dict[fx.Node, Seen]
    products: dict[fx.Node, tuple[Seen, Seen]]
    levels: dict[fx.Node, tuple[Seen, ...]]


class Calibration(fx.Interpreter):
    """Runs a network and keeps what it saw: `Ranges`."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.values: dict[fx.Node, Seen] = defaultdict(Seen)
        self.relus: dict[fx.Node, Seen] = defaultdict(Seen)
        self.squares: dict[fx.Node, Seen] = defaultdict(Seen)
        self.products: dict[fx.Node, tuple[Seen, Seen]] = defaultdict(lambda: (Seen(), Seen()))
        self.levels: dict[fx.Node, tuple[Seen, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        match ops.read(n):
            case ops.Activation(site):
                self.relus[n].add(self.env[n.all_input_nodes[0]][:, site.mask])
                self.squares[n].add(result[:, squares(site)])
            case ops.Product(left, right):
                for factor, seen in zip((left, right), self.products[n], strict=True):
                    seen.add(self.env[factor].square())
            case ops.MaxPool() as op:
                self._compare(n, op)
            case _:
                pass
        if isinstance(result, Tensor):
            self.values[n].add(result)
        return result

    def _compare(self, node: fx.Node, op: ops.MaxPool) -> None:
        found = max_pool_levels(node, op)
        seen = self.levels.setdefault(node, tuple(Seen() for _ in found))
        value = self.env[node.all_input_nodes[0]]
        for level, differences in zip(found, seen, strict=True):
            left, right = (value.index_select(level.axis + 1, torch.tensor(side)) for side in (level.left, level.right))
            differences.add(left - right)
            value = torch.maximum(left, right)


def max_pool_levels(node: fx.Node, op: ops.MaxPool) -> tuple[maxpool.Level, ...]:
    """The comparisons of a max-pool, level by level."""
    before = node.all_input_nodes[0].meta["shape"]
    return maxpool.levels(before, node.meta["shape"], op.kernel, op.stride, op.padding)


def calibrate(network: Network, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Calibration:
    """images: uint8 (N, C, H, W), of which the first are enough where they are large; mean, std: a channel."""
    pixels = math.prod(images.shape[2:])
    images = images[: max(LEAST_IMAGES, MOST_PIXELS // pixels)]
    calibration = Calibration(network)
    with torch.no_grad():
        for batch in images.split(min(BATCH, max(1, PIXELS // pixels))):
            calibration.run(normalise(batch, mean, std))
    return calibration


def squares(site: Site) -> Tensor:
    """Where a site has a polynomial of degree 2; bool, of its shape."""
    return spread(site.coefficients[2] != 0, site.shape) & ~site.mask


def spread(of_channels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One value a channel, (C,), over the map."""
    return of_channels.view(-1, *[1] * (len(shape) - 1)).expand(shape)
