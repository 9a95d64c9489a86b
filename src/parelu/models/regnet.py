"""RegNet-X (Radosavovic et al. 2020): bottlenecks of 1×1, grouped 3×3 and 1×1 convolutions, of one width a stage.

At the size of CIFAR the stem is a 3×3 convolution of stride 1 and 64 channels, and the stages have strides 1, 1, 2 and
2: so 200MF and 1.6GF have the ReLUs of DeepReShape's comparison (section 5: 1460K and 6544K; it does not say more).
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models.layers import ConvUnit, staged
from parelu.network.spec import Spec, scaled

_STEM = 64
_STRIDES = (1, 1, 2, 2)
_NAMED = {  # depths and widths of the stages, and channels of a group
    "200mf": ((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "400mf": ((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "600mf": ((1, 3, 5, 7), (48, 96, 240, 528), 24),
    "800mf": ((1, 3, 7, 5), (64, 128, 288, 672), 16),
    "1.6gf": ((2, 4, 10, 2), (72, 168, 408, 912), 24),
    "3.2gf": ((2, 6, 15, 2), (96, 192, 432, 1008), 48),
}


@dataclasses.dataclass(frozen=True)
class RegNet(Spec):
    """Four stages of bottlenecks.

    Attributes:
        stem: channels of the stem; depths, widths: blocks and channels of each stage; group: channels of a group of
            the 3×3 convolutions.
    """

    family: ClassVar[str] = "regnet"
    examples: ClassVar[tuple[str, ...]] = ("regnetx-200mf", "regnetx-1.6gf", "regnetx-200mf m=16")

    stem: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.depths) == len(self.widths) == len(_STRIDES) or not all(1 <= n <= 200 for n in self.depths):
            raise UserError(f"RegNet of depths {self.depths} and widths {self.widths}: it has {len(_STRIDES)} stages")
        if not all(1 <= width <= 65536 for width in (self.stem, *self.widths)):
            raise UserError(f"RegNet of widths {self.widths}: each stage has from 1 to 65536 channels")
        if self.group < 1 or any(width % self.group for width in self.widths):
            raise UserError(f"RegNet of widths {self.widths}: groups of {self.group} channels do not divide them")

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> RegNet | None:
        """ "regnetx-200mf", or "regnetx-200mf m=8": with a stem of so many channels, and all other widths alike."""
        match = re.fullmatch(r"regnetx-([\d.]+[mg]f)(?: m=(\d+))?", name)
        if match is None or match[1] not in _NAMED:
            return None
        spec = cls(input, classes, _STEM, *_NAMED[match[1]])
        return spec.scale_channels(int(match[2]) / _STEM) if match[2] else spec

    def scale_channels(self, factor: float) -> RegNet:
        stem, group, *widths = (scaled(n, factor, f"{n} channels") for n in (self.stem, self.group, *self.widths))
        return dataclasses.replace(self, stem=stem, widths=tuple(widths), group=group)

    def module(self) -> nn.Module:
        return _RegNet(self)


class _Block(nn.Module):
    """1×1, grouped 3×3 with the stride, and 1×1 convolution; plus the input, or its 1×1 projection; relu."""

    def __init__(self, inputs: int, outputs: int, stride: int, group: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvUnit(inputs, outputs, 1),
            ConvUnit(outputs, outputs, 3, stride, groups=outputs // group),
            ConvUnit(outputs, outputs, 1, relu=False),
        )
        is_same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if is_same else ConvUnit(inputs, outputs, 1, stride, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.layers(x) + self.shortcut(x))


class _RegNet(nn.Module):
    def __init__(self, spec: RegNet) -> None:
        super().__init__()
        self.stages = {"stem": "stem"}
        self.stem = ConvUnit(spec.input[0], spec.stem, 3)
        inputs = spec.stem
        for number, (depth, width, stride) in enumerate(zip(spec.depths, spec.widths, _STRIDES, strict=True), start=1):
            blocks = [_Block(inputs, width, stride, spec.group)]
            blocks += [_Block(width, width, 1, spec.group) for _ in range(depth - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
            self.stages[f"S{number}"] = f"stage{number}"
            inputs = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(staged(self, x, self.stages)), 1))
