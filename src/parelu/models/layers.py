"""What several families are made of."""

from __future__ import annotations

from torch import Tensor, nn


class ConvUnit(nn.Module):
    """A convolution that keeps the map's size at stride 1, its batch-norm, and a ReLU where asked for."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU() if relu else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def staged(network: nn.Module, x: Tensor, stages: dict[str, str]) -> Tensor:
    """x through the stages in order; stages: name → module path, as a network declares them."""
    for path in stages.values():
        x = network.get_submodule(path)(x)
    return x
