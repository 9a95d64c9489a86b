"""Instrumenting: every activation call of a module is found by tracing and made a `Site`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from parelu.errors import UserError
from parelu.network import ops, trace
from parelu.network.sites import Network, Site
from parelu.network.stages import assign_stages


def instrument(module: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """Trace a module and make each of its activation calls a site of its own.

    nn.ReLU, nn.ReLU6, F.relu, torch.relu, Tensor.relu and their in-place twins are found, also where one module is
    called several times. A ReLU6 becomes a ReLU, and `notes` says so. Weights are shared with `module`, and
    their state-dict names stay.

    Args:
        module: any torch.fx-traceable module that maps (batch, *input_shape) to (batch, classes).
        input_shape: (C, H, W).

    Raises:
        UserError: the module cannot be traced, or does not take the input, or changes when its calls are separated.
    """
    traced = trace.trace(module, leaves=(Site,))
    expected = trace.propagate_shapes(traced, input_shape)
    notes = list(_replace_calls(traced))
    traced.graph.lint()
    network = Network(traced, traced.graph, type(module).__name__)
    network.input_shape, network.notes = tuple(input_shape), tuple(notes)
    network.train(module.training)
    found = (ops.problem(node, (Site,)) for node in network.graph.nodes)
    network.problems = tuple(dict.fromkeys(p for p in found if p))
    comparable = expected.device.type != "meta" and not notes and not network.problems
    if comparable and not torch.equal(expected, trace.propagate_shapes(network, input_shape)):
        raise UserError(
            f"{type(module).__name__}: an in-place activation changes a tensor that is read through another name; "
            "write the activation out of place (inplace=False)"
        )
    declared = getattr(module, "stages", None)  # of others' modules it may be anything
    assign_stages(network, declared if isinstance(declared, dict) else None)
    return network


def _replace_calls(traced: fx.GraphModule) -> Iterator[str]:
    """Put a `Site` in the place of each activation call; yields a note for each that is not a plain ReLU."""
    found = [(node, trace.called_module(node)) for node in traced.graph.nodes if ops.is_relu(node)]
    for node, module in found:
        name = _unused(traced, str(node.target) if module is not None else _join(trace.owner(node), "relu"))
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        if isinstance(module, nn.ReLU6) or node.target is F.relu6:
            yield f"{name}: a ReLU6 became a ReLU; train or finetune the network with it"
        traced.add_submodule(name, Site(name, node.meta["shape"]))
        with traced.graph.inserting_before(node):
            site = traced.graph.call_module(name, (source,))
        site.meta = dict(node.meta)
        if _is_in_place(node, module):
            later = set(_after(node))
            source.replace_all_uses_with(site, delete_user_cb=lambda user, later=later: user in later)
        node.replace_all_uses_with(site)
        traced.graph.erase_node(node)
    traced.recompile()


def _join(*parts: str) -> str:
    return ".".join(p for p in parts if p)


def _unused(traced: fx.GraphModule, name: str) -> str:
    """`name`, or `name_2`, `name_3`, … where a site has taken it."""
    taken = {path for path, module in traced.named_modules() if not isinstance(module, ops.RELU_MODULES)}
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.target in (F.relu_, torch.relu_, "relu_"):
        return True
    return bool(node.kwargs.get("inplace", False) or (len(node.args) > 1 and node.args[1]))


def _after(node: fx.Node) -> Iterator[fx.Node]:
    following = node.next
    while following.op != "root":
        yield following
        following = following.next
