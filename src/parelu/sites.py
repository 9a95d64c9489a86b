"""Sites: every activation call of a network, found by tracing and made a module of its own.

A site computes `y = mask·relu(x) + (1 − mask)·(c0 + c1·x + c2·x²)`, mask over the feature map and one polynomial
a channel. It knows no method and no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu import graph
from parelu.errors import UserError

IDENTITY = (0.0, 1.0, 0.0)


def _channels_last(x: Tensor) -> Tensor:
    """The same values, stored so that they broadcast fast over a channels_last batch."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() == 3 else x


def _pass_above(y: Tensor, floor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where y > floor, else 0; written over y − floor, since memory costs more here than arithmetic."""
    above = y - floor
    return torch.ops.aten.threshold_backward.grad_input(gradient, above, 0, grad_input=above)


def _horner(x: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    """c0 + (c1 + c2·x)·x, stored as x is: else the first operand's order would decide."""
    return torch.addcmul(c1, x, c2, out=torch.empty_like(x)).mul_(x).add_(c0)


class _Masked(torch.autograd.Function):
    """relu where `floor` is 0, identity where it is −inf: one pass forward, two backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: Tensor) -> Tensor:
        y = torch.clamp(x, min=floor)
        ctx.save_for_backward(y, floor)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, floor = ctx.saved_tensors
        return _pass_above(y, floor, gradients[0]), None


class _MaskedPolynomial(torch.autograd.Function):
    """As `_Masked`, then the polynomial `c0 + c1·z + c2·z²`, which is (0, 1, 0) where the ReLU stays."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
        z = torch.clamp(x, min=floor)
        ctx.save_for_backward(z, floor, c1, c2)
        return _horner(z, c0, c1, c2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, floor, c1, c2 = ctx.saved_tensors
        slope = torch.addcmul(c1, z, c2, value=2, out=torch.empty_like(z)).mul_(gradients[0])
        return _pass_above(z, floor, slope), None, None, None, None


class _Polynomial(torch.autograd.Function):
    """c0 + c1·x + c2·x²."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
        ctx.save_for_backward(x, c1, c2)
        return _horner(x, c0, c1, c2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        x, c1, c2 = ctx.saved_tensors
        slope = torch.addcmul(c1, x, c2, value=2, out=torch.empty_like(x))
        return slope.mul_(gradients[0]), None, None, None


class Site(nn.Module):
    """One activation of a network.

    Args:
        name: unique in the network, derived from the module path of the call.
        shape: of the feature map without the batch, (C, H, W) or (C,).

    Attributes:
        mask: bool, `shape`; True where the ReLU stays.
        coefficients: float, (3, C): c0, c1, c2 of the polynomial where it does not.
        stage: "stem", "S1", …; block: number of the residual block in the stage, from 0;
        after_addition: whether the input is the sum that ends a residual block.

    The mask and the coefficients belong to the plan, not to the weights: `state_dict` leaves them out.
    """

    mask: Tensor
    coefficients: Tensor
    floor: Tensor
    c0: Tensor
    c1: Tensor
    c2: Tensor

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.name, self.shape = name, shape
        self.stage, self.block, self.after_addition = "", 0, False
        for buffer in ("mask", "coefficients", "floor", "c0", "c1", "c2"):
            self.register_buffer(buffer, torch.empty(0), persistent=False)
        self.assign(torch.ones(shape, dtype=torch.bool))

    def assign(self, mask: Tensor, coefficients: Tensor | tuple[float, float, float] = IDENTITY) -> None:
        """Set the mask, bool of `shape`, and the polynomial, (3, C) or one triple for all channels."""
        c = torch.as_tensor(coefficients, dtype=torch.float32)
        if c.dim() == 1:
            c = c[:, None].expand(3, self.shape[0])
        if tuple(mask.shape) != self.shape or mask.dtype != torch.bool:
            raise ValueError(f"site {self.name}: mask is {mask.dtype} {tuple(mask.shape)}, not bool {self.shape}")
        if tuple(c.shape) != (3, self.shape[0]) or not bool(torch.isfinite(c).all()):
            raise ValueError(f"site {self.name}: coefficients must be finite, of shape (3, {self.shape[0]})")
        device = self.mask.device
        self.mask, self.coefficients = mask.detach().clone().to(device), c.detach().clone().to(device)
        self.relus = int(mask.count_nonzero())
        self.is_identity_elsewhere = bool((c == torch.tensor(IDENTITY)[:, None]).all())
        self._prepare()

    def _prepare(self) -> None:
        """Tensors the forward reads, spread over the map so that it does no work that depends on the mask alone."""
        if self.relus in (0, self.mask.numel()) and self.is_identity_elsewhere:
            return
        self.floor = _channels_last(torch.where(self.mask, 0.0, -torch.inf))
        if not self.is_identity_elsewhere:
            for name, at_relu, c in zip(("c0", "c1", "c2"), IDENTITY, self.coefficients, strict=True):
                wide = c.view(-1, *[1] * (len(self.shape) - 1)).expand(self.shape)
                setattr(self, name, _channels_last(torch.where(self.mask, torch.tensor(at_relu), wide)))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, *shape) → the same shape."""
        if self.relus == self.mask.numel():
            return F.relu(x)
        if self.is_identity_elsewhere and not self.relus:
            return x
        floor, c0, c1, c2 = (tensor.to(x.dtype) for tensor in (self.floor, self.c0, self.c1, self.c2))
        if self.is_identity_elsewhere:
            return _Masked.apply(x, floor)  # pyright: ignore[reportReturnType]
        if self.relus:
            return _MaskedPolynomial.apply(x, floor, c0, c1, c2)  # pyright: ignore[reportReturnType]
        return _Polynomial.apply(x, c0, c1, c2)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        return f"{self.name}, {self.relus}/{self.mask.numel()} ReLUs"


class Network(fx.GraphModule):
    """A traced network whose activations are all `Site`s.

    Attributes:
        input_shape: (C, H, W) of one image.
        notes: what instrumenting changed, one sentence each.
        problems: ops that have no place in a private network.
    """

    input_shape: tuple[int, ...]
    notes: tuple[str, ...]
    problems: tuple[graph.Problem, ...]

    @property
    def sites(self) -> Mapping[str, Site]:
        """Site name → site, in order of execution."""
        return {site.name: site for _, site in graph.calls(self, (Site,))}


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
    traced = graph.trace(module, leaves=(Site,))
    expected = graph.propagate_shapes(traced, input_shape)
    notes = list(_replace_calls(traced))
    traced.graph.lint()
    network = Network(traced, traced.graph, type(module).__name__)
    network.input_shape, network.notes = tuple(input_shape), tuple(notes)
    network.train(module.training)
    found = (graph.problem(node, (Site,)) for node in network.graph.nodes)
    network.problems = tuple(dict.fromkeys(p for p in found if p))
    comparable = expected.device.type != "meta" and not notes and not network.problems
    if comparable and not torch.equal(expected, graph.propagate_shapes(network, input_shape)):
        raise UserError(
            f"{type(module).__name__}: an in-place activation changes a tensor that is read through another name; "
            "write the activation out of place (inplace=False)"
        )
    declared = getattr(module, "stages", None)  # of others' modules it may be anything
    assign_stages(network, declared if isinstance(declared, dict) else None)
    return network


@contextmanager
def observed(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Name → the output of each module's latest call inside the `with` block."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.__setitem__(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _replace_calls(traced: fx.GraphModule) -> Iterator[str]:
    """Put a `Site` in the place of each activation call; yields a note for each that is not a plain ReLU."""
    found = [(node, graph.called_module(node)) for node in traced.graph.nodes if graph.is_relu(node)]
    for node, module in found:
        name = _unused(traced, str(node.target) if module is not None else _join(graph.owner(node), "relu"))
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
    taken = {path for path, module in traced.named_modules() if not isinstance(module, graph.RELU_MODULES)}
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


def assign_stages(network: Network, declared: Mapping[str, str | tuple[str, ...]] | None) -> None:
    """Give each site its stage and its block.

    `declared` maps a stage to the module path that its sites stand under, where each module below is a block; or to the
    sites' own paths, whose parents are the blocks. Without it, the stem is what comes before the first fork of a
    residual network, a stage is a run of sites of equal spatial size, and a block ends with the site behind an
    addition.
    """
    placed = _declared(network, declared) if declared is not None else _found(network)
    blocks: dict[str, list[str]] = {}
    for node, site in graph.calls(network, (Site,)):
        site.stage, block = placed[site.name]
        known = blocks.setdefault(site.stage, [])
        known += [block] if block not in known else []
        site.block, site.after_addition = known.index(block), _follows_addition(node)


def _declared(network: Network, stages: Mapping[str, str | tuple[str, ...]]) -> dict[str, tuple[str, str]]:
    """Site → its stage and its block there."""
    placed = {}
    declared = [(stage, path) for stage, paths in stages.items()
                for path in ([paths] if isinstance(paths, str) else paths)]  # fmt: skip
    for name in network.sites:
        inside = [(stage, path) for stage, path in declared if name == path or name.startswith(path + ".")]
        if not inside:
            raise ValueError(f"site {name} stands under none of the declared stages {dict(stages)}")
        stage, path = inside[0]
        below = name[len(path) + 1 :]
        placed[name] = stage, below.split(".")[0] if below else name.rpartition(".")[0]
    return placed


def _found(network: Network) -> dict[str, tuple[str, str]]:
    """Site → its stage and its block there, of a network that declares nothing."""
    fork = next((n for n in network.graph.nodes if sum("shape" in u.meta for u in n.users) > 1), None)
    placed, in_stem, run, size, block = {}, fork is not None, 0, None, 0
    for node in network.graph.nodes:
        site = graph.called_module(node)
        if isinstance(site, Site):
            if not in_stem:
                run += site.shape[1:] != size
                size = site.shape[1:]
            placed[site.name] = "stem" if in_stem else f"S{run}", str(block)
            block += _follows_addition(node)
        in_stem = in_stem and node is not fork
    return placed


def _follows_addition(node: fx.Node) -> bool:
    """Whether a site's input is a sum, seen through batch-norms and what else keeps the map as it is."""
    source = node.all_input_nodes[0]
    while isinstance(graph.called_module(source), (*graph.BATCH_NORMS, nn.Identity, nn.Dropout, nn.Dropout2d)):
        source = source.all_input_nodes[0]
    return graph.is_addition(source)
