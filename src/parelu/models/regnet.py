"""RegNet-X shapes (Radosavovic et al. 2020) as ResNets: their depths and widths, with basic blocks.

So DeepReShape compares them (Appendix H.4): what differs is where channels and blocks stand.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from parelu.errors import UserError
from parelu.models.resnet import BasicBlocks
from parelu.network.spec import scaled

_STEM = 32
_NAMED = {  # depths and widths of the stages
    "200mf": ((1, 1, 4, 7), (24, 56, 152, 368)),
    "400mf": ((1, 2, 7, 12), (32, 64, 160, 384)),
    "600mf": ((1, 3, 5, 7), (48, 96, 240, 528)),
    "800mf": ((1, 3, 7, 5), (64, 128, 288, 672)),
    "1.6gf": ((2, 4, 10, 2), (72, 168, 408, 912)),
    "3.2gf": ((2, 6, 15, 2), (96, 192, 432, 1008)),
}


@dataclasses.dataclass(frozen=True)
class RegNet(BasicBlocks):
    """A ResNet of any widths.

    Attributes:
        stage_widths: channels of each stage.
    """

    family: ClassVar[str] = "regnet"
    examples: ClassVar[tuple[str, ...]] = ("regnetx-200mf", "regnetx-1.6gf")

    stage_widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.stage_widths) != len(self.depths):
            raise UserError(f"{len(self.depths)} stages have as many widths, not {len(self.stage_widths)}")
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        return self.stage_widths

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> RegNet | None:
        match = re.fullmatch(r"regnetx-([\d.]+[mg]f)", name)
        if match is None or match[1] not in _NAMED:
            return None
        depths, widths = _NAMED[match[1]]
        return cls(input, classes, _STEM, depths, widths)

    def scale_channels(self, factor: float) -> RegNet:
        stem, *widths = (scaled(width, factor, f"{width} channels") for width in (self.stem, *self.widths))
        return dataclasses.replace(self, stem=stem, stage_widths=tuple(widths))
