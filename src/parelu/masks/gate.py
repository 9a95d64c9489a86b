"""Gates: sites whose mask is being learnt.

A gate computes `y = a·relu(x) + (1 − a)·(c0 + c1·x + c2·x²)` with a real `a` per position, and gives ∂L/∂a, the sum
over the batch of ∂L/∂y·(relu(x) − c0 − c1·x − c2·x²). What `a` means and how it moves is the method's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.errors import shown
from parelu.masks.polynomials import dapa, public_dapa
from parelu.network.sites import Site
from parelu.training import ranks

STATISTICS_IMAGES = 64  # of a batch: a channel's mean and deviation are over all positions of so many images
STATISTICS_WEIGHT = 0.1  # of a new batch in the running statistics
REFIT, REFITS_END = 10, 508  # trained polynomials are fitted anew every so many batches, up to this one
SQUARE = 0.1  # of a trained c2 in the polynomial: --scale_x2 of AutoReP's scripts/cifar100.sh


Fit = Literal["paper", "public"]


class Gate(nn.Module):
    """A site under learning, in its place in the network.

    Attributes:
        open: (C, H, W), a: 1 where the ReLU stands, 0 where the polynomial does.
        allowed: bool, (C, H, W): where a ReLU may stand, which is where the site had one.
        coefficients: (3, C), the polynomial's c0, c1, c2, unless they are `trained`.
        mean, std: (C,), of the inputs, where `follow_inputs` was called; the variance in std where `trained` is there.
        trained: (3, C), weights in the coefficients' place, c2 as a multiple of `SQUARE`; None where there are none.
    """

    open: nn.Parameter
    coefficients: Tensor
    allowed: Tensor
    mean: Tensor
    std: Tensor
    batches: Tensor
    trained: nn.Parameter | None

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.name, self.stage, self.shape = site.name, site.stage, site.shape
        self.open = nn.Parameter(site.mask.float())
        self.register_buffer("allowed", site.mask.clone())
        self.register_buffer("coefficients", site.coefficients.clone())
        self.degree, self.wide, self.trained = 0, 1.0, None

    def follow_inputs(self, degree: int, wide: float = 1.0, fit: Fit = "paper") -> None:
        """Fit the polynomial to the running mean and `wide` standard deviations of each channel's input in training.

        fit: "public" makes it weights, which are fitted now and then at first (AutoReP's public code).
        """
        self.degree, self.wide = degree, wide
        device = self.open.device
        self.register_buffer("mean", torch.zeros(self.shape[0], device=device))
        self.register_buffer("std", torch.ones(self.shape[0], device=device))
        self.register_buffer("batches", torch.tensor(0, device=device))
        if fit == "public":
            self.trained = nn.Parameter(self.coefficients.clone())

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        x = x[: ranks.count(STATISTICS_IMAGES)].float()
        over = [0, *range(2, x.dim())]
        mean = ranks.mean(x, over)
        centred = x - mean.view(-1, *[1] * (x.dim() - 2))
        std = ranks.mean(centred.square_(), over)  # torch.std_mean takes ten times as long on a CPU
        std = std if self.trained is not None else std.sqrt()
        self.batches += 1
        weight = torch.clamp(1 / self.batches, min=STATISTICS_WEIGHT)  # the plain mean of the first batches
        self.mean.lerp_(mean, weight)
        self.std.lerp_(std, weight)
        if self.trained is None:
            self.coefficients.copy_(dapa(self.mean, self.wide * self.std, self.degree))
        else:  # nothing is read of the device
            is_due = (self.batches <= REFITS_END) & (self.batches % REFIT == 0)
            self.trained.copy_(torch.where(is_due, public_dapa(self.mean, self.std, self.degree), self.trained))

    def polynomial(self) -> Tensor:
        """(3, C): c0, c1, c2 as they are now."""
        if self.trained is None:
            return self.coefficients
        return torch.cat([self.trained[:2], SQUARE * self.trained[2:]])

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, C, H, W) → the same shape."""
        if self.training and self.degree:
            self._fit(x)
        if self.trained is not None:
            return fused(x.device.type)(x, self.open, self.polynomial())
        if x.device.type == "cpu" and x.dtype == torch.float32 and loops():
            return _Gated.apply(x, self.open, self.coefficients)  # pyright: ignore[reportReturnType]
        return fused(x.device.type)(x, self.open, self.coefficients)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.shape}"


