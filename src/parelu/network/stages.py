"""Stages and blocks: where in the network each site stands."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from torch import fx

from parelu.network import nodes, ops
from parelu.network.sites import Network, Site

# Stage → the path that its sites stand under; or their own paths, or these by blocks.
Declared = Mapping[str, str | tuple[str, ...] | tuple[tuple[str, ...], ...]]


def assign_stages(network: Network, declared: Declared | None) -> None:
    """Give each site its stage and its block.

    `declared` maps a stage to the module path that its sites stand under, where each module below is a block; or to the
    sites' own paths, whose parents are the blocks, or a tuple of these a block. Without it, the stem is what comes
    before the first fork of a residual network, a stage is a run of sites of equal spatial size, where those of gates
    do not count, and a block ends with the site after an addition.
    """
    placed = _declared(network, declared) if declared is not None else _found(network)
    blocks: dict[str, list[str]] = {}
    for node, site in nodes.calls(network, (Site,)):
        site.stage, block = placed[site.name]
        known = blocks.setdefault(site.stage, [])
        known += [block] if block not in known else []
        site.block, site.after_addition = known.index(block), _follows_addition(node)
    sites = network.sites
    for site in sites.values():
        site.after_addition |= sites.get(site.activation, site).after_addition


def is_declaration(stages: object) -> bool:
    """Whether what a module calls its stages declares them as `assign_stages` has it."""
    return isinstance(stages, dict) and all(
        isinstance(name, str) and isinstance(paths, str | tuple) for name, paths in stages.items()
    )


def _declared(network: Network, stages: Declared) -> dict[str, tuple[str, str]]:
    """Site → its stage and its block there."""
    placed = {}
    blocks = {path: (stage, f"block {n}") for stage, of in stages.items() for n, path in _by_block(of)}
    declared = [(stage, path) for stage, of in stages.items() for path in ([of] if isinstance(of, str) else of)]
    for name in network.sites:
        if name in blocks:
            placed[name] = blocks[name]
            continue
        inside = [(stage, path) for stage, path in declared if name == path or name.startswith(f"{path}.")]
        if not inside:
            raise ValueError(f"site {name} stands under none of the declared stages {dict(stages)}")
        stage, path = inside[0]
        below = name[len(path) + 1 :]
        placed[name] = stage, below.split(".")[0] if below else name.rpartition(".")[0]
    return placed


def _by_block(paths: str | tuple[str | tuple[str, ...], ...]) -> Iterator[tuple[int, str]]:
    """Block and path of each site that is declared with its block."""
    for number, block in enumerate(paths):
        if not isinstance(block, str):
            yield from ((number, path) for path in block)


def _found(network: Network) -> dict[str, tuple[str, str]]:
    """Site → its stage and its block there, of a network that declares nothing."""
    trunk = _trunk(network)
    fork = next((node for node in network.graph.nodes if len(_readers(node, trunk)) > 1), None)
    placed, in_stem, run, size, block, last = {}, fork is not None, 0, None, 0, None
    for node in network.graph.nodes:
        site = nodes.called_module(node)
        if isinstance(site, Site):
            if not in_stem and node in trunk:
                run += site.shape[1:] != size
                size = site.shape[1:]
            if last is not None and _call(node) != _call(last):
                block += _follows_addition(last)
            if last is None or _call(node) != _call(last):
                last = node
            placed[site.name] = "stem" if in_stem else f"S{max(run, 1)}", str(block)
        in_stem = in_stem and node is not fork
    return placed


def _trunk(network: Network) -> set[fx.Node]:
    """What the output is made of without gates: of a product that broadcasts, the larger factor's side alone."""
    found: set[fx.Node] = set()
    pending = list(network.graph.find_nodes(op="output"))
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        sources, op = node.all_input_nodes, ops.read(node)
        if isinstance(op, ops.Product):
            sizes = {source: _numbers(source) for source in (op.left, op.right)}
            sources = [source for source, size in sizes.items() if size == max(sizes.values())]
        pending += sources
    return found


def _numbers(node: fx.Node) -> int:
    """How many numbers a tensor has, without those that are repeated."""
    least = math.prod(node.meta["shape"])
    while isinstance(ops.read(node), ops.Select | ops.Reshape | ops.Permute):
        node = node.all_input_nodes[0]
        least = min(least, math.prod(node.meta["shape"]))
    return least


def _readers(node: fx.Node, trunk: Collection[fx.Node]) -> set[str]:
    """The calls of the module as it was written that read what a node makes, without those of gates."""
    return {_call(user) for user in node.users if user in trunk and "shape" in user.meta}


def _call(node: fx.Node) -> str:
    """The call of the module as it was written that a node comes of: an activation may be several sites."""
    return node.meta.get("call", node.name)


def _follows_addition(node: fx.Node) -> bool:
    """Whether a site's input is a sum, seen through batch-norms and what else keeps the map as it is."""
    source = node.all_input_nodes[0]
    while isinstance(op := ops.read(source), ops.BatchNorm | ops.Identity | ops.Affine | ops.Scaling):
        source = source.all_input_nodes[0]
    return isinstance(op, ops.Addition)
