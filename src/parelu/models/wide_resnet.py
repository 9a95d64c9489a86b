"""Wide ResNets (Zagoruyko and Komodakis 2016): pre-activation blocks, k times as wide as a ResNet's.

A block normalises and activates before each convolution, so there is no ReLU behind the stem, and one behind the
last block; it is S3's.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models.layers import staged
from parelu.network.spec import Spec, scaled


@dataclasses.dataclass(frozen=True)
class WideResNet(Spec):
    """WRN-d-k: three stages of (depth − 4) / 6 blocks, of k, 2k and 4k times the stem's channels.

    Attributes:
        depth: convolutions in the paper's count, d; widen: k; stem: channels of the stem.
    """

    family: ClassVar[str] = "wide-resnet"
    examples: ClassVar[tuple[str, ...]] = ("wrn-22-8", "wrn-16-8", "wrn-10-2 m=4")

    depth: int
    widen: int
    stem: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth % 6 != 4 or not 10 <= self.depth <= 1000:
            raise UserError(f"a wide ResNet of depth {self.depth}: it is 6·n + 4, such as 10, 16, 22, 28 or 40")
        if min(self.widen, self.stem) < 1 or 4 * self.widen * self.stem > 65536:
            raise UserError(f"a wide ResNet of {self.stem} channels times {self.widen}: each stage has 1 to 65536")

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> WideResNet | None:
        match = re.fullmatch(r"wrn-(\d+)-(\d+)(?: m=(\d+))?", name)
        return cls(input, classes, int(match[1]), int(match[2]), int(match[3] or 16)) if match else None

    def scale_channels(self, factor: float) -> WideResNet:
        return dataclasses.replace(self, stem=scaled(self.stem, factor, f"{self.stem} channels"))

    def module(self) -> nn.Module:
        return _WideResNet(self)


class _Block(nn.Module):
    """bn–relu–conv–bn–relu–conv, plus the input; a shortcut that changes the shape starts behind the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        is_same = stride == 1 and inputs == outputs
        self.shortcut = None if is_same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(self.relu2(self.bn2(self.conv1(y)))) + shortcut


class _WideResNet(nn.Module):
    def __init__(self, spec: WideResNet) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.input[0], spec.stem, 3, 1, 1, bias=False)
        self.stages = {f"S{number}": f"layer{number}" for number in (1, 2, 3)}
        inputs = spec.stem
        for number, path in enumerate(self.stages.values()):
            width = spec.stem * spec.widen * 2**number
            blocks: list[nn.Module] = [_Block(inputs, width, 2 if number else 1)]
            blocks += [_Block(width, width, 1) for _ in range((spec.depth - 4) // 6 - 1)]
            last = [nn.BatchNorm2d(width), nn.ReLU()] if number == 2 else []
            self.add_module(path, nn.Sequential(*blocks, *last))
            inputs = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, spec.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(staged(self, self.conv1(x), self.stages)), 1))
