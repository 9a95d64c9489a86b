"""ReLUs, comparisons, squares, MACs, parameters and depth, per site and per stage."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from parelu.errors import UserError
from parelu.network import maxpool, nodes, ops
from parelu.network.instrument import instrument
from parelu.network.plan import Plan
from parelu.network.shapes import ShapesAlone
from parelu.network.sites import Network
from parelu.network.spec import Spec

HEAD = "head"
STEM = "stem"


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
        comparisons: of max-pools, each by a ReLU of its own (`maxpool.levels`); not among the ReLUs of the masks.
        squares: positions with a polynomial of degree 2, and two for each product of two maps' positions; never counted
            as ReLUs.
        macs: multiply-adds of convolutions and linear layers.
        flops: MACs + 2 × convolution outputs, as the ReLU papers count a convolution and its batch-norm.
        params: trainable parameters.
        depth: convolutions on the longest path.
        stages: stage → its ReLUs and MACs; what comes after the last site is the head.
        sites: site → ReLUs.
    """

    relus: int
    relus_without_stem: int
    comparisons: int
    squares: int
    macs: int
    flops: int
    params: int
    depth: int
    stages: Mapping[str, StageCount]
    sites: Mapping[str, int]

    def shares(self) -> dict[str, float]:
        """Percent of the ReLUs in each stage, see `stage_shares`."""
        return stage_shares({name: stage.relus for name, stage in self.stages.items()})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def stage_shares(relus: Mapping[str, int]) -> dict[str, float]:
    """Stage → percent of the ReLUs, of stage → ReLUs; the stem's are in the first stage's, as in DeepReShape's Table 4.

    Of a network without ReLUs all are 0.
    """
    total = sum(relus.values()) or 1
    first, *others = [stage for stage in relus if stage not in (STEM, HEAD)] or [STEM]
    joined = {first: relus.get(first, 0) + (relus.get(STEM, 0) if first != STEM else 0)}
    return {stage: 100 * number / total for stage, number in (joined | {s: relus[s] for s in others}).items()}


def count(network: Network, *, skips: bool = False) -> Counts:
    """Count a network as it stands.

    A layer belongs to the stage of the next site after it. skips: whether ops without a place in a private network
    count nothing.

    Raises:
        UserError: the network has such ops; one line each.
    """
    found = {node: ops.read(node) for node in network.graph.nodes} if skips else ops.read_all(network)
    plan = Plan.of(network)
    relus: dict[str, int] = {}
    macs: dict[str, int] = {}
    waiting = convolution_outputs = compared = 0
    squares = plan.squares
    for node, op in found.items():
        waiting += multiply_adds(node, op)
        compared += comparisons(node, op)
        squares += _squares(node, op)
        if isinstance(op, ops.Activation):
            site = op.site
            relus[site.stage] = relus.get(site.stage, 0) + site.relus
            macs[site.stage] = macs.get(site.stage, 0) + waiting
            waiting = 0
        elif isinstance(op, ops.Convolution):
            convolution_outputs += math.prod(node.meta["shape"])
    stages = {stage: StageCount(relus[stage], macs[stage]) for stage in relus} | {HEAD: StageCount(0, waiting)}
    total = sum(macs.values()) + waiting
    return Counts(
        relus=plan.relus,
        relus_without_stem=plan.relus - relus.get(STEM, 0),
        comparisons=compared,
        squares=squares,
        macs=total,
        flops=total + 2 * convolution_outputs,
        params=sum(p.numel() for p in network.parameters()),
        depth=nodes.longest_path(network, lambda node: isinstance(found[node], ops.Convolution)),
        stages=stages,
        sites={name: site.relus for name, site in plan.sites.items()},
    )


def rounds(network: Network) -> int:
    """Online round trips: of sites with ReLUs or squares, of levels of max-pools, and of products."""
    found, plan = ops.read_all(network), Plan.of(network)
    levels = [level for node, op in found.items() for level in _levels(node, op) if level.comparisons]
    products = sum(isinstance(op, ops.Product) for op in found.values())
    return len(levels) + products + sum(bool(site.relus or site.squares) for site in plan.sites.values())


def comparisons(node: fx.Node, op: ops.Op) -> int:
    """Comparisons an image that a node makes: those of a max-pool."""
    return maxpool.comparisons(_levels(node, op))


def _levels(node: fx.Node, op: ops.Op) -> tuple[maxpool.Level, ...]:
    if not isinstance(op, ops.MaxPool):
        return ()
    before = node.all_input_nodes[0].meta["shape"]
    return maxpool.levels(before, node.meta["shape"], op.kernel, op.stride, op.padding)


def multiply_adds(node: fx.Node, op: ops.Op) -> int:
    """Multiply-adds an image; raises `UserError` for an op of which that is not known."""
    match op:
        case ops.Convolution(layer):
            outputs = math.prod(node.meta["shape"])
            return outputs * math.prod(layer.kernel_size) * layer.in_channels // layer.groups
        case ops.Linear(layer):
            return math.prod(node.meta["shape"]) * layer.in_features
        case ops.Input() | ops.Output() | ops.Constant() | ops.Number():
            return 0
        case ops.Activation() | ops.BatchNorm() | ops.Pool() | ops.MaxPool() | ops.Addition():
            return 0
        case ops.Identity() | ops.Concat() | ops.Reshape() | ops.Permute() | ops.Select():
            return 0
        case ops.Affine() | ops.Scaling() | ops.Resample():
            return 0
        case ops.Product() | ops.Unsupported():
            return 0
        case _:
            raise UserError(str(ops.Unsupported.at(node, "read it as an op of network/ops.py whose cost is known")))


def _squares(node: fx.Node, op: ops.Op) -> int:
    """Of an image: x·y = (x + y)²/4 − (x − y)²/4, and x·x is one."""
    if not isinstance(op, ops.Product):
        return 0
    return (1 if op.left is op.right else 2) * math.prod(node.meta["shape"])


def skeleton(spec: Spec) -> Network:
    """The network of a spec without numbers in its weights: enough to count and to plan, at no cost."""
    return shared_skeleton(spec).copied()


@functools.lru_cache(32)
def shared_skeleton(spec: Spec) -> Network:
    """The same, not copied: to be read only. It takes some tenths of a second, and the same few are asked for often."""
    with ShapesAlone():
        with torch.device("meta"):
            module = spec.module()
        return instrument(module, spec.input)


@functools.lru_cache(512)
def counts(spec: Spec) -> Counts:
    """Of a spec's network with all its ReLUs; not to be changed."""
    return count(shared_skeleton(spec))
