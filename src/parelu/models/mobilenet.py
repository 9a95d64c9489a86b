"""MobileNetV1 (Howard et al. 2017): a depthwise and a 1×1 convolution in turn, each with its ReLU.

The stem has stride 1, as in the papers' networks for 32×32 images. A stage is a run of blocks of one map size.
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

# Of each stage: (width over the stem's, stride) of its blocks.
_STAGES = (((2, 1),), ((4, 2), (4, 1)), ((8, 2), (8, 1)), ((16, 2), *((16, 1),) * 5), ((32, 2), (32, 1)))


@dataclasses.dataclass(frozen=True)
class MobileNetV1(Spec):
    """Thirteen depthwise-separable blocks.

    Attributes:
        stem: channels of the stem; 32 in the paper.
    """

    family: ClassVar[str] = "mobilenet"
    examples: ClassVar[tuple[str, ...]] = ("mobilenetv1", "mobilenetv1 m=8")

    stem: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stem <= 2048:
            raise UserError(f"MobileNetV1 with a stem of {self.stem} channels: give 1 to 2048")

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> MobileNetV1 | None:
        match = re.fullmatch(r"mobilenetv1(?: m=(\d+))?", name)
        return cls(input, classes, int(match[1] or 32)) if match else None

    def scale_channels(self, factor: float) -> MobileNetV1:
        return dataclasses.replace(self, stem=scaled(self.stem, factor, f"{self.stem} channels"))

    def module(self) -> nn.Module:
        return _MobileNetV1(self)


class _MobileNetV1(nn.Module):
    def __init__(self, spec: MobileNetV1) -> None:
        super().__init__()
        self.stages = {"stem": "stem"}
        self.stem = ConvUnit(spec.input[0], spec.stem, 3)
        inputs = spec.stem
        for number, stage in enumerate(_STAGES, start=1):
            blocks = []
            for multiplier, stride in stage:
                outputs = spec.stem * multiplier
                depthwise = ConvUnit(inputs, inputs, 3, stride, groups=inputs)
                blocks.append(nn.Sequential(depthwise, ConvUnit(inputs, outputs, 1)))
                inputs = outputs
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
            self.stages[f"S{number}"] = f"stage{number}"
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(staged(self, x, self.stages)), 1))
