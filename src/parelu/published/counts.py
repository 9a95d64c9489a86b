"""What a published row's network counts, by the paper's own conventions.

DeepReShape's FLOPs are the multiply-adds and two for each output of a convolution (`Counts.flops`). DeepReDuce's are
multiply-adds, of shortcuts without parameters and of convolutions that are merged as one 3×3 where no ReLU is between
them (`merged_macs`): so Table 8 comes out. Stage 1 has the stem's ReLUs in Tables 4, 10, 11 and 12 of DeepReShape.
"""

from __future__ import annotations

import dataclasses
import functools

from parelu.errors import UserError
from parelu.network import ops
from parelu.network.count import Counts, count, multiply_adds, shared_skeleton
from parelu.network.spec import Spec, spec_of
from parelu.network.steps import Reduced, apply_steps
from parelu.published import TITLES, Published

# Of the data sets: (C, H, W) and classes (AutoReP, Table 2). A row without one is of a network at the size of CIFAR.
INPUTS = {
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tinyimagenet": ((3, 64, 64), 200),
    "imagenet": ((3, 224, 224), 1000),
    "": ((3, 32, 32), 100),
}


def reduced(row: Published) -> Reduced:
    """The network of a row after its steps; of one whose steps cannot be written, the network as it is.

    Raises:
        UserError: the paper does not say which network it is.
    """
    if "network" in row.exception or not row.network:
        why = row.exception.get("network", "it names no network")
        raise UserError(f"{TITLES[row.paper]} {row.table}, {row.row}: {why}; there is nothing to count")
    return _reduced(row.network, row.dataset, "none" if "steps" in row.exception else row.steps or "none")


@functools.cache
def _reduced(network: str, dataset: str, steps: str) -> Reduced:
    return apply_steps(spec_of(network, *INPUTS[dataset]), steps)


@functools.cache
def _whole(spec: Spec) -> Counts:
    """Of a network with all its ReLUs; MACs and depth do not depend on them."""
    return count(shared_skeleton(spec))


def full_relus(row: Published) -> int:
    """ReLUs of the network of a row before any step; raises `UserError` as `reduced` does."""
    network = reduced(dataclasses.replace(row, steps="none"))
    return network.plan.relus - _of_gates(network)


def _of_gates(reduced: Reduced) -> int:
    """ReLUs that stand for sigmoids, which AutoReP does not count."""
    return sum(site.relus for name, site in reduced.plan.sites.items() if name.endswith(".gate"))


def figures(row: Published) -> dict[str, float]:
    """Ours of the figures that a row gives: relus, flops_m, depth, conv, and the shares of stages that it states.

    Of a row whose steps cannot be written the multiply-adds alone, where ReLUs went one by one and left these alone.

    Raises:
        UserError: the paper does not say which network it is.
    """
    found = reduced(row)
    counts = _whole(found.spec)
    ours: dict[str, float] = {"flops_m": counts.flops / 1e6}
    if "steps" in row.exception:
        return ours if row.flops_m is not None and "pixel-wise" in row.steps else {}
    ours |= {"relus": found.plan.relus - _of_gates(found), "depth": counts.depth, "conv": counts.depth}
    if row.paper == "deepreduce" and (row.flops_m or (row.conv and row.conv != counts.depth)):
        ours |= {"flops_m": merged_macs(found) / 1e6, "conv": merged_convolutions(found)}
    shares = counts.shares()
    ours |= {f"stage{number}_share_percent": share for number, share in enumerate(shares.values(), start=1)}
    return {name: value for name, value in ours.items() if name in row.stated or getattr(row, name, None) is not None}


def merged_convolutions(reduced: Reduced) -> int:
    """Convolutions on the longest path of a ResNet of basic blocks after merging (DeepReDuce, Table 7).

    The stem, one of a stage without ReLUs, and elsewhere one of a block whose inner ReLU has gone and two of others.
    """
    return 1 + sum(
        sum(1 + has_inner for has_inner in blocks.values()) if _has_relus(reduced, stage) else 1
        for stage, blocks in _inner(reduced).items()
    )


def merged_macs(reduced: Reduced) -> int:
    """Multiply-adds of a ResNet of basic blocks as DeepReDuce's Table 8 has them.

    Shortcuts have no parameters, two convolutions without a ReLU between them count as one 3×3, and a stage without
    ReLUs as its first block. That is how 87.7M and 66.5M of ResNet56 come out; the paper does not state its rule.
    """
    network, inner, total = shared_skeleton(reduced.spec), _inner(reduced), 0
    for node in network.graph.nodes:
        op = ops.read(node)
        stage, block, layer = (*str(node.target).split("."), "", "")[:3]
        if layer == "downsample" or not isinstance(op, ops.Linear | ops.Convolution):
            continue
        if block and not _has_relus(reduced, stage):
            total += multiply_adds(node, op) if block == "0" else 0
        elif layer != "conv2" or inner[stage][block]:
            total += multiply_adds(node, op)
    return total


def _has_relus(reduced: Reduced, stage: str) -> bool:
    return any(site.relus for name, site in reduced.plan.sites.items() if name.startswith(f"{stage}."))


def _inner(reduced: Reduced) -> dict[str, dict[str, bool]]:
    """Stage's path → block → whether its inner site has ReLUs."""
    found: dict[str, dict[str, bool]] = {}
    for name, site in reduced.plan.sites.items():
        if name.endswith(".relu1"):
            stage, block, _ = name.split(".")
            found.setdefault(stage, {})[block] = bool(site.relus)
    return found
