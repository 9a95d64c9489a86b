"""Instrumenting: every activation call of a module is found by tracing and made a `Site`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import torch
from torch import fx, nn

from parelu.errors import UserError
from parelu.network import nodes
from parelu.network.canonical.form import canonical
from parelu.network.functions import Affine, Resample
from parelu.network.sites import Network, Site
from parelu.network.spec import Spec
from parelu.network.stages import assign_stages, is_declaration
from parelu.network.tracing import trace
from parelu.network.tracing.agreement import check_agreement


def instrument(
    module: nn.Module,
    input_shape: tuple[int, ...],
    replace: Mapping[str, str] | None = None,
    output: int | str | None = None,
    *,
    keeps_smooth: bool = False,
) -> Network:
    """Trace a module and make each of its activation calls a site of its own.

    ReLUs are found in all their forms, also where one module is called several times, and in what is made of ReLUs and
    linear maps alone (`canonical/activations.py`). Weights are shared with `module`, and their state-dict names stay.

    Args:
        module: any module that maps (batch, *input_shape) to (batch, classes).
        input_shape: (C, H, W).
        replace: kind of op → what is to stand in its place (`replacements.parsed`).
        output: which of several outputs is the logits: an index, or a name.
        keeps_smooth: whether smooth functions such as SiLU stay as they are, as in a network that teaches: it runs, but
            not privately. They are piecewise linear otherwise. What is read of a file stays as it was written.

    Raises:
        UserError: the module cannot be traced, does not take the input, or is read as another network than it is.
    """
    if isinstance(input_shape, str):
        raise UserError(f"input shape {input_shape!r} is no tuple; give (channels, height, width), such as (3, 32, 32)")
    traced = trace.trace(module, input_shape, leaves=(Site, Affine, Resample), output=output)
    known = module.meta if isinstance(module, fx.GraphModule) else {}  # of one that was written, and is read again
    rewritten = canonical(traced, replace, keeps_smooth=keeps_smooth or "stages" in known)
    network = Network(traced, traced.graph, type(module).__name__)
    network.input_shape, network.notes = tuple(input_shape), (*traced.meta["notes"], *rewritten.notes)
    network.is_replaced = rewritten.replaced
    network.train(traced.training)
    nodes.propagate_shapes(network, input_shape)
    if not rewritten.replaced:
        check_agreement(module, network, input_shape, rewritten.left_out, output, rewritten.approximated)
    network.notes = (*known.get("notes", ()), *network.notes)
    written = None if replace else known.get("stages")  # it has no place for new sites
    declared = written or getattr(module, "stages", None)  # of others' modules it may be anything
    assign_stages(network, declared if is_declaration(declared) else None)
    return network


def network_of(spec: Spec) -> Network:
    """The network of a spec, with fresh weights as torch's generator draws them: what `instrument` makes of its module,
    which is traced once.
    """
    module = spec.module()
    traced = _traced(spec)
    if traced is None:
        return instrument(module, spec.input)
    network = traced.copied()
    network.load_state_dict(module.state_dict())
    return network


@functools.lru_cache(4)  # each has its weights in memory
def _traced(spec: Spec) -> Network | None:
    """None where the network has more than the module's own tensors, which may have been computed of those."""
    with torch.random.fork_rng(devices=()):
        module = spec.module()
        own = copy.deepcopy(module.state_dict())
        network = instrument(module, spec.input)
    tensors = network.state_dict()
    return network if own.keys() == tensors.keys() and all(own[n].equal(t) for n, t in tensors.items()) else None
