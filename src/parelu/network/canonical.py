"""Canonical form: a traced network written with the ops of `network/ops.py` alone, as far as they reach.

`RULES` has a rule for each thing that people write in another way: the function, the name of the tensor's method, or
the class of the module that is called → what to write instead (`network/builder.py`). What no rule knows stays, and
`ops.read` says that it is unsupported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from parelu.network.builder import Builder, Rule

RULES: dict[Any, Rule] = {}


def canonical(traced: fx.GraphModule, replace: Mapping[str, str] | None = None) -> Builder:
    """Rewrite a traced network with shapes in place; what was done to it.

    replace: kind of op → what the user wants in its place.
    """
    builder = Builder(traced, replace or {})
    for node in list(traced.graph.nodes):
        _rewrite(node, builder)
    _erase_unread(traced)
    traced.graph.lint()
    traced.recompile()
    return builder


def rule_of(node: fx.Node, builder: Builder) -> Rule | None:
    """The rule for what a node calls, or for the nearest class that its module is derived from."""
    module = builder.module(node)
    if module is None:
        return RULES.get(node.target) if node.op in ("call_function", "call_method") else None
    return next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)


def _rewrite(node: fx.Node, builder: Builder) -> None:
    rule = rule_of(node, builder)
    if rule is None:
        return
    before, builder.node = node.prev, node
    result = rule(node, builder)
    written, last = [], node.prev
    while last is not before:
        written.append(last)
        last = last.prev
    if result is not None and result is not node:
        if _overwrites(node, builder):
            _read_later(node, result)
        node.replace_all_uses_with(result)
        node.graph.erase_node(node)
    for new in reversed(written):
        _rewrite(new, builder)


def _overwrites(node: fx.Node, builder: Builder) -> bool:
    """Whether a call changes its input in place."""
    module = builder.module(node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _read_later(node: fx.Node, result: fx.Node) -> None:
    """Who reads the input of an in-place call after it reads the result."""
    later, following = set(), node.next
    while following.op != "root":
        later.add(following)
        following = following.next
    node.all_input_nodes[0].replace_all_uses_with(result, delete_user_cb=later.__contains__)


def _erase_unread(network: fx.GraphModule) -> None:
    """Take out the nodes that nobody reads, and the modules, parameters and buffers that no node names."""
    for node in reversed(network.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            network.graph.erase_node(node)
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    named = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    network.delete_all_unused_submodules()
    for path, module in list(network.named_modules()):
        if any(path == name or path.startswith(f"{name}.") for name in called):
            continue
        for name in (*module._parameters, *module._buffers):  # also those that are None
            if ".".join(filter(None, (path, name))) not in named:
                delattr(module, name)
