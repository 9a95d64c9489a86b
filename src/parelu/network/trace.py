"""Tracing: a module as an fx graph, the shape of every tensor in it, and where a call stands in the module tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from parelu.errors import UserError


class _Tracer(fx.Tracer):
    """fx's tracer that keeps `Site`s whole and knows the module it is in when tracing fails."""

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = leaves
        self.path = ""
        self.root_problem: Exception | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        outer, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = outer  # not in a finally: after an error the path names the module that raised it
        return result


def trace(module: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """The module as an fx graph; raises `UserError` with the module path where control flow depends on data."""
    if not isinstance(module, nn.Module):
        raise UserError(f"the model is a {type(module).__name__}; give a torch.nn.Module")
    tracer = _Tracer(leaves)
    try:
        graph = tracer.trace(module)
    except Exception as error:  # fx raises whatever the traced code raises
        where = tracer.path or type(module).__name__
        raise UserError(
            f"{where}: cannot be traced ({str(error).splitlines()[0]}); make its forward free of control flow "
            "that depends on tensor values, or of calls outside torch"
        ) from error
    return fx.GraphModule(tracer.root, graph, type(module).__name__)


def owner(node: fx.Node) -> str:
    """Path of the module whose forward made this call; "" for the network itself."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def called_module(node: fx.Node) -> nn.Module | None:
    if node.op != "call_module":
        return None
    module = node.graph.owning_module
    assert module is not None
    return module.get_submodule(str(node.target))


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = tuple(result.shape[1:])
        elif n.op != "output":
            n.meta["number"] = result
        return result


def propagate_shapes(network: fx.GraphModule, input_shape: tuple[int, ...]) -> torch.Tensor:
    """Write every tensor's shape without the batch into `node.meta["shape"]`; returns the output of that run.

    The run is one random image in evaluation mode without gradients; on meta tensors nothing is computed.
    """
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    generator = None if first.is_meta else torch.Generator(first.device).manual_seed(0)
    image = torch.rand((1, *input_shape), generator=generator, device=first.device, dtype=first.dtype)
    was_training = [m for m in network.modules() if m.training]
    network.eval()
    try:
        with torch.no_grad():
            output = _Shapes(network).run(image)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the network does not take an input of shape {'x'.join(map(str, input_shape))}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        for m in was_training:
            m.training = True
    if not isinstance(output, torch.Tensor):
        raise UserError(
            f"the network returns a {type(output).__name__}, not one tensor (batch, classes); wrap it in a module "
            "that returns the logits alone"
        )
    return output


def output_shape(network: fx.GraphModule) -> tuple[int, ...]:
    """Of one image's output, where `propagate_shapes` wrote shapes."""
    return next(node.meta["shape"] for node in reversed(network.graph.nodes) if node.op == "output")


def longest_path(network: fx.GraphModule, weight: Callable[[fx.Node], int]) -> int:
    """Largest sum of `weight` over a path from the input to the output."""
    best: dict[fx.Node, int] = {}
    for node in network.graph.nodes:
        before = max((best[n] for n in node.all_input_nodes), default=0)
        best[node] = before + weight(node)
    return max(best.values(), default=0)


def calls(network: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[fx.Node, Any]]:
    """Each call of a module of one of these kinds, in order of execution, with the module."""
    for node in network.graph.nodes:
        module = called_module(node)
        if isinstance(module, kinds):
            yield node, module
