"""Plan and candidate: what every site does, and a network that can be built again from its files."""

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

from parelu import store
from parelu.errors import UserError
from parelu.models import Spec, spec_from_json
from parelu.sites import IDENTITY, Network, instrument


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
                raise UserError(f"the plan is of another network: site {name} is {site.shape}, "
                                f"the plan's mask {tuple(plan.mask.shape)}")  # fmt: skip
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
        store.write(folder, "plan", {"sites": self._shapes()}, self._tensors())

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read what `save` wrote; raises `UserError` where it was damaged."""
        header, tensors = store.read(folder, "plan")
        return cls._from(header["sites"], tensors, folder)

    def _shapes(self) -> dict[str, list[int]]:
        return {name: list(site.mask.shape) for name, site in self.sites.items()}

    def _tensors(self) -> dict[str, Tensor]:
        packed = {f"mask/{n}": torch.from_numpy(np.packbits(s.mask.numpy())) for n, s in self.sites.items()}
        return packed | {f"coefficients/{n}": s.coefficients for n, s in self.sites.items()}

    @classmethod
    def _from(cls, shapes: Any, tensors: Mapping[str, Tensor], folder: Path) -> Plan:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """An architecture, a plan for its sites, weights, and what was measured.

    Attributes:
        weights: state dict of the module that `spec` builds.
        metrics: JSON values: counts, accuracies in percent, method, seed, …
        preprocessing: JSON values: data set, (C, H, W) of its images, mean and standard deviation a channel of an
            image in [0, 1]. An image of another size than the network's is resized to it.
    """

    spec: Spec
    plan: Plan
    weights: Mapping[str, Tensor]
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def network(self) -> Network:
        """The network, in evaluation mode, following the plan, with the weights."""
        network = instrument(self.spec.module(), self.spec.input)
        self.plan.apply(network)
        load_weights(network, self.weights)
        return network.eval()

    def save(self, folder: Path) -> None:
        """Write candidate.json and candidate.safetensors."""
        header = {
            "spec": self.spec.to_json(),
            "sites": self.plan._shapes(),
            "metrics": dict(self.metrics),
            "preprocessing": dict(self.preprocessing),
        }
        weights = {f"weight/{name}": tensor for name, tensor in self.weights.items()}
        store.write(folder, "candidate", header, self.plan._tensors() | weights)

    @classmethod
    def load(cls, folder: Path) -> Candidate:
        """Read what `save` wrote; raises `UserError` where it is missing, truncated, foreign or edited."""
        header, tensors = store.read(folder, "candidate")
        if not all(isinstance(header.get(k), dict) for k in ("spec", "sites", "metrics", "preprocessing")):
            raise UserError(f"{folder}/candidate.json lacks its spec, sites, metrics or preprocessing")
        weights = {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}
        plan = Plan._from(header["sites"], tensors, folder)
        return cls(spec_from_json(header["spec"]), plan, weights, header["metrics"], header["preprocessing"])


def load_weights(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a network; raises `UserError` with the first name or shape that does not fit."""
    own = network.state_dict()
    for name in sorted(set(own) ^ set(weights)):
        state = "lack" if name in own else "have an unknown"
        raise UserError(f"the weights {state} {name}; they are of another network")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"the weights' {name} is {tuple(tensor.shape)}, the network's {tuple(own[name].shape)}; "
                            "check the network, its input and the number of classes")  # fmt: skip
    network.load_state_dict(weights)


def load_shared_weights(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what a network has of a state dict, which may have more and less: branches and classifiers come and go.

    Raises:
        UserError: they share no layer, or a shared name has another shape.
    """
    own = network.state_dict()
    shared = {name: tensor for name, tensor in weights.items() if name in own}
    if not shared:
        raise UserError(f"the weights are of another network: they have no layer in common, from {min(weights)} on")
    load_weights(network, {**own, **shared})
