"""A method."""

import dataclasses
import math
from typing import ClassVar

import torch

from parelu.methods.fixed import FixedMasks


@dataclasses.dataclass(frozen=True)
class First(FixedMasks):
    """The first ReLUs in order of execution."""

    name: ClassVar[str] = "first"
    source: ClassVar[str] = "an example"

    def masks(self, shapes, budget, seed):
        masks = {}
        for name, shape in shapes.items():
            kept = min(budget, math.prod(shape))
            masks[name] = (torch.arange(math.prod(shape)) < kept).view(shape)
            budget -= kept
        return masks
