"""Candidate: an architecture, a plan, weights and what was measured; built again from its files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network import storage
from parelu.network.instrument import network_of
from parelu.network.metrics import Metrics, SearchMetrics, metrics_from_json
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec, spec_from_json
from parelu.network.weights import check_finite, check_fit


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """An architecture, a plan for its sites, weights, and what was measured.

    Attributes:
        weights: state dict of the module that `spec` builds.
        metrics: of a network that a run trained, or of what a search left; None where nothing was measured.
        preprocessing: JSON values: data set, (C, H, W) of its images, mean and standard deviation a channel of an
            image in [0, 1]; where it is the centre of its file's, that share of it as "middle". An image of another
            size than the network's is resized to it.
    """

    spec: Spec
    plan: Plan
    weights: Mapping[str, Tensor]
    metrics: Metrics | SearchMetrics | None = None
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def trained(self) -> Metrics:
        """The metrics of a network that a run trained; raises `UserError` for any other."""
        if not isinstance(self.metrics, Metrics):
            raise UserError("this candidate has no accuracy of its own; take one from the candidates/ of a run")
        return self.metrics

    def network(self) -> Network:
        """The network, in evaluation mode, following the plan, with the weights."""
        network = network_of(self.spec)
        self.plan.apply(network)
        load_weights(network, self.weights)
        return network.eval()

    def save(self, folder: Path) -> None:
        """Write candidate.json and candidate.safetensors."""
        header = {
            "spec": self.spec.to_json(),
            "sites": self.plan.shapes(),
            "metrics": self.metrics.to_json() if self.metrics else {},
            "preprocessing": dict(self.preprocessing),
        }
        weights = {f"weight/{name}": tensor for name, tensor in self.weights.items()}
        storage.write(folder, "candidate", header, self.plan.tensors() | weights)

    @classmethod
    def load(cls, folder: Path) -> Candidate:
        """Read what `save` wrote; raises `UserError` where it is missing, truncated, foreign or edited."""
        header, tensors = storage.read(folder, "candidate")
        if not all(isinstance(header.get(k), dict) for k in ("spec", "sites", "metrics", "preprocessing")):
            raise UserError(f"{folder}/candidate.json lacks its spec, sites, metrics or preprocessing")
        weights = {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}
        plan = Plan.from_tensors(header["sites"], tensors, folder)
        metrics = metrics_from_json(header["metrics"])
        return cls(spec_from_json(header["spec"]), plan, weights, metrics, header["preprocessing"])


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a candidate's folder, read and checked when they are first used: thousands do not fit in memory.

    Using them raises `UserError` where the files are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def _read(self) -> Mapping[str, Tensor]:
        return Candidate.load(self.folder).weights

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def load_weights(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a network; raises `UserError` with the tensors that do not fit or are not finite."""
    check_fit(network.state_dict(), weights)
    check_finite(weights)
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
