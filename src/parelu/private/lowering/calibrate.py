"""Calibration: how large the values of a fused network are on training images."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx

from parelu.network import ops
from parelu.network.preprocessing import normalise
from parelu.network.sites import Network, Site

BATCH = 64


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


class Calibration(fx.Interpreter):
    """Runs a network and keeps what it saw.

    Attributes:
        values: node → its tensor.
        relus: node of a site → the input at its ReLUs.
        squares: node of a site → the output at its squares.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.values: dict[fx.Node, Seen] = defaultdict(Seen)
        self.relus: dict[fx.Node, Seen] = defaultdict(Seen)
        self.squares: dict[fx.Node, Seen] = defaultdict(Seen)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(op := ops.read(n), ops.Activation):
            self.relus[n].add(self.env[n.all_input_nodes[0]][:, op.site.mask])
            self.squares[n].add(result[:, squares(op.site)])
        if isinstance(result, Tensor):
            self.values[n].add(result)
        return result


def calibrate(network: Network, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Calibration:
    """images: uint8 (N, C, H, W); mean, std: of the network's preprocessing, a channel."""
    calibration = Calibration(network)
    with torch.no_grad():
        for batch in images.split(BATCH):
            calibration.run(normalise(batch, mean, std))
    return calibration


def squares(site: Site) -> Tensor:
    """Where a site has a polynomial of degree 2; bool, of its shape."""
    return spread(site.coefficients[2] != 0, site.shape) & ~site.mask


def spread(of_channels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One value a channel, (C,), over the map."""
    return of_channels.view(-1, *[1] * (len(shape) - 1)).expand(shape)
