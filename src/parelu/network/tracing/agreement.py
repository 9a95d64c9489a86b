"""That a network which was read computes what its module computes."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import nodes
from parelu.network.tracing import trace
from parelu.network.tracing.outputs import chosen

Exact = Mapping[fx.Node, tuple[fx.Node, Callable[[Tensor], Tensor]]]  # a node, what it reads, and its function

_SEED = 1  # of images other than those that a module is traced with
_REMEDY = "write what comes between it and the layer before with modules of torch.nn and functions of torch"


def check_agreement(
    module: nn.Module,
    network: fx.GraphModule,
    input_shape: tuple[int, ...],
    left_out: Callable[[Tensor], Tensor] = lambda logits: logits,
    output: int | str | None = None,
    exact: Exact | None = None,
) -> None:
    """Compare the outputs on two random images, at inference; on meta tensors there is nothing to compare.

    Args:
        left_out: what the module does with the network's logits.
        output: which of the module's outputs is the logits.
        exact: nodes that are a function but for a small error, and are compared as this.

    Raises:
        UserError: they are off by more than `trace.TOLERANCE`; it names the first layer where they are.
    """
    module = trace.unwrapped(module)
    images = nodes.images(module, input_shape, _SEED) * 4 - 2  # also what no image is: below 0, above 1
    if images.is_meta:
        return
    with nodes.at_inference(module), nodes.at_inference(network):
        expected = chosen(module(images.clone()), output)
        found = left_out(_Exactly(network, exact).outputs(images.clone()) if exact else network(images.clone()))
        if _off(found, expected) == 0 or _agree_in_double(module, network, images, left_out, output, exact):
            return
        where = _first_layer_off(module, network, images, exact)
    what = (
        f"its logits are off by {_off(found, expected):.1g} of their largest" if found.shape == expected.shape else ""
    )
    what = what or f"its logits are {tuple(found.shape[1:])} and not {tuple(expected.shape[1:])}"
    raise UserError(
        f"{where or type(module).__name__}: the network is read in another way than it computes ({what}); {_REMEDY}"
    )


def _agree_in_double(
    module: nn.Module,
    network: fx.GraphModule,
    images: Tensor,
    left_out: Callable[[Tensor], Tensor],
    output: int | str | None,
    exact: Exact | None,
) -> bool:
    """Whether only rounding sets them apart, which a deep network with fresh weights can magnify beyond all bounds."""
    try:
        with _doubled(module, network):
            expected = chosen(module(images.double()), output)
            found = left_out(_Exactly(network, exact).outputs(images.double()))
    except (RuntimeError, TypeError):  # it asks for single precision
        return False
    return expected.dtype == torch.float64 and _off(found, expected) == 0


@contextlib.contextmanager
def _doubled(*modules: nn.Module) -> Iterator[None]:
    """With the parameters and buffers, which the modules may share, in double precision."""
    tensors = {id(tensor): tensor for part in modules for tensor in (*part.parameters(), *part.buffers())}
    before = [(tensor, tensor.data) for tensor in tensors.values() if tensor.is_floating_point()]
    try:
        for tensor, values in before:
            tensor.data = values.double()
        yield
    finally:
        for tensor, values in before:
            tensor.data = values


def _off(found: Tensor, expected: Tensor) -> float:
    """Largest error as a part of the largest number; 0 where it is none, infinity where the shapes differ."""
    if found.shape != expected.shape:
        return torch.inf
    scale = float(expected.abs().nan_to_num(posinf=0).amax())
    if trace.are_close(found, expected):
        return 0
    return float((found - expected).abs().amax()) / (scale or 1)


def _first_layer_off(module: nn.Module, network: fx.GraphModule, images: Tensor, exact: Exact | None) -> str:
    """Path of the first layer that both call and that gives other numbers; "" where there is none."""
    expected: dict[str, list[Tensor]] = collections.defaultdict(list)
    kinds = {path: type(part) for path, part in module.named_modules() if not [*part.children()]}

    def keep(path: str, result: Any) -> None:
        expected[path].append(result.clone() if isinstance(result, Tensor) else torch.empty(0))

    hooks = [
        module.get_submodule(path).register_forward_hook(lambda part, given, result, path=path: keep(path, result))
        for path in kinds
    ]
    try:
        module(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return _Compared(network, exact, kinds, expected).first_off(images)


class _Exactly(fx.Interpreter):
    """Runs functions themselves for the nodes that come close to them, and not what those are made of."""

    def __init__(self, network: fx.GraphModule, exact: Exact | None) -> None:
        super().__init__(network, garbage_collect_values=False)
        self._exact = exact or {}
        self._last = self._last_reads(network.graph)

    def outputs(self, images: Tensor) -> Any:
        self.args_iter, self.env = iter((images,)), {}
        result = None
        for node, read in self._last.items():
            self.env[node] = result = self.run_node(node)
            for before in read:
                del self.env[before]
        return result

    def run_node(self, n: fx.Node) -> Any:
        if n not in self._exact:
            return super().run_node(n)
        source, function = self._exact[n]
        return function(self.env[source])

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        return [self._exact[node][0]] if node in self._exact else node.all_input_nodes

    def _last_reads(self, graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
        """The nodes that are run, in order, the output last, and what each is the last to read."""
        read: set[fx.Node] = set()
        last: dict[fx.Node, list[fx.Node]] = {}
        for node in reversed(graph.nodes):
            if node in read or node.op in ("output", "placeholder"):
                last[node] = [before for before in dict.fromkeys(self._reads(node)) if before not in read]
                read.update(last[node])
        return dict(reversed(last.items()))


class _Compared(_Exactly):
    def __init__(
        self, network: fx.GraphModule, exact: Exact | None, kinds: dict[str, type], expected: dict[str, list[Tensor]]
    ) -> None:
        super().__init__(network, exact)
        self._kinds, self._expected, self._off = kinds, expected, ""

    def first_off(self, images: Tensor) -> str:
        self.outputs(images.clone())
        return self._off

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        path = str(n.target)
        if n.op == "call_module" and self._kinds.get(path) is type(nodes.called_module(n)) and self._expected[path]:
            wanted = self._expected[path].pop(0)
            if not self._off and (result.shape != wanted.shape or not trace.are_close(result, wanted)):
                self._off = path
        return result
