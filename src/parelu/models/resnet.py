"""ResNets of basic blocks (He et al. 2016), of any width, depth and stage multipliers.

The stem is a 3×3 convolution of stride 1, as in all the ReLU-reduction papers; there is no max-pool.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import operator
import re
from collections.abc import Collection
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models.branches import Branched, TwoBranches
from parelu.models.hybrenet import plain
from parelu.models.reuse import ReuseConv, groups
from parelu.network.spec import AUXILIARY, scaled

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
_NAME = re.compile(r"(?P<base>resnet\d+)(?P<options>( (m=\d+|d=\d+(-\d+)*|(\d+x)+))*)")


@dataclasses.dataclass(frozen=True)
class BasicBlocks(Branched):
    """A residual network of basic blocks.

    Attributes:
        stem: channels of the stem.
        depths: blocks of each stage.
        single_conv_first: the first block of S1 has one convolution (ResNet9).
        reuse: ReLU-reuse factor N of each stage, 1 for none; () for none anywhere. The last convolution of every block
            of such a stage is a `ReuseConv`; which channels keep their ReLU is the plan's affair.
        exits: "last", the classifier behind the last stage; "auxiliary", one ahead of it, and no last stage; "both" has
            them for training, and answers with the last.
    """

    stem: int
    depths: tuple[int, ...]
    single_conv_first: bool = dataclasses.field(default=False, kw_only=True)
    reuse: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)
    exits: str = dataclasses.field(default="last", kw_only=True)

    @property
    @abc.abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depths or not all(1 <= depth <= 200 for depth in self.depths):
            raise UserError(f"depths {self.depths}: each stage has from 1 to 200 blocks")
        if self.stem < 1 or min(self.widths, default=0) < 1 or max(self.stem, *self.widths) > 65536:
            raise UserError(f"widths {self.widths}: each stage has from 1 to 65536 channels")
        if len(self.reuse) not in (0, len(self.depths)):
            raise UserError(f"{len(self.depths)} stages need as many factors of ReLU-reuse, not {len(self.reuse)}")
        for factor, width in zip(self.reuse, self.widths, strict=False):
            if factor != 1:
                groups(width, factor)
        self.check_branches()
        if self.exits not in ("last", "auxiliary", "both"):
            raise UserError(f"exits is {self.exits!r}; it is last, auxiliary or both")
        if self.exits != "last" and len(self.depths) < 2:
            raise UserError("a network of one stage has no place for an auxiliary classifier")

    def check_branches(self) -> None:
        super().check_branches()
        for block in (*self.shallow, *self.gated):
            if block == 0 and self.single_conv_first:
                raise UserError(f"block {block} has one convolution already: there is nothing to make shallow")
            if self.reuse and self.reuse[self.places[block][0] - 1] > 1:
                raise UserError(f"block {block} reuses ReLUs: it is not made shallow")

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(stage, i) for stage, depth in enumerate(self.depths, start=1) for i in range(depth)]

    @property
    def inner(self) -> dict[str, int]:
        single = {*self.shallow, *([0] if self.single_conv_first else [])}
        return {f"layer{s}.{i}.relu1": number for number, (s, i) in enumerate(self.places) if number not in single}

    def with_reuse(self, factor: int, stages: Collection[str]) -> Self:
        """The same network with ReLU-reuse in these stages, such as "S2"."""
        names = [f"S{number + 1}" for number in range(len(self.depths))]
        return dataclasses.replace(self, reuse=tuple(factor if name in stages else 1 for name in names))

    def module(self) -> nn.Module:
        return _ResNet(self)


@dataclasses.dataclass(frozen=True)
class ResNet(BasicBlocks):
    """A ResNet whose widths grow by whole factors.

    Attributes:
        stem: channels of the stem and of S1 (m, base width).
        multipliers: channels of each stage over those of the stage before (α, β, γ in DeepReShape).
    """

    family: ClassVar[str] = "resnet"
    examples: ClassVar[tuple[str, ...]] = (
        *_NAMED,
        "resnet18 m=16",
        "resnet18 m=16 4x4x4x",
        "hrn-5x5x3x",
        "hrn34-4x6x3x m=8",
        "stagech-4x",
        "basech m=32",
        "resnet18 m=8 d=1-3-7-9",
    )

    multipliers: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.multipliers) != len(self.depths) - 1:
            raise UserError(
                f"depths of {len(self.depths)} stages need one multiplier less, not {len(self.multipliers)}"
            )
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate((self.stem, *self.multipliers), operator.mul))

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> ResNet | None:
        """ "resnet18", "resnet18 m=16", "resnet18 m=16 5x5x3x d=2-2-2-2", and the names of `hybrenet`."""
        match = _NAME.fullmatch(plain(name))
        if match is None or match["base"] not in _NAMED:
            return None
        depths, stem = _NAMED[match["base"]]
        multipliers = None
        for option in match["options"].split():
            if option.startswith("m="):
                stem = int(option[2:])
            elif option.startswith("d="):
                depths = tuple(int(number) for number in option[2:].split("-"))
            else:
                multipliers = tuple(int(number) for number in option.split("x")[:-1])
        multipliers = multipliers if multipliers is not None else (2,) * (len(depths) - 1)
        return cls(input, classes, stem, depths, multipliers, single_conv_first=match["base"] == "resnet9")

    def scale_channels(self, factor: float) -> ResNet:
        return dataclasses.replace(self, stem=scaled(self.stem, factor, f"{self.stem} channels"))


def _convolution(inputs: int, outputs: int, stride: int, reuse: int) -> nn.Module:
    if reuse > 1:
        return ReuseConv(outputs, reuse)
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class _Block(TwoBranches):
    """A branch of two convolutions or of one, or both mixed; plus the shortcut, relu.

    reuse: N of the ReLU-reuse in the last convolution, 1 for none.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, deep: bool, shallow: bool, reuse: int = 1) -> None:
        super().__init__()
        if deep:
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.relu1 = nn.ReLU()
            self.conv2 = _convolution(outputs, outputs, 1, reuse)
            self.bn2 = nn.BatchNorm2d(outputs)
        convolution = _convolution(inputs, outputs, stride, reuse) if shallow else None
        self.set_branches(deep=deep, shallow=convolution, outputs=outputs)
        self.relu2 = nn.ReLU()
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.branches(x) + self.downsample(x))

    def main(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))


