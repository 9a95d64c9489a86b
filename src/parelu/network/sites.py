"""Sites: each activation of a network as a module of its own.

A site computes `y = mask·relu(x) + (1 − mask)·(c0 + c1·x + c2·x²)`, mask over the feature map and one polynomial
a channel. It knows no method and no training.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.network import nodes

IDENTITY = (0.0, 1.0, 0.0)
CAP = "_cap"  # behind a site's name: the second one of an activation that is bounded above too, such as ReLU6


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

    @property
    def activation(self) -> str:
        """Name of the first site of the activation that it is part of."""
        return self.name.removesuffix(CAP)

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
        floor, c0, c1, c2 = (tensor.to(x) for tensor in (self.floor, self.c0, self.c1, self.c2))
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
        is_replaced: whether that makes it another function than the module, beyond small errors.
    """

    input_shape: tuple[int, ...]
    notes: tuple[str, ...]
    is_replaced: bool = False

    @property
    def sites(self) -> Mapping[str, Site]:
        """Site name → site, in order of execution."""
        return {site.name: site for _, site in nodes.calls(self, (Site,))}

    def copied(self) -> Network:
        """A network of its own with the same weights and plan."""
        # Of some ten dictionaries of each module most are empty, and to copy those takes most of the time.
        parts = (part for module in self.modules() for part in vars(module).values())
        memo = {id(part): type(part)() for part in parts if type(part) in (dict, OrderedDict) and not part}
        root = nn.Module()
        for kind in ("_modules", "_parameters", "_buffers"):
            setattr(root, kind, copy.deepcopy(getattr(self, kind), memo))
        network = Network(root, copy.deepcopy(self.graph), type(self).__name__)
        network.input_shape, network.notes, network.training = self.input_shape, self.notes, self.training
        network.is_replaced = self.is_replaced
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
