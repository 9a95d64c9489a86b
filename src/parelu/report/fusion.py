"""What `parelu fuse` prints: a network's layers before and after merging."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from parelu.fusion.fuse import fuse, layers, nothing
from parelu.fusion.packing import packing
from parelu.network.count import count, rounds, skeleton
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.report.private import size


@dataclasses.dataclass(frozen=True)
class Size:
    """What decides a network's cost in private inference, an image.

    Attributes:
        layers: with secret numbers; depth: convolutions on the longest path; macs: multiply-adds.
        products, bytes: of a homomorphic offline phase, as packed by `packing`.
        rounds: online round trips, see `count.rounds`.
    """

    layers: int
    depth: int
    macs: int
    products: int
    bytes: int
    rounds: int


def size_of(network: Network) -> Size:
    """Of a network as it stands."""
    found = layers(network)
    packed = [packing(layer) for layer in found]
    return Size(
        len(found),
        count(network).depth,
        sum(layer.macs for layer in found),
        sum(p.products for p in packed),
        sum(p.bytes for p in packed),
        rounds(network),
    )


def sizes(spec: Spec, plan: Plan) -> dict[str, Size]:
    """The network as it is, fused, and merged with the padding of the sum, which asks for finetuning."""
    network = skeleton(spec)
    plan.apply(network)
    ways: dict[str, dict[str, Any]] = {"as it is": {"cost": nothing}, "fused": {}, "merged": {"padded": True}}
    return {name: size_of(fuse(network, **options)) for name, options in ways.items()}


def fusion(spec: Spec, title: str, plan: Plan, *, as_json: bool) -> str:
    """The sizes as JSON or as text."""
    found = sizes(spec, plan)
    if as_json:
        return json.dumps({name.replace(" ", "_"): dataclasses.asdict(one) for name, one in found.items()}, indent=1)
    heads = ("layers", "depth", "MACs", "HE products", "HE bytes", "rounds")
    lines = [
        f"{title}, input {'x'.join(map(str, spec.input))}, {spec.classes} classes",
        "",
        f"  {'':<10}" + "".join(f"{head:>13}" for head in heads),
    ]
    for name, one in found.items():
        cells = (
            f"{one.layers}",
            f"{one.depth}",
            f"{one.macs / 1e6:,.2f} M",
            f"{one.products:,}",
            size(one.bytes),
            f"{one.rounds}",
        )
        lines.append(f"  {name:<10}" + "".join(f"{cell:>13}" for cell in cells))
    same = found["merged"] == found["fused"]
    lines += ["", "  fused: the same function, border included; bench and serve do it by themselves"]
    lines += (
        []
        if same
        else ["  merged: another function near the border; parelu fuse CANDIDATE --finetune EPOCHS trains it"]
    )
    return "\n".join(lines)
