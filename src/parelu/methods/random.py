"""Random masks: the budget's ReLUs at positions drawn from all of the network's. The weakest baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from parelu.methods.fixed import FixedMasks


@dataclasses.dataclass(frozen=True)
class Random(FixedMasks):
    """Positions drawn without replacement from all sites."""

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "baseline"

    def masks(self, shapes: Mapping[str, tuple[int, ...]], budget: int, seed: int) -> dict[str, Tensor]:
        """The masks of a smaller budget and the same seed lie inside those of a larger."""
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
        kept = torch.zeros(sum(sizes), dtype=torch.bool)
        kept[order[:budget]] = True
        return {name: mask.view(shape) for (name, shape), mask in zip(shapes.items(), kept.split(sizes), strict=True)}
