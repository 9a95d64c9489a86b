"""Chains: the runs of linear ops in a network, with one input, one output, and nobody who reads what is between.

A chain is a series of units. A unit is a node, or a residual addition whose branches are series of units themselves;
an empty branch is a shortcut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import fx

from parelu.network import ops
from parelu.network.sites import Network


@dataclasses.dataclass(frozen=True, eq=False)
class Sum:
    """A residual addition: both branches read the unit's input.

    Attributes:
        node: the addition.
    """

    node: fx.Node
    left: tuple[Unit, ...]
    right: tuple[Unit, ...]


Unit = fx.Node | Sum
Units = tuple[Unit, ...]


def shape(node: fx.Node) -> tuple[int, ...]:
    """Of its tensor without the batch; () where it makes none."""
    return node.meta.get("shape", ())


def nodes(units: Sequence[Unit]) -> list[fx.Node]:
    """In order of execution."""
    found: list[fx.Node] = []
    for unit in units:
        found += [*nodes(unit.left), *nodes(unit.right), unit.node] if isinstance(unit, Sum) else [unit]
    return found


def end(units: Sequence[Unit]) -> fx.Node:
    """The node that makes their output."""
    return nodes(units[-1:])[-1]


def source(units: Sequence[Unit]) -> fx.Node:
    """The node that makes their input."""
    first = units[0]
    while isinstance(first, Sum):
        first = (first.left or first.right)[0]
    return first.all_input_nodes[0]


def is_linear(node: fx.Node) -> bool:
    """Whether a node is an affine map of its one input, both of shape (C, H, W) or (C,); an idle site is not."""
    terms = node.all_input_nodes
    if len(terms) != 1 or len(shape(terms[0])) not in (1, 3) or len(shape(node)) not in (1, 3):
        return False
    match ops.read(node):
        case ops.Activation(site):
            return not (site.relus or site.is_identity_elsewhere or bool(site.coefficients[2].any()))
        case ops.Convolution() as op:
            return op.is_plain and op.has_even_bias
        case ops.Linear():
            return len(shape(node)) == 1
        case ops.BatchNorm(norm):
            return norm.running_mean is not None
        case ops.Affine(layer):
            return layer.weight.shape[1:].numel() == layer.bias.shape[1:].numel() == 1
        case ops.Pool() | ops.Scaling():
            return True
        case ops.Reshape(after):
            return len(after) == 1
        case _:
            return False


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds what two others make, both of its shape."""
    match ops.read(node):
        case ops.Addition(fx.Node() as left, fx.Node() as right):
            return left is not right and shape(left) == shape(right) == shape(node)
        case _:
            return False


def chains(network: Network) -> list[Units]:
    """The longest chains of a network, in order of their ends."""
    found: dict[fx.Node, tuple[fx.Node, Units]] = {}  # the node that ends a chain → what it reads, and its units

    def add(unit: Unit, start: fx.Node, last: fx.Node) -> None:
        before = found.get(start)
        if before and set(start.users) == _readers((unit,), last):
            del found[start]
            found[last] = before[0], (*before[1], unit)
        else:
            found[last] = start, (unit,)

    for node in network.graph.nodes:
        terms = node.all_input_nodes
        if is_linear(node):
            add(node, terms[0], node)
        elif _is_sum(node):
            branches = [found[term] if term in found and list(term.users) == [node] else (term, ()) for term in terms]
            (start, left), (other, right) = branches
            if start is other:
                for term, (_, units) in zip(terms, branches, strict=True):
                    if units:
                        del found[term]
                add(Sum(node, left, right), start, node)
    return [units for _, units in found.values()]


def _readers(units: Units, last: fx.Node) -> set[fx.Node]:
    """The nodes that read the input of these units; last: who reads it where there are none."""
    if not units:
        return {last}
    first = units[0]
    if isinstance(first, Sum):
        return _readers(first.left, first.node) | _readers(first.right, first.node)
    return {first}
