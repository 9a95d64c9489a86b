"""Which ops have no secure lowering, and what to do about each."""

from __future__ import annotations

import math

from torch import fx

from parelu.fusion.fuse import fuse
from parelu.network import ops
from parelu.network.ops import Unsupported
from parelu.network.shapes import ShapesAlone
from parelu.network.sites import Network
from parelu.private.lowering.ops import MOST_DIMENSIONS
from parelu.private.lowering.program import LARGEST_TOTAL

_WITH_STATISTICS = "set track_running_stats=True", "a batch-norm without running statistics"
_FEWER_DIMENSIONS = f"keep maps below {MOST_DIMENSIONS + 1} dimensions", "a map of many dimensions"


def problems(network: Network) -> tuple[Unsupported, ...]:
    """Every op that has no secure lowering, with its module path and the remedy."""
    with ShapesAlone():
        return refusals(network if ops.unsupported(network) else fuse(network))


def refusals(fused: Network) -> tuple[Unsupported, ...]:
    """The same of a network whose layers are fused already."""
    return tuple(dict.fromkeys(problem for problem in map(_refusal, fused.graph.nodes) if problem))


def too_large(fused: Network) -> Unsupported | None:
    """What says that the network's program would be larger than one may be, by its shapes; None where that is not sure.

    The maps of convolutions, linear layers and activations are values of a program, whatever else is.
    """
    sizes = (
        math.prod(node.meta["shape"])
        for node, op in ops.read_all(fused).items()
        if isinstance(op, ops.Convolution | ops.Linear | ops.Activation)
    )
    if (least := sum(sizes)) <= LARGEST_TOTAL:
        return None
    what = f"a query of {least:,} values or more ({LARGEST_TOTAL:,} at the most)"
    return Unsupported("the network", what, "use smaller images, or replace what has many ReLUs")


def _refusal(node: fx.Node) -> Unsupported | None:
    """What keeps an op from being lowered; None where nothing does."""
    match ops.read(node):
        case Unsupported() as op:
            return op
        case ops.BatchNorm(norm) if norm.running_mean is None:
            return Unsupported.at(node, *_WITH_STATISTICS)
        case _ if len(node.meta.get("shape", ())) > MOST_DIMENSIONS:
            return Unsupported.at(node, *_FEWER_DIMENSIONS)
        case ops.Input() | ops.Output() | ops.Constant() | ops.Number() | ops.Identity() | ops.Activation():
            return None
        case ops.Convolution() | ops.Linear() | ops.BatchNorm() | ops.Affine() | ops.Scaling() | ops.Resample():
            return None
        case ops.Addition() | ops.Product() | ops.Concat() | ops.Pool() | ops.MaxPool():
            return None
        case ops.Reshape() | ops.Permute() | ops.Select():
            return None
        case _:
            return Unsupported.at(node, "write it with convolutions, additions, pools and ReLUs")
