"""Small networks that methods meet beside residual ones: each with one thing that those have not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parelu.models.writing import graph_of
from parelu.network.instrument import instrument
from parelu.network.spec import Spec

INPUT, CLASSES = (1, 8, 8), 10


class _Excited(nn.Module):
    """Two convolutions and a gate a channel, added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.norm = nn.ReLU(), nn.BatchNorm2d(4)
        self.pool, self.squeeze, self.excite = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.gate, self.fc = nn.Sigmoid(), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.relu(self.norm(self.conv(x)))
        y = y * self.gate(self.excite(self.relu(self.squeeze(self.pool(y)))))
        return self.fc(torch.flatten(self.pool(self.relu(x + y)), 1))


def _plain(*between: nn.Module) -> nn.Module:
    """Two convolutions with what stands between them and behind them, and a classifier with a hidden layer."""
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), *between, nn.Conv2d(4, 6, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU6(), nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, CLASSES))


def _made(module: nn.Module) -> nn.Module:
    module(torch.zeros(2, *INPUT))
    return module


def modules() -> dict[str, nn.Module]:
    """What it has → a network of INPUT and CLASSES."""
    torch.manual_seed(0)
    return {
        "a max-pool": _made(_plain(nn.ReLU(), nn.MaxPool2d(3, 2, 1))),
        "other rectifiers": _made(_plain(nn.PReLU(4), nn.AvgPool2d(2), nn.LeakyReLU(0.1))),
        "a gate": _made(_Excited()),
    }


def networks() -> dict[str, Spec]:
    """The same as specs, as a user's own networks are kept."""
    return {name: graph_of(instrument(module, INPUT), CLASSES) for name, module in modules().items()}
