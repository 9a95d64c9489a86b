"""A family of networks."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from torch import nn

from parelu.network.spec import Spec, scaled


@dataclasses.dataclass(frozen=True)
class TinyNet(Spec):
    """Two convolutions and a matrix. width: channels of the first convolution, half of the second's."""

    family: ClassVar[str] = "tinynet"
    examples: ClassVar[tuple[str, ...]] = ("tinynet", "tinynet m=8")

    width: int

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> TinyNet | None:
        match = re.fullmatch(r"tinynet(?: m=([1-9]\d{0,3}))?", name)
        return match and cls(input, classes, int(match[1] or 4))

    def scale_channels(self, factor: float) -> TinyNet:
        return dataclasses.replace(self, width=scaled(self.width, factor, f"{self.width} channels"))

    def module(self) -> nn.Module:
        channels, width = self.input[0], self.width
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, self.classes),
        )
