"""The program of a network of which only shapes and masks are known: what a query takes hangs on little else.

A network with weights has the same ops, shapes, ReLUs and squares; only how large its numbers are is its own: bits of
ReLUs and truncations, and of the output.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from torch import fx

from parelu.errors import UserError
from parelu.fusion.fuse import Cost, fuse
from parelu.fusion.packing import seconds
from parelu.network import nodes, ops
from parelu.network.count import skeleton
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.lowering.calibrate import Seen, max_pool_levels
from parelu.private.lowering.lowered import WEIGHT_BITS
from parelu.private.lowering.program import Program
from parelu.private.lowering.refusals import refusals, too_large
from parelu.private.lowering.translate import Translation

USUAL = 6.0  # the largest |x| at most ReLUs of trained networks, whose batch-norms have a variance of 1
PREPROCESSING = 0.5, 0.25  # mean and standard deviation of a channel


def _usual() -> Seen:
    return Seen(largest=USUAL, total=1.0, count=1)


@dataclasses.dataclass(eq=False)
class Usual:
    """`Ranges` of a network that nobody has run: everywhere the usual ones."""

    values: dict[fx.Node, Seen] = dataclasses.field(default_factory=lambda: defaultdict(_usual))
    relus: dict[fx.Node, Seen] = dataclasses.field(default_factory=lambda: defaultdict(_usual))
    squares: dict[fx.Node, Seen] = dataclasses.field(default_factory=lambda: defaultdict(_usual))
    products: dict[fx.Node, tuple[Seen, Seen]] = dataclasses.field(
        default_factory=lambda: defaultdict(lambda: (_usual(), _usual()))
    )
    levels: dict[fx.Node, tuple[Seen, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, network: Network) -> Usual:
        pools = ((node, op) for node, op in ops.read_all(network).items() if isinstance(op, ops.MaxPool))
        return cls(levels={node: tuple(_usual() for _ in max_pool_levels(node, op)) for node, op in pools})


def planned(spec: Spec, plan: Plan, *, ring: Ring = WIDE) -> Program:
    """As `outline`, of a spec's network under a plan: in a tenth of a second."""
    network = skeleton(spec)
    plan.apply(network)
    return outline(network, ring=ring)


def outline(network: Network, *, cost: Cost = seconds, ring: Ring = WIDE) -> Program:
    """The program of a network that follows its plan, on meta tensors.

    cost, ring: as `lower` takes them.

    Raises:
        UserError: an op has no secure lowering (one line each), or the program would be too large.
    """
    fused = network if ops.unsupported(network) else fuse(network, cost=cost)
    if found := refusals(fused):
        raise UserError("\n".join(map(str, found)))
    if large := too_large(fused):
        raise UserError(str(large))
    if len(shape := nodes.output_shape(fused)) != 1:
        raise UserError(f"the network gives {shape} for an image, not a number a class; pool and flatten its map")
    mean, std = ([number] * network.input_shape[0] for number in PREPROCESSING)
    described = {"mean": mean, "std": std, "image": list(network.input_shape)}
    try:
        return Translation(fused, Usual.of(fused), ring, WEIGHT_BITS, True).program(described)
    except ValueError as error:
        raise UserError(f"the network is too large to be run privately: {error}; use smaller images") from error
