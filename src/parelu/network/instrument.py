"""Instrumenting: every activation call of a module is found by tracing and made a `Site`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
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
    if isinstance(input_shape, str):
        raise UserError(f"input shape {input_shape!r} is no tuple; give (channels, height, width), such as (3, 32, 32)")
    traced = trace.trace(module, input_shape, leaves=(Site,))
    expected = trace.propagate_shapes(traced, input_shape)
    notes = list(_replace_calls(traced))
    traced.graph.lint()
    network = Network(traced, traced.graph, type(module).__name__)
    network.input_shape, network.notes = tuple(input_shape), tuple(notes)
    network.train(module.training)
    comparable = expected.device.type != "meta" and not notes and not ops.unsupported(network)
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
    found = [(node, op) for node in traced.graph.nodes if isinstance(op := ops.read(node), ops.Relu)]
    for node, op in found:
        name = _unused(traced, str(node.target) if node.op == "call_module" else _join(trace.owner(node), "relu"))
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        if op.is_capped:
            yield f"{name}: a ReLU6 became a ReLU; train or finetune the network with it"
        traced.add_submodule(name, Site(name, node.meta["shape"]))
        with traced.graph.inserting_before(node):
            site = traced.graph.call_module(name, (source,))
        site.meta = dict(node.meta)
        if op.in_place:
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


def _after(node: fx.Node) -> Iterator[fx.Node]:
    following = node.next
    while following.op != "root":
        yield following
        following = following.next
