"""Networks without numbers in their weights, on torch's meta device: shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_IN_PLACE = {_ATEN.normal_, _ATEN.uniform_, _ATEN.relu_, _ATEN.hardtanh_, _ATEN.add_, _ATEN.mul_}
_OF_EACH_NUMBER = {
    *(_ATEN.relu, _ATEN.hardtanh, _ATEN.sigmoid, _ATEN.sqrt, _ATEN.reciprocal),
    *(_ATEN.add, _ATEN.sub, _ATEN.mul, _ATEN.div),
}
_NORMS = {_ATEN.native_batch_norm, _ATEN._native_batch_norm_legit}


class ShapesAlone(TorchDispatchMode):
    """While entered, the commonest operators on the meta device give a tensor of their first argument's shape.

    torch finds these shapes out by functions of Python, which run several operators each and import its compiler.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # its guard of modes imports the compiler as well

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        x, what = args[0] if args else None, func.overloadpacket
        if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
            return func(*args, **(kwargs or {}))
        if what in _NORMS:
            return x.new_empty(x.shape), x.new_empty(0), x.new_empty(0)  # their statistics are read in training
        if func is _ATEN.mean.dim:
            return _ATEN.sum.dim_IntList(*args, **(kwargs or {}))
        if func is _ATEN.addmm.default and x.shape == args[2].shape[1:]:
            return _ATEN.mm(args[1], args[2])
        if what in _IN_PLACE and _is_like(x, args[1:]):
            return x
        if what in _OF_EACH_NUMBER and _is_like(x, args[1:]):
            return x.new_empty(x.shape)
        return func(*args, **(kwargs or {}))


def _is_like(x: Tensor, others: Sequence[Any]) -> bool:
    """Whether what is computed of these number by number has the shape and type of x."""
    return all(y.dtype == x.dtype and _is_spread(y.shape, x.shape) for y in others if isinstance(y, Tensor))


def _is_spread(small: Sequence[int], large: Sequence[int]) -> bool:
    missing = len(large) - len(small)
    return missing >= 0 and all(a in (1, b) for a, b in zip(small, large[missing:], strict=True))