class _ResNet(nn.Module):
    """Parameter names are torchvision's, so that its checkpoints of the same shapes load.

    A network has the names that it shares with one that has more branches or classifiers.
    """

    def __init__(self, spec: BasicBlocks) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.input[0], spec.stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem)
        self.relu = nn.ReLU()
        self.stages = {"stem": "relu"}
        inputs, first, inner = spec.stem, 0, set(spec.inner.values())
        factors = spec.reuse or (1,) * len(spec.depths)
        stages = list(enumerate(zip(spec.depths, spec.widths, factors, strict=True), start=1))
        for number, (depth, width, reuse) in stages[:-1] if spec.exits == "auxiliary" else stages:
            if spec.exits == "both" and number == len(stages):
                self.auxiliary = nn.Linear(inputs, spec.classes)
            blocks = []
            for index in range(depth):
                deep, stride = first + index in inner, 2 if number > 1 and index == 0 else 1
                shallow = not deep or first + index in spec.gated
                blocks.append(_Block(inputs, width, stride, deep=deep, shallow=shallow, reuse=reuse))
                inputs = width
            first += depth
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self.stages[f"S{number}"] = f"layer{number}"
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.add_module(AUXILIARY if spec.exits == "auxiliary" else "fc", nn.Linear(inputs, spec.classes))
        self.exits = spec.exits
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        *stages, last = [path for path in self.stages.values() if path != "relu"]
        for path in stages:
            x = self.get_submodule(path)(x)
        if self.exits == "both":
            self._classified(x, AUXILIARY)
        x = self.get_submodule(last)(x)
        return self._classified(x, AUXILIARY if self.exits == "auxiliary" else "fc")

    def _classified(self, x: Tensor, path: str) -> Tensor:
        return self.get_submodule(path)(torch.flatten(self.avgpool(x), 1))
