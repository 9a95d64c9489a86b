"""What the engines compute with: images as integers, and a secret op's integers as a map and a summand of the ring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parelu.private.crypto.ring import Elements, LinearMap, Ring, encode
from parelu.private.lowering.lowered import Integers
from parelu.private.lowering.ops import Conv, Linear, Op
from parelu.private.lowering.program import Program


def encode_images(program: Program, images: ArrayLike) -> NDArray[np.int64]:
    """uint8 (N, C, H, W), also a tensor → the input's integers, normalised in float32 as the network was trained."""
    mean, std = (program.preprocessing[name] for name in ("mean", "std"))
    x = normalise(np.asarray(images, np.uint8), mean, std).astype(np.float64)
    return np.rint(x * 2.0**program.fraction).astype(np.int64)


def normalise(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[Any]:
    """float32, to the bit as `network.preprocessing` has it: (images / 255 - mean) / std, in its two steps."""
    centre, width = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    return images.astype(np.float32) * (1 / (255 * width)) - centre / width


def linear_map(op: Op, integers: Integers, ring: Ring) -> Callable[[Elements], Elements]:
    """W of a secret op as a function of (batch, …) elements, right in the ring; the bias is left out."""
    match op:
        case Conv():
            return LinearMap(integers["weight"], op.stride, op.padding, op.groups, ring)
        case Linear():
            return LinearMap(integers["weight"], ring=ring)
        case _:
            factor = encode(integers["weight"])
            return lambda x: x * factor


def bias_of(op: Op, integers: Integers) -> NDArray[np.int64]:
    """As it is added to (batch, …)."""
    bias = integers["bias"]
    return bias[:, None, None] if isinstance(op, Conv) and bias.ndim == 1 else bias
