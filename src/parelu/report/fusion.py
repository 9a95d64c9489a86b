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
from parelu.report.predicted import cells, heads, note, predicted_json
from parelu.report.private import size
from parelu.report.tables import aligned
from parelu.runs.predictions import Queries


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


def ways(spec: Spec, plan: Plan) -> dict[str, Network]:
    """The network as it is, fused, and merged with the padding of the sum, which asks for finetuning."""
    network = skeleton(spec)
    plan.apply(network)
    options: dict[str, dict[str, Any]] = {"as it is": {"cost": nothing}, "fused": {}, "merged": {"padded": True}}
    return {name: fuse(network, **of) for name, of in options.items()}


def sizes(spec: Spec, plan: Plan) -> dict[str, Size]:
    """Of each of `ways`."""
    return {name: size_of(network) for name, network in ways(spec, plan).items()}


def fusion(spec: Spec, title: str, plan: Plan, queries: Queries, *, as_json: bool) -> str:
    """The sizes, and what queries are predicted to take, as JSON or as text."""
    networks = ways(spec, plan)
    found = {name: size_of(network) for name, network in networks.items()}
    expected = {name: queries.network(network, nothing) for name, network in networks.items()}
    if as_json:
        values = {
            name: {**dataclasses.asdict(one), "predicted": predicted_json(expected[name], queries)}
            for name, one in found.items()
        }
        return json.dumps({name.replace(" ", "_"): value for name, value in values.items()}, indent=1)
    rows = [["", "layers", "depth", "MACs", "HE products", "HE bytes", "rounds", *heads(queries.links)]]
    for name, one in found.items():
        macs = f"{one.macs / 1e6:,.2f} M"
        cost = f"{one.products:,}", size(one.bytes), str(one.rounds)
        seconds = cells(expected[name].by_link, queries.links)
        rows.append([name, str(one.layers), str(one.depth), macs, *cost, *seconds])
    table = aligned([[*row[1:], row[0]] for row in rows], left=1)
    lines = [f"{title}, input {'x'.join(map(str, spec.input))}, {spec.classes} classes", "", table, ""]
    lines += ["  fused: the same function, border included; bench and serve do it by themselves"]
    if found["merged"] != found["fused"]:
        lines += ["  merged: another function near the border; parelu fuse CANDIDATE --finetune EPOCHS trains it"]
    return "\n".join([*lines, f"  {note(queries, [one.why for one in expected.values()])}"])
