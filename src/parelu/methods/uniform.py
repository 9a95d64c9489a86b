"""Uniform masks: every site keeps the same share of its ReLUs, spread evenly. A baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from parelu.methods.fixed import FixedMasks


@dataclasses.dataclass(frozen=True)
class Uniform(FixedMasks):
    """The same density everywhere, at evenly spaced positions."""

    name: ClassVar[str] = "uniform"
    source: ClassVar[str] = "baseline"

    def masks(self, shapes: Mapping[str, tuple[int, ...]], budget: int, seed: int) -> dict[str, Tensor]:
        """Of all n positions in order, number i stays where ⌊(i+1)·budget/n⌋ > ⌊i·budget/n⌋."""
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        steps = torch.arange(sum(sizes) + 1) * budget // sum(sizes)
        kept = (steps[1:] > steps[:-1]).split(sizes)
        return {name: mask.view(shape) for (name, shape), mask in zip(shapes.items(), kept, strict=True)}
