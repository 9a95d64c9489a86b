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
from parelu.models.base import AUXILIARY, Spec, scaled

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

    Blocks are numbered from 0 through all stages.

    Attributes:
        stem: channels of the stem and of S1 (m, base width).
        depths: blocks of each stage.
        multipliers: channels of each stage over those of the stage before (α, β, γ in DeepReShape).
        single_conv_first: the first block of S1 has one convolution (ResNet9).
        shallow: blocks that have one convolution too.
        gated: blocks that have both, a main branch of two convolutions and a shallow one, mixed by a buffer `gamma`:
            0 is the main branch, 1 the shallow one (gated branching).
        exits: "last", the classifier behind the last stage; "auxiliary", one ahead of it, and no last stage; "both" has
            them for training, and answers with the last.
    """

    family: ClassVar[str] = "resnet"
    examples: ClassVar[tuple[str, ...]] = (
        *_NAMED, "resnet18 m=16", "resnet18 m=16 4x4x4x", "hrn-5x5x3x", "hrn34-4x6x3x m=8"
    )  # fmt: skip

    stem: int
    depths: tuple[int, ...]
    multipliers: tuple[int, ...]
    single_conv_first: bool = False
    shallow: tuple[int, ...] = ()
    gated: tuple[int, ...] = ()
    exits: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depths or len(self.multipliers) != len(self.depths) - 1:
            raise UserError(f"{len(self.depths)} stages need one multiplier less, not {len(self.multipliers)}")
        if not all(1 <= depth <= 200 for depth in self.depths):
            raise UserError(f"depths {self.depths}: each stage has from 1 to 200 blocks")
        if self.stem < 1 or min(self.multipliers, default=1) < 1 or max(self.widths) > 65536:
            raise UserError(f"widths {self.widths}: each stage has from 1 to 65536 channels")
        for block in (*self.shallow, *self.gated):
            if not 0 <= block < sum(self.depths):
                raise UserError(f"block {block}: the network has blocks 0 to {sum(self.depths) - 1}")
            if (*self.shallow, *self.gated).count(block) > 1 or (block == 0 and self.single_conv_first):
                raise UserError(f"block {block} has one convolution already: there is nothing to make shallow")
        if self.exits not in ("last", "auxiliary", "both"):
            raise UserError(f"exits is {self.exits!r}; it is last, auxiliary or both")
        if self.exits != "last" and len(self.depths) < 2:
            raise UserError("a network of one stage has no place for an auxiliary classifier")

    @property
    def inner(self) -> dict[str, int]:
        """Site between the two convolutions of a block → the block's number; of the blocks that have both."""
        places = [(stage, i) for stage, depth in enumerate(self.depths, start=1) for i in range(depth)]
        single = {*self.shallow, *([0] if self.single_conv_first else [])}
        return {f"layer{s}.{i}.relu1": number for number, (s, i) in enumerate(places) if number not in single}

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
    """A branch of two convolutions or of one, or both mixed; plus the shortcut, relu."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, deep: bool, shallow: bool) -> None:
        super().__init__()
        if deep:
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.relu1 = nn.ReLU()
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
        if shallow:
            self.shallow = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.gamma: Tensor | None
        self.register_buffer("gamma", torch.zeros(()) if deep and shallow else None)
        self.deep = deep
        self.relu2 = nn.ReLU()
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self._branches(x) + self.downsample(x))

    def _branches(self, x: Tensor) -> Tensor:
        if not self.deep:
            return self.shallow(x)
        main = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return main if self.gamma is None else main + (self.shallow(x) - main) * self.gamma


class _ResNet(nn.Module):
    """Parameter names are torchvision's, so that its checkpoints of the same shapes load.

    A network has the names that it shares with one that has more branches or classifiers.
    """

    def __init__(self, spec: ResNet) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.input[0], spec.stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem)
        self.relu = nn.ReLU()
        self.stages = {"stem": "relu"}
        inputs, first, inner = spec.stem, 0, set(spec.inner.values())
        stages = list(enumerate(zip(spec.depths, spec.widths, strict=True), start=1))
        for number, (depth, width) in stages[:-1] if spec.exits == "auxiliary" else stages:
            if spec.exits == "both" and number == len(stages):
                self.auxiliary = nn.Linear(inputs, spec.classes)
            blocks = []
            for index in range(depth):
                deep, stride = first + index in inner, 2 if number > 1 and index == 0 else 1
                blocks.append(_Block(inputs, width, stride, deep=deep, shallow=not deep or first + index in spec.gated))
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
