"""What a network of our vocabulary calls that torch has no one function for: selections, resamplings, factors.

Each is linear, has no activation, and maps each image of a batch by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

ZERO = -1  # an index of `select` that reads nothing: a zero


def select(x: Tensor, axis: int, indices: Sequence[int]) -> Tensor:
    """What `indices` name along one dimension; ZERO for zeros: slices, paddings, shuffles, repetitions, flips.

    x: (batch, …); axis: from 0, without the batch → the same shape but for `len(indices)` there.
    """
    if has_torch_function_unary(x):  # of a tracer: one call in its graph
        return handle_torch_function(select, (x,), x, axis, indices)
    where = torch.tensor(indices, device=x.device)
    found = x.index_select(axis + 1, where.clamp(min=0))
    if ZERO not in indices:
        return found
    kept = (where >= 0).view(-1, *[1] * (x.dim() - axis - 2))
    return torch.where(kept, found, torch.zeros((), dtype=x.dtype, device=x.device))


class Resample(nn.Module):
    """A fixed matrix along one dimension: uneven averages, interpolation. No training changes it.

    Args:
        axis: from 0, without the batch.
        matrix: (outputs, inputs), float.
    """

    matrix: Tensor

    def __init__(self, axis: int, matrix: Tensor) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, …) → the same shape but for `outputs` at the axis."""
        return (x.movedim(self.axis + 1, -1) @ self.matrix.to(x).T).movedim(-1, self.axis + 1)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, {self.matrix.shape[1]} → {self.matrix.shape[0]}"


class Affine(nn.Module):
    """x·weight + bias, a number a channel or a position: layer scales, biases on maps, normalisation in the network.

    Args:
        shape: of weight and bias, which broadcast over the tensor: (C, 1, 1), or all of (C, H, W); (C,) on a vector.
        trained: which of the two are parameters; the other is a buffer, which no training changes.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, shape: tuple[int, ...], trained: Collection[str] = ("weight", "bias")) -> None:
        super().__init__()
        for name, values in (("weight", torch.ones(shape)), ("bias", torch.zeros(shape))):
            if name in trained:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, C, H, W) or (batch, C) → the same shape."""
        return x * self.weight + self.bias

    @property
    def trained(self) -> tuple[str, ...]:
        """Which of weight and bias are parameters."""
        return tuple(self._parameters)

    def extra_repr(self) -> str:
        return "x".join(map(str, self.weight.shape))
