"""What the nodes of a network's graph tell: whose call each is, of which module, and the shape of its tensor."""

from __future__ import annotations

import contextlib
import keyword
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError, shown

BATCH = 2  # images a module is traced with
APART = "write it for each image by itself, with dimension 0 the images'"
_WORD = re.compile(r"[\w-]+")
_TAKEN = {  # by what traced networks have themselves
    *vars(fx.GraphModule),
    *vars(nn.Module()),
    *("forward", "meta", "self", "sites", "input_shape", "notes", "copied"),
}


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


def place(node: fx.Node) -> str:
    path = str(node.target) if node.op == "call_module" else owner(node) or "network"
    module = called_module(node)
    return f"{path}: {type(module).__name__ if module else getattr(node.target, '__name__', node.target)}"


def check_names(paths: Iterable[str]) -> None:
    """Raises `UserError` for the path of a part that a traced network, and the code that torch writes of it, cannot
    have: no words, words of Python, what torch's or our networks have themselves.
    """
    for path in paths:
        first, *_ = names = path.split(".")
        odd = next((name for name in names if not _WORD.fullmatch(name) or keyword.iskeyword(name)), "")
        odd = odd or next((name for name in names if name.startswith("__")), "")
        odd = odd or (first if first in _TAKEN else "")
        if odd:
            raise UserError(
                f"{shown(path)}: a part of a network cannot be called {shown(odd, 40)!r}; give it another name, of "
                "letters, digits, underscores and hyphens"
            )


@contextlib.contextmanager
def at_inference(module: nn.Module) -> Iterator[None]:
    """In evaluation mode without gradients; the mode of each part is put back."""
    modes = {m: m.training for m in module.modules() if hasattr(m, "training")}  # a frozen script has none
    with contextlib.suppress(NotImplementedError):  # of an exported program, whose mode is fixed
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def images(module: nn.Module, input_shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A batch of random images, of the module's kind and where its weights are."""
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = None if first.is_meta else torch.Generator(first.device).manual_seed(seed)
    return torch.rand((BATCH, *input_shape), generator=generator, device=first.device, dtype=first.dtype)


class _Shapes(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False  # an error is one line

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            if n.op != "get_attr" and result.shape[:1] != (BATCH,):
                raise UserError(f"{place(n)} gives {tuple(result.shape)} for {BATCH} images; {APART}")
            n.meta["shape"] = tuple(result.shape[1:])
        elif n.op != "output":
            n.meta.setdefault("number", result)
        return result


def propagate_shapes(network: fx.GraphModule, input_shape: tuple[int, ...]) -> Tensor:
    """Write every tensor's shape without the batch into `node.meta["shape"]`; returns the output of that run.

    The run is two random images in evaluation mode without gradients; on meta tensors nothing is computed.
    """
    with at_inference(network):
        try:
            return _Shapes(network).run(images(network, input_shape))
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(unfitting(input_shape, error)) from error


def unfitting(input_shape: tuple[int, ...], error: Exception) -> str:
    return (
        f"the network does not take an input of shape {'x'.join(map(str, input_shape))}: {str(error).splitlines()[0]}"
    )


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
