"""VGG16 with batch-norms (Simonyan and Zisserman 2015), average pools in the place of its max-pools.

A pool is left out where the map is one pixel high or wide already.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models.layers import ConvUnit, staged
from parelu.network.spec import Spec, scaled

_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convolutions of a stage, and its width over the base width


@dataclasses.dataclass(frozen=True)
class VGG16(Spec):
    """Thirteen convolutions in five stages, then hidden linear layers (stage S6 where there are any).

    Attributes:
        stem: channels of S1.
        hidden: widths of the classifier's hidden layers: (4096, 4096) in the paper, () in most ReLU-reduction papers.
    """

    family: ClassVar[str] = "vgg"
    examples: ClassVar[tuple[str, ...]] = ("vgg16", "vgg16 (4096-4096 classifier)", "vgg16 m=8 (16 classifier)")

    stem: int
    hidden: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stem <= 8192 or not all(1 <= width <= 65536 for width in self.hidden):
            raise UserError(
                f"VGG16 of {self.stem} channels and hidden layers {self.hidden}: give 1 to 8192 channels, "
                "and hidden layers of 1 to 65536"
            )

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> VGG16 | None:
        match = re.fullmatch(r"vgg16(?: m=(\d+))?(?: \((\d+(?:-\d+)*) classifier\))?", name)
        if match is None:
            return None
        hidden = tuple(int(width) for width in (match[2] or "").split("-") if width)
        return cls(input, classes, int(match[1] or 64), hidden)

    def scale_channels(self, factor: float) -> VGG16:
        hidden = tuple(scaled(width, factor, f"a hidden layer of {width}") for width in self.hidden)
        return dataclasses.replace(self, stem=scaled(self.stem, factor, f"{self.stem} channels"), hidden=hidden)

    def module(self) -> nn.Module:
        return _VGG16(self)


class _VGG16(nn.Module):
    def __init__(self, spec: VGG16) -> None:
        super().__init__()
        self.stages = {}
        inputs, height, width = spec.input
        for number, (depth, multiplier) in enumerate(_STAGES, start=1):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(ConvUnit(inputs, spec.stem * multiplier, 3))
                inputs = spec.stem * multiplier
            if min(height, width) > 1:
                layers.append(nn.AvgPool2d(2))
                height, width = height // 2, width // 2
            self.add_module(f"stage{number}", nn.Sequential(*layers))
            self.stages[f"S{number}"] = f"stage{number}"
        self.flatten = nn.Flatten()
        inputs *= height * width
        hidden: list[nn.Module] = []
        for outputs in spec.hidden:
            hidden += [nn.Linear(inputs, outputs), nn.ReLU()]
            inputs = outputs
        self.hidden = nn.Sequential(*hidden)
        self.fc = nn.Linear(inputs, spec.classes)
        if hidden:
            self.stages["S6"] = "hidden"

    def forward(self, x: Tensor) -> Tensor:
        convolutional = {name: path for name, path in self.stages.items() if name != "S6"}
        return self.fc(self.hidden(self.flatten(staged(self, x, convolutional))))
