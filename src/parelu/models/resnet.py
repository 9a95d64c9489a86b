"""ResNets of basic blocks (He et al. 2016), of any width, depth and stage multipliers.

The stem is a 3×3 convolution of stride 1, as in all the ReLU-reduction papers; there is no max-pool.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models.base import Spec, scaled

# name → (blocks a stage, base width m). ResNet9 is ResNet10 less the first convolution of S1 (DeepReDuce, section 4).
_NAMED = {
    "resnet9": ((1, 1, 1, 1), 64),
    "resnet10": ((1, 1, 1, 1), 64),
    "resnet18": ((2, 2, 2, 2), 64),
    "resnet34": ((3, 4, 6, 3), 64),
    "resnet20": ((3, 3, 3), 16),
    "resnet32": ((5, 5, 5), 16),
    "resnet56": ((9, 9, 9), 16),
}
_NAME = re.compile(r"(?P<base>resnet\d+)(?P<options>( (m=\d+|(\d+x)+))*)")


@dataclasses.dataclass(frozen=True)
class ResNet(Spec):
    """A ResNet of basic blocks.

    Attributes:
        stem: channels of the stem and of S1 (m, base width).
        depths: blocks of each stage.
        multipliers: channels of each stage over those of the stage before (α, β, γ in DeepReShape).
        single_conv_first: the first block of S1 has one convolution (ResNet9).
    """

    family: ClassVar[str] = "resnet"
    examples: ClassVar[tuple[str, ...]] = (
        *_NAMED, "resnet18 m=16", "resnet18 m=16 4x4x4x", "hrn-5x5x3x", "hrn34-4x6x3x m=8"
    )  # fmt: skip

    stem: int
    depths: tuple[int, ...]
    multipliers: tuple[int, ...]
    single_conv_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depths or len(self.multipliers) != len(self.depths) - 1:
            raise UserError(f"{len(self.depths)} stages need one multiplier less, not {len(self.multipliers)}")
        if not all(1 <= depth <= 200 for depth in self.depths):
            raise UserError(f"depths {self.depths}: each stage has from 1 to 200 blocks")
        if self.stem < 1 or min(self.multipliers, default=1) < 1 or max(self.widths) > 65536:
            raise UserError(f"widths {self.widths}: each stage has from 1 to 65536 channels")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        widths = [self.stem]
        for multiplier in self.multipliers:
            widths.append(widths[-1] * multiplier)
        return tuple(widths)

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> ResNet | None:
        """ "resnet18", "resnet18 m=16", "resnet18 m=16 5x5x3x"; "hrn-5x5x3x" is the last, "hrn34-…" has 34's depths."""
        hybrid = re.fullmatch(r"hrn(34)?-((?:\d+x)+)(.*)", name)
        if hybrid:
            rest = hybrid[3] if "m=" in hybrid[3] else " m=16" + hybrid[3]
            name = f"resnet{hybrid[1] or 18} {hybrid[2]}{rest}"
        match = _NAME.fullmatch(name)
        if match is None or match["base"] not in _NAMED:
            return None
        depths, stem = _NAMED[match["base"]]
        multipliers = (2,) * (len(depths) - 1)
        for option in match["options"].split():
            if option.startswith("m="):
                stem = int(option[2:])
            else:
                multipliers = tuple(int(number) for number in option.split("x")[:-1])
        return cls(input, classes, stem, depths, multipliers, match["base"] == "resnet9")

    def scale_channels(self, factor: float) -> ResNet:
        return dataclasses.replace(self, stem=scaled(self.stem, factor, f"{self.stem} channels"))

    def module(self) -> nn.Module:
        return _ResNet(self)


class _Block(nn.Module):
    """conv–bn–relu–conv–bn, plus the shortcut, relu; without the first conv–bn–relu where `single`."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, single: bool = False) -> None:
        super().__init__()
        self.single = single
        if not single:
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.relu1 = nn.ReLU()
            inputs_of_second, stride_of_second = outputs, 1
        else:
            inputs_of_second, stride_of_second = inputs, stride
        self.conv2 = nn.Conv2d(inputs_of_second, outputs, 3, stride_of_second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.single else self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.downsample(x))


class _ResNet(nn.Module):
    """Parameter names are torchvision's, so that its checkpoints of the same shapes load."""

    def __init__(self, spec: ResNet) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.input[0], spec.stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem)
        self.relu = nn.ReLU()
        self.stages = {"stem": "relu"}
        inputs = spec.stem
        for number, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True), start=1):
            blocks = []
            for index in range(depth):
                single = spec.single_conv_first and number == 1 and index == 0
                blocks.append(_Block(inputs, width, 2 if number > 1 and index == 0 else 1, single=single))
                inputs = width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self.stages[f"S{number}"] = f"layer{number}"
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, spec.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages.values():
            if stage != "relu":
                x = self.get_submodule(stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