def gated(x: Tensor, open: Tensor, coefficients: Tensor) -> Tensor:
    """a·relu(x) + (1 − a)·p(x) by torch's own operations, on any device; x: (batch, C, H, W), open: (C, H, W)."""
    c0, c1, c2 = (c.view(-1, *[1] * (x.dim() - 2)).to(x.dtype) for c in coefficients)
    a = open.to(x.dtype)
    return a * F.relu(x) + (1 - a) * ((c2 * x + c1) * x + c0)


@functools.cache
def fused(device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`gated`; on CUDA as one kernel forward and few backward, where torch can compile it: it is bound by memory.

    It is tried once, forward and backward: whatever fails there leaves torch's own operations.
    """
    if device != "cuda" or find_spec("triton") is None:
        return gated
    compiled = torch.compile(gated, dynamic=True)
    try:
        _try(compiled, device)
    except Exception as error:  # of a compiler, anything
        warnings.warn(f"gates are not compiled here, and take longer ({shown(str(error), 80)})", stacklevel=2)
        return gated
    return compiled


def _try(compute: Callable[[Tensor, Tensor, Tensor], Tensor], device: str) -> None:
    """Raises where a step with it fails, or gives something else than `gated`."""
    x = torch.linspace(-2, 2, 96, device=device).view(2, 3, 4, 4)
    coefficients = torch.linspace(-1, 1, 9, device=device).view(3, 3)
    found = []
    for one in (compute, gated):
        a, z = (t.clone().requires_grad_() for t in (torch.full((3, 4, 4), 0.25, device=device), x))
        y = one(z, a, coefficients)
        found.append([y, *torch.autograd.grad(y.square().sum(), (a, z))])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@functools.cache
def loops() -> Any:
    """The compiled loops, or None where numba is missing; it is imported when a gate first needs it."""
    try:
        from parelu.masks import gate_loops
    except ImportError:
        return None
    return gate_loops


class _Gated(torch.autograd.Function):
    """`gated` on the CPU: one pass over memory forward and one backward, which reads x with 8 significant bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, open: Tensor, coefficients: Tensor) -> Tensor:
        if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
            x = x.contiguous()
        y, rows = torch.empty_like(x), _rows(x)
        ctx.channels_last, ctx.shape = _is_channels_last(x), open.shape
        ctx.stored = _as_stored(open, coefficients, ctx.channels_last)
        rounded = torch.empty(rows.shape, dtype=torch.uint16)
        loops().forward(rows, rows.view(np.uint32), *ctx.stored, _rows(y), rounded.numpy())
        ctx.save_for_backward(rounded)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (rounded,) = ctx.saved_tensors
        g = gradients[0].contiguous(memory_format=torch.channels_last if ctx.channels_last else torch.contiguous_format)
        dx, da = torch.empty_like(g), np.zeros(rounded.shape[1], np.float32)
        loops().backward(rounded.numpy(), *ctx.stored, _rows(g), _rows(dx), da)
        return dx, _as_shaped(da, ctx.shape, ctx.channels_last), None


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _rows(x: Tensor) -> np.ndarray:
    """(batch, C·H·W), a view in the order in which the numbers are stored."""
    return (x.detach().movedim(1, -1) if _is_channels_last(x) else x.detach()).numpy().reshape(len(x), -1)


def _as_stored(open: Tensor, coefficients: Tensor, channels_last: bool) -> list[np.ndarray]:
    """Copies of `open` and of each coefficient, (C·H·W,), in the order in which a row of the batch is stored."""
    wide = [c.view(-1, *[1] * (open.dim() - 1)).expand(open.shape) for c in coefficients]
    order = [t.detach().movedim(0, -1) if channels_last else t.detach() for t in (open, *wide)]
    return [t.clone(memory_format=torch.contiguous_format).numpy().reshape(-1) for t in order]


def _as_shaped(values: np.ndarray, shape: torch.Size, channels_last: bool) -> Tensor:
    """The inverse of `_as_stored` for one array."""
    if not channels_last:
        return torch.from_numpy(values).view(shape)
    return torch.from_numpy(values).view(*shape[1:], shape[0]).movedim(-1, 0)
