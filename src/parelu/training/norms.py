"""Batch-norms over the images of all ranks, in the place of those that see their own alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.training import ranks


@contextmanager
def shared_statistics(network: nn.Module) -> Iterator[None]:
    """In training, batch-norms normalise by the statistics over all ranks' images, and keep those.

    They stay the same modules, with the same weights and buffers, and are what they were when the block ends.
    """
    if ranks.size() == 1:
        yield
        return
    plain = [module for module in network.modules() if type(module) in _SHARED]
    for module in plain:
        module.__class__ = _SHARED[type(module)]
    try:
        yield
    finally:
        for module in plain:
            module.__class__ = _PLAIN[type(module)]


class _Shared(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        mean, var, number = statistics(input.detach().float())
        if self.training and self.running_mean is not None and self.running_var is not None:
            self._keep(mean, var * (number / (number - 1)))
        return _Normalise.apply(input, mean, (var + self.eps).rsqrt(), self.weight, self.bias, number)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def _keep(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # pyright: ignore[reportArgumentType]
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(unbiased, weight)


class _Shared1d(_Shared, nn.BatchNorm1d): ...


class _Shared2d(_Shared, nn.BatchNorm2d): ...


_SHARED: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: _Shared1d, nn.BatchNorm2d: _Shared2d}
_PLAIN = {shared: plain for plain, shared in _SHARED.items()}


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all ranks' images: mean and biased variance of each channel, and how many numbers they are of; all (C,).

    x: (N, C, …). Each rank's squares are centred by its own mean, and moved to that of all (Chan et al. 1979, eq. 2.1):
    E[x²] − E[x]² loses all digits where the mean is large.
    """
    over, own = [0, *range(2, x.dim())], x.numel() // x.shape[1]
    center = x.sum(over) / max(1, own)
    spread = (x - _wide(center, x)).square_().sum(over)
    numbers, centers, spreads = ranks.gathered(torch.stack([torch.full_like(center, own), center, spread])).unbind(1)
    number = numbers.sum(0)
    mean = (numbers * centers).sum(0) / number
    return mean, (spreads + numbers * (centers - mean).square()).sum(0) / number, number


class _Normalise(torch.autograd.Function):
    """(x − mean)·inverse·weight + bias; mean and inverse, the inverse deviation, follow from all ranks' x.

    With x̂ the normalised x and g the gradient at the output, ∂L/∂x = weight·inverse·(g − E[g] − x̂·E[g·x̂]), both means
    over all ranks (Ioffe & Szegedy 2015, section 3). The gradients of weight and bias are of this rank's images: the
    training adds them up with those of all other weights.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None, number: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, mean, inverse, weight, number)
        scale = inverse if weight is None else inverse * weight
        y = (x.to(scale.dtype) - _wide(mean, x)).mul_(_wide(scale, x))
        return (y if bias is None else y.add_(_wide(bias, x))).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, number = ctx.saved_tensors
        over, g = [0, *range(2, x.dim())], gradients[0].to(mean.dtype)
        normal = (x.to(mean.dtype) - _wide(mean, x)) * _wide(inverse, x)
        of_bias, of_weight = g.sum(over), (g * normal).sum(over)
        both = torch.stack([of_bias, of_weight])
        ranks.add_up(both)
        rest = g - _wide(both[0] / number, x) - normal * _wide(both[1] / number, x)
        scale = inverse if weight is None else inverse * weight
        own = (None, None) if weight is None else (of_weight, of_bias)
        return (rest * _wide(scale, x)).to(x.dtype), None, None, *own, None


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) → (C, 1, …), which broadcasts over x, (N, C, …)."""
    return channels.view(-1, *[1] * (x.dim() - 2))
