"""Which ops have no secure lowering, and what to do about each."""

from __future__ import annotations

from torch import fx

from parelu.fusion.fuse import fuse
from parelu.network import ops
from parelu.network.ops import Unsupported
from parelu.network.sites import Network
from parelu.private.lowering.ops import MOST_DIMENSIONS

_OF_CONSTANTS = "put constants into the layers: their weights and biases", "an op on a parameter"
_WITH_STATISTICS = "set track_running_stats=True", "a batch-norm without running statistics"
_FEWER_DIMENSIONS = f"keep maps below {MOST_DIMENSIONS + 1} dimensions", "a map of many dimensions"


def problems(network: Network) -> tuple[Unsupported, ...]:
    """Every op that has no secure lowering, with its module path and the remedy."""
    return refusals(network if ops.unsupported(network) else fuse(network))


def refusals(fused: Network) -> tuple[Unsupported, ...]:
    """The same of a network whose layers are fused already."""
    return tuple(dict.fromkeys(problem for problem in map(_refusal, fused.graph.nodes) if problem))


def _refusal(node: fx.Node) -> Unsupported | None:
    """What keeps an op from being lowered; None where nothing does."""
    op = ops.read(node)
    match op:
        case Unsupported():
            return op
        case ops.Input() | ops.Output() | ops.Constant() | ops.Number():
            return None
        case ops.Product() | ops.Scaling():
            return None
        case ops.Addition():
            return _refused_addition(node, op)
        case _ if any(n.op == "get_attr" for n in node.all_input_nodes):
            return Unsupported.at(node, *_OF_CONSTANTS)
        case _ if len(node.meta["shape"]) > MOST_DIMENSIONS:
            return Unsupported.at(node, *_FEWER_DIMENSIONS)
        case ops.Activation() | ops.MaxPool() | ops.Identity() | ops.Pool() | ops.Resample() | ops.Concat():
            return None
        case ops.Reshape() | ops.Permute() | ops.Select() | ops.Affine() | ops.Linear() | ops.Convolution():
            return None
        case ops.BatchNorm(norm):
            return None if norm.running_mean is not None else Unsupported.at(node, *_WITH_STATISTICS)
        case _:
            remedy = "write it with convolutions, additions of two maps, average pools and ReLUs"
            return Unsupported.at(node, remedy)


def _refused_addition(node: fx.Node, op: ops.Addition) -> Unsupported | None:
    """Of what is no sum of two values of one shape."""
    for term in (op.left, op.right):
        if not isinstance(term, fx.Node) or term.op == "get_attr" or "shape" not in term.meta:
            return Unsupported.at(node, "put it into the bias of the layer before", "an addition of a constant")
        if term.meta["shape"] != node.meta["shape"]:
            return Unsupported.at(node, "give both terms one shape", "an addition that broadcasts")
    return None
