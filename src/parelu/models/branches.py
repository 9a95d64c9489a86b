"""Networks of blocks of two convolutions, each of which can have one instead: what gated branching makes shallow."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.network.spec import Spec


@dataclasses.dataclass(frozen=True)
class Branched(Spec):
    """A network of blocks that are numbered from 0 through all stages.

    Attributes:
        shallow: blocks that have one convolution.
        gated: blocks that have both, a main branch of two convolutions and a shallow one, mixed by a buffer `gamma`:
            0 is the main branch, 1 the shallow one.
    """

    shallow: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)
    gated: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    @abc.abstractmethod
    def places(self) -> list[tuple[int, int]]:
        """Stage, from 1, and number there, from 0, of every block."""

    @property
    @abc.abstractmethod
    def inner(self) -> dict[str, int]:
        """Site between the two convolutions of a block → the block's number; of the blocks that have both."""

    def check_branches(self) -> None:
        """Raises `UserError` for blocks that are not there, or are named twice."""
        for block in (*self.shallow, *self.gated):
            if not 0 <= block < len(self.places):
                raise UserError(f"block {block}: the network has blocks 0 to {len(self.places) - 1}")
            if (*self.shallow, *self.gated).count(block) > 1:
                raise UserError(f"block {block} has one convolution already: there is nothing to make shallow")


class TwoBranches(nn.Module, abc.ABC):
    """The branches of a block: `main` of two convolutions, a shallow one of one, or both, mixed by `gamma`."""

    gamma: Tensor | None

    def set_branches(self, *, deep: bool, shallow: nn.Module | None, outputs: int) -> None:
        """deep: whether it has the main branch; shallow: the convolution of the other, to `outputs` channels."""
        self.deep = deep
        if shallow is not None:
            self.shallow = nn.Sequential(shallow, nn.BatchNorm2d(outputs))
        self.register_buffer("gamma", torch.zeros(()) if deep and shallow is not None else None)

    @abc.abstractmethod
    def main(self, x: Tensor) -> Tensor:
        """The branch of two convolutions."""

    def branches(self, x: Tensor) -> Tensor:
        if not self.deep:
            return self.shallow(x)
        main = self.main(x)
        return main if self.gamma is None else main + (self.shallow(x) - main) * self.gamma
