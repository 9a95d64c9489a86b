"""EfficientNet (Tan and Le 2019) with ReLU in the place of Swish, as AutoReP counts it.

The sigmoid of its squeeze-and-excitation runs as a piecewise linear function, by ReLUs that the paper does not count
(`network/canonical/smooth.py`), and then multiplies the map; "no se" leaves it out.
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

# name → depths, widths and head. b2 is b0 with 1.2 times the depth, rounded up, and 1.1 times the width, in eights.
_NAMED = {
    "b0": ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 1280),
    "b2": ((2, 3, 3, 4, 4, 5, 2), (16, 24, 48, 88, 120, 208, 352), 1408),
}
_STEM = 32
_KERNELS, _STRIDES, _EXPANSIONS = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)


@dataclasses.dataclass(frozen=True)
class EfficientNet(Spec):
    """Seven stages of inverted residual blocks, then a 1×1 convolution (S8).

    Attributes:
        stem: channels of the stem; depths, widths: blocks and channels of each stage; head: channels of S8.
        squeeze: whether blocks have squeeze-and-excitation.
    """

    family: ClassVar[str] = "efficientnet"
    examples: ClassVar[tuple[str, ...]] = ("efficientnet-b2 (relu)", "efficientnet-b0 (relu, no se) m=8")

    stem: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    head: int
    squeeze: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.depths) == len(self.widths) == 7 or not all(1 <= depth <= 200 for depth in self.depths):
            raise UserError(f"EfficientNet of depths {self.depths} and widths {self.widths}: it has seven stages")
        if not all(1 <= width <= 8192 for width in (self.stem, *self.widths, self.head)):
            raise UserError(f"EfficientNet of widths {self.widths}: each stage has from 1 to 8192 channels")

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> EfficientNet | None:
        match = re.fullmatch(r"efficientnet-(b\d) \(relu(, no se)?\)(?: m=(\d+))?", name)
        if match is None or match[1] not in _NAMED:
            return None
        spec = cls(input, classes, _STEM, *_NAMED[match[1]], squeeze=match[2] is None)
        return spec.scale_channels(int(match[3]) / _STEM) if match[3] else spec

    def scale_channels(self, factor: float) -> EfficientNet:
        stem, head, *widths = (scaled(n, factor, f"{n} channels") for n in (self.stem, self.head, *self.widths))
        return dataclasses.replace(self, stem=stem, widths=tuple(widths), head=head)

    def module(self) -> nn.Module:
        return _EfficientNet(self)


class _Squeeze(nn.Module):
    """Squeeze-and-excitation: each channel times a number from 0 to 1 that the means of all channels decide."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.relu(self.reduce(self.avgpool(x)))))


class _Block(nn.Module):
    """1×1 expansion, depthwise convolution, squeeze-and-excitation, 1×1 projection without ReLU; plus the input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, squeeze: bool) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [ConvUnit(inputs, inner, 1)] if expansion > 1 else []
        layers.append(ConvUnit(inner, inner, kernel, stride, groups=inner))
        if squeeze:
            layers.append(_Squeeze(inner, max(1, inputs // 4)))
        self.layers = nn.Sequential(*layers, ConvUnit(inner, outputs, 1, relu=False))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.is_residual else self.layers(x)


class _EfficientNet(nn.Module):
    def __init__(self, spec: EfficientNet) -> None:
        super().__init__()
        self.stages = {"stem": "stem"}
        self.stem = ConvUnit(spec.input[0], spec.stem, 3, 2)
        inputs = spec.stem
        shapes = zip(spec.depths, spec.widths, _KERNELS, _STRIDES, _EXPANSIONS, strict=True)
        for number, (depth, width, kernel, stride, expansion) in enumerate(shapes, start=1):
            blocks = [_Block(inputs, width, kernel, stride, expansion, spec.squeeze)]
            blocks += [_Block(width, width, kernel, 1, expansion, spec.squeeze) for _ in range(depth - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
            self.stages[f"S{number}"] = f"stage{number}"
            inputs = width
        self.head = ConvUnit(inputs, spec.head, 1)
        self.stages["S8"] = "head"
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(spec.head, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(staged(self, x, self.stages)), 1))
