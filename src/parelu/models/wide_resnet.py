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
from parelu.models.branches import Branched, TwoBranches
from parelu.models.layers import staged
from parelu.network.spec import scaled


@dataclasses.dataclass(frozen=True)
class WideResNet(Branched):
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
        self.check_branches()

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(stage, index) for stage in (1, 2, 3) for index in range((self.depth - 4) // 6)]

    @property
    def inner(self) -> dict[str, int]:
        deep = ((number, place) for number, place in enumerate(self.places) if number not in self.shallow)
        return {f"layer{stage}.{index}.relu2": number for number, (stage, index) in deep}

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> WideResNet | None:
        match = re.fullmatch(r"wrn-(\d+)-(\d+)(?: m=(\d+))?", name)
        return cls(input, classes, int(match[1]), int(match[2]), int(match[3] or 16)) if match else None

    def scale_channels(self, factor: float) -> WideResNet:
        return dataclasses.replace(self, stem=scaled(self.stem, factor, f"{self.stem} channels"))

    def module(self) -> nn.Module:
        return _WideResNet(self)


class _Block(TwoBranches):
    """bn–relu, then conv–bn–relu–conv or conv–bn or both mixed, plus the input.

    A shortcut that changes the shape starts behind the first ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, deep: bool, shallow: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        if deep:
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.relu2 = nn.ReLU()
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False) if shallow else None
        self.set_branches(deep=deep, shallow=convolution, outputs=outputs)
        is_same = stride == 1 and inputs == outputs
        self.shortcut = None if is_same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.branches(y) + shortcut

    def main(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu2(self.bn2(self.conv1(x))))


class _WideResNet(nn.Module):
    def __init__(self, spec: WideResNet) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.input[0], spec.stem, 3, 1, 1, bias=False)
        self.stages = {f"S{number}": f"layer{number}" for number in (1, 2, 3)}
        inputs = spec.stem
        blocks: dict[int, list[nn.Module]] = {1: [], 2: [], 3: []}
        for number, (stage, index) in enumerate(spec.places):
            width, stride = spec.stem * spec.widen << (stage - 1), 2 if stage > 1 and index == 0 else 1
            deep = number not in spec.shallow
            blocks[stage].append(_Block(inputs, width, stride, deep=deep, shallow=not deep or number in spec.gated))
            inputs = width
        blocks[3] += [nn.BatchNorm2d(inputs), nn.ReLU()]
        for stage, path in enumerate(self.stages.values(), start=1):
            self.add_module(path, nn.Sequential(*blocks[stage]))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, spec.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(staged(self, self.conv1(x), self.stages)), 1))
