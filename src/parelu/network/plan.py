"""Plan: what every site of a network does, as pure data."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network import storage
from parelu.network.sites import IDENTITY, Network


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """mask: bool, (C, H, W), True where the ReLU stays; coefficients: float32, (3, C), the polynomial elsewhere."""

    mask: Tensor
    coefficients: Tensor

    @property
    def relus(self) -> int:
        """ReLUs an image."""
        return int(self.mask.count_nonzero())

    @property
    def squares(self) -> int:
        """Positions an image whose polynomial has degree 2."""
        per_channel = (~self.mask).flatten(1).count_nonzero(1) if self.mask.dim() > 1 else (~self.mask).long()
        return int(per_channel[self.coefficients[2] != 0].sum())

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process as plain bytes: torch would open a file descriptor for each tensor."""
        return _site_plan, (self.mask.numpy(), self.coefficients.numpy())

    def same_as(self, other: SitePlan) -> bool:
        return torch.equal(self.mask, other.mask) and torch.equal(self.coefficients, other.coefficients)


def _site_plan(mask: np.ndarray, coefficients: np.ndarray) -> SitePlan:
    return SitePlan(torch.from_numpy(mask), torch.from_numpy(coefficients))


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Site name → what the site does, in order of execution. Pure data: no weights, no module."""

    sites: Mapping[str, SitePlan]

    @classmethod
    def of(cls, network: Network) -> Plan:
        """The plan that a network follows now."""
        return cls({n: SitePlan(s.mask.cpu(), s.coefficients.cpu()) for n, s in network.sites.items()})

    @classmethod
    def from_masks(cls, masks: Mapping[str, Tensor]) -> Plan:
        """ReLU where the mask is True, identity elsewhere; masks: bool, (C, H, W)."""
        identity = torch.tensor(IDENTITY)[:, None]
        return cls({n: SitePlan(m, identity.repeat(1, m.shape[0])) for n, m in masks.items()})

    def apply(self, network: Network) -> None:
        """Make a network follow this plan; raises `UserError` where the sites or shapes are others."""
        sites = network.sites
        if list(sites) != list(self.sites):
            unknown = sorted(set(sites) ^ set(self.sites))
            raise UserError(f"the plan is of another network: sites {', '.join(unknown[:4])} are in one of them only")
        for name, site in sites.items():
            plan = self.sites[name]
            if tuple(plan.mask.shape) != site.shape:
                raise UserError(
                    f"the plan is of another network: site {name} is {site.shape}, "
                    f"the plan's mask {tuple(plan.mask.shape)}"
                )
            site.assign(plan.mask, plan.coefficients)

    @property
    def relus(self) -> int:
        return sum(site.relus for site in self.sites.values())

    @property
    def squares(self) -> int:
        return sum(site.squares for site in self.sites.values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return list(self.sites) == list(other.sites) and not self.diff(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def diff(self, other: Plan) -> dict[str, tuple[int, int]]:
        """Site → (ReLUs here, ReLUs there) for each site that differs or stands in one plan only (0 in the other)."""
        names = dict.fromkeys([*self.sites, *other.sites])
        pairs = {name: (self.sites.get(name), other.sites.get(name)) for name in names}
        return {
            name: (a.relus if a else 0, b.relus if b else 0)
            for name, (a, b) in pairs.items()
            if a is None or b is None or not a.same_as(b)
        }

    def digest(self) -> str:
        """SHA-256 of all masks and polynomials, in order of execution."""
        whole = hashlib.sha256()
        for site in self.sites.values():
            whole.update(site.mask.numpy().tobytes() + site.coefficients.numpy().tobytes())
        return whole.hexdigest()

    def save(self, folder: Path) -> None:
        """Write plan.json and plan.safetensors."""
        storage.write(folder, "plan", {"sites": self.shapes()}, self.tensors())

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read what `save` wrote; raises `UserError` where it was damaged."""
        header, tensors = storage.read(folder, "plan")
        return cls.from_tensors(header.get("sites"), tensors, folder)

    def shapes(self) -> dict[str, list[int]]:
        """Site name → shape of its mask, as JSON."""
        return {name: list(site.mask.shape) for name, site in self.sites.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds: eight positions of a mask a byte, and the coefficients."""
        packed = {f"mask/{n}": torch.from_numpy(np.packbits(s.mask.numpy())) for n, s in self.sites.items()}
        return packed | {f"coefficients/{n}": s.coefficients for n, s in self.sites.items()}

    @classmethod
    def from_tensors(cls, shapes: Any, tensors: Mapping[str, Tensor], folder: Path) -> Plan:
        """The inverse of `shapes` and `tensors`, of a file in `folder`; raises `UserError` where they do not fit."""
        sites = {}
        try:
            for name, shape in shapes.items():
                size, packed = math.prod(shape), tensors[f"mask/{name}"].numpy()
                if packed.dtype != np.uint8 or packed.shape != (-(-size // 8),):
                    raise ValueError(f"mask of {name}")
                bits = np.unpackbits(packed, count=size)
                coefficients = tensors[f"coefficients/{name}"]
                if tuple(coefficients.shape) != (3, shape[0]) or coefficients.dtype != torch.float32:
                    raise ValueError(f"coefficients of {name}")
                sites[name] = SitePlan(torch.from_numpy(bits.astype(bool)).view(shape), coefficients)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder}: the plan's masks do not fit their shapes ({error})") from error
        return cls(sites)
