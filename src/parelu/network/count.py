"""ReLUs, squares, MACs, parameters and depth, per site and per stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from parelu.errors import UserError
from parelu.network import ops, trace
from parelu.network.instrument import instrument
from parelu.network.plan import Plan
from parelu.network.sites import Network, Site
from parelu.network.spec import Spec

HEAD = "head"


@dataclasses.dataclass(frozen=True)
class StageCount:
    """ReLUs and multiply-adds an image of one stage."""

    relus: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one image costs.

    Attributes:
        relus: ReLU evaluations, the stem's included; relus_without_stem: less those.
        squares: positions with a polynomial of degree 2, never counted as ReLUs.
        macs: multiply-adds of convolutions and linear layers.
        flops: MACs + 2 × convolution outputs, as the ReLU papers count a convolution and its batch-norm.
        params: trainable parameters.
        depth: convolutions on the longest path.
        stages: stage → its ReLUs and MACs; what comes after the last site is the head.
        sites: site → ReLUs.
    """

    relus: int
    relus_without_stem: int
    squares: int
    macs: int
    flops: int
    params: int
    depth: int
    stages: Mapping[str, StageCount]
    sites: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def count(network: Network) -> Counts:
    """Count a network as it stands.

    A layer belongs to the stage of the next site after it.

    Raises:
        UserError: the network has ops without a place in a private network; one line each.
    """
    if network.problems:
        raise UserError("\n".join(map(str, network.problems)))
    plan = Plan.of(network)
    relus: dict[str, int] = {}
    macs: dict[str, int] = {}
    waiting = convolution_outputs = 0
    for node in network.graph.nodes:
        module = trace.called_module(node)
        if isinstance(module, Site):
            relus[module.stage] = relus.get(module.stage, 0) + module.relus
            macs[module.stage] = macs.get(module.stage, 0) + waiting
            waiting = 0
        elif module is not None:
            waiting += _macs(node, module)
            if isinstance(module, ops.CONVOLUTIONS):
                convolution_outputs += math.prod(node.meta["shape"])
    stages = {stage: StageCount(relus[stage], macs[stage]) for stage in relus} | {HEAD: StageCount(0, waiting)}
    total = sum(macs.values()) + waiting
    return Counts(
        relus=plan.relus,
        relus_without_stem=plan.relus - relus.get("stem", 0),
        squares=plan.squares,
        macs=total,
        flops=total + 2 * convolution_outputs,
        params=sum(p.numel() for p in network.parameters()),
        depth=trace.longest_path(network, lambda node: isinstance(trace.called_module(node), ops.CONVOLUTIONS)),
        stages=stages,
        sites={name: site.relus for name, site in plan.sites.items()},
    )


def _macs(node: fx.Node, module: nn.Module) -> int:
    outputs = math.prod(node.meta["shape"])
    if isinstance(module, ops.CONVOLUTIONS):
        return outputs * math.prod(module.kernel_size) * module.in_channels // module.groups
    if isinstance(module, nn.Linear):
        return outputs * module.in_features
    return 0


def skeleton(spec: Spec) -> Network:
    """The network of a spec without numbers in its weights: enough to count and to plan, at no cost."""
    with torch.device("meta"):
        module = spec.module()
    return instrument(module, spec.input)
