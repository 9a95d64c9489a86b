"""Batch-norms folded into the linear layers before them: the same function, fewer ops."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from parelu import graph
from parelu.sites import Network


def fold_batch_norms(network: Network) -> Network:
    """A copy of a network, in evaluation mode, without the batch-norms that follow a convolution or linear layer.

    One whose layer is read by somebody else as well, or called twice, stays; so does one that follows another op, or
    has no running statistics.
    """
    copied = copy.deepcopy(network)
    folded = Network(copied, copied.graph, type(network).__name__).eval()
    folded.input_shape, folded.notes, folded.problems = network.input_shape, network.notes, network.problems
    modules = [str(node.target) for node in folded.graph.nodes if node.op == "call_module"]
    for node, norm in list(graph.calls(folded, graph.BATCH_NORMS)):
        source = node.all_input_nodes[0]
        layer = graph.called_module(source)
        if len(source.users) != 1 or modules.count(str(source.target)) != 1 or norm.running_mean is None:
            continue
        if isinstance(layer, graph.CONVOLUTIONS):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)  # pyright: ignore[reportArgumentType]
        elif isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        folded.set_submodule(str(source.target), fused)
        node.replace_all_uses_with(source)
        folded.graph.erase_node(node)
    folded.recompile()
    folded.delete_all_unused_submodules()
    return folded
