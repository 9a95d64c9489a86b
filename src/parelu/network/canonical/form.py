"""Canonical form: a traced network written with the ops of `network/ops.py` alone, as far as they reach.

`RULES` has a rule for each thing that people write in another way: the function, the name of the tensor's method, or
the class of the module that is called → what to write instead, with a `Builder`. What no rule knows stays, and
`ops.read` says that it is unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.network import ops
from parelu.network.canonical import replacements
from parelu.network.canonical.activations import ACTIVATIONS
from parelu.network.canonical.arithmetic import ARITHMETIC
from parelu.network.canonical.builder import Builder, Rule
from parelu.network.canonical.layers import LAYERS
from parelu.network.canonical.moves import MOVES
from parelu.network.canonical.repeated import REPEATED
from parelu.network.canonical.windows import WINDOWS
from parelu.network.tracing.tracer import is_needed

RULES: Mapping[Any, Rule] = {**MOVES, **ARITHMETIC, **WINDOWS, **LAYERS, **ACTIVATIONS, **REPEATED}


# What may stand behind the logits and leaves the order among them as it is, of (batch, classes).
_PROBABILITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "logsoftmax": lambda logits: logits.log_softmax(1),
    "sigmoid": torch.sigmoid,
}


def canonical(
    traced: fx.GraphModule, replace: Mapping[str, str] | None = None, *, keeps_smooth: bool = False
) -> Builder:
    """Rewrite a traced network with shapes in place; what was done to it.

    replace: kind of op → what the user wants in its place (`replacements.parsed`); that is done first. keeps_smooth:
    whether smooth functions that nothing replaces stay, rather than become piecewise linear.
    """
    kinds = {**({} if keeps_smooth else replacements.PIECES), **(replace or {})}
    builder = Builder(traced)
    _leave_out_probabilities(builder)
    for rules in (replacements.rules(kinds), RULES):
        for node in list(traced.graph.nodes):
            _rewrite(node, builder, rules)
        _erase_unread(traced)
        builder.restore()
    replacements.note_if_idle(replace or {}, builder)
    traced.graph.lint()
    traced.recompile()
    return builder


def _kind(node: fx.Node) -> str:
    """The name of an op, by whatever it is called: "sigmoid", "logsoftmax"."""
    return re.sub(r"[12]d$|_", "", ops.name(node).lower())


def rule_of(node: fx.Node, builder: Builder, rules: Mapping[Any, Rule]) -> Rule | None:
    """The rule for what a node calls, or for the nearest class that its module is derived from."""
    module = builder.module(node)
    if module is None:
        return rules.get(node.target) if node.op in ("call_function", "call_method") else None
    return next((rules[kind] for kind in type(module).__mro__ if kind in rules), None)


def _rewrite(node: fx.Node, builder: Builder, rules: Mapping[Any, Rule]) -> None:
    rule = rule_of(node, builder, rules)
    if rule is None:
        return
    before, builder.node = node.prev, node
    result = rule(node, builder)
    written, last = [], node.prev
    while last is not before:
        written.append(last)
        last = last.prev
    if result is not None and result is not node:
        node.replace_all_uses_with(result)
        node.graph.erase_node(node)
        builder.moved(node, result)
    for new in reversed(written):
        _rewrite(new, builder, rules)


def _leave_out_probabilities(builder: Builder) -> None:
    """Take out what makes probabilities of the logits, at the end."""
    (output,) = builder.network.graph.find_nodes(op="output")
    (last,) = output.all_input_nodes
    made = _PROBABILITIES.get(_kind(last)) if last.op.startswith("call_") and len(last.meta["shape"]) == 1 else None
    if made is None:
        return
    source, test = last.all_input_nodes[0], torch.randn(2, *last.meta["shape"])
    if not torch.equal(builder.run(last, {source: test}), made(test)):
        return
    builder.node, builder.left_out = last, made
    builder.note(f"the {_kind(last)} at the end is left out: the outputs are the logits, whose largest is the same")
    output.replace_input_with(last, source)


def _erase_unread(network: fx.GraphModule) -> None:
    """Take out the nodes that nobody reads, and the modules, parameters and buffers that no node names."""
    for node in reversed(network.graph.nodes):
        if not is_needed(node):
            network.graph.erase_node(node)
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    named = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    network.delete_all_unused_submodules()

    def forget(module: nn.Module, path: str) -> None:
        if path in called:
            return
        for name in (*module._parameters, *module._buffers):  # also those that are None
            if _below(path, name) not in named:
                delattr(module, name)
        for name, child in module.named_children():
            forget(child, _below(path, name))

    forget(network, "")


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
