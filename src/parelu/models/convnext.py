"""ConvNeXt-V2 shapes (Woo et al. 2023) as ResNets: their depths and base widths, with basic blocks.

So DeepReShape compares them (Appendix H.4): ConvNeXt's own GELU and LayerNorm have no place in private inference.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from parelu.models.resnet import BasicBlocks
from parelu.network.spec import scaled

_NAMED = {  # depths of the stages and base width
    "a": ((2, 2, 6, 2), 40),
    "f": ((2, 2, 6, 2), 48),
    "p": ((2, 2, 6, 2), 64),
    "n": ((2, 2, 8, 2), 80),
    "t": ((3, 3, 9, 3), 96),
}


@dataclasses.dataclass(frozen=True)
class ConvNeXt(BasicBlocks):
    """A ResNet whose width doubles from stage to stage, with ConvNeXt's depths."""

    family: ClassVar[str] = "convnext"
    examples: ClassVar[tuple[str, ...]] = ("convnextv2-a", "convnextv2-t", "convnextv2-n m=96")

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.stem << number for number in range(len(self.depths)))

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> ConvNeXt | None:
        """ "convnextv2-n", or with another base width "convnextv2-n m=96"."""
        match = re.fullmatch(r"convnextv2-(\w)(?: m=(\d+))?", name)
        if match is None or match[1] not in _NAMED:
            return None
        depths, stem = _NAMED[match[1]]
        return cls(input, classes, int(match[2] or stem), depths)

    def scale_channels(self, factor: float) -> ConvNeXt:
        return dataclasses.replace(self, stem=scaled(self.stem, factor, f"{self.stem} channels"))
