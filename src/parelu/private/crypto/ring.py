"""The ring Z_2^59 of the protocol: elements, fixed point, truncation of shares, and linear maps.

An element is a uint64 below 2^59. Arithmetic runs modulo 2^64 and is reduced by `MASK` where the value matters:
before it is sent, compared or truncated.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.kernels import kernels

BITS = 59  # the largest power-of-two plaintext modulus that SEAL takes is below 2^60
MASK = np.uint64((1 << BITS) - 1)
EXACT = 53  # bits of an integer that float64 holds exactly

Ring = NDArray[np.uint64]


def reduce(x: Ring) -> Ring:
    """The representative in [0, 2^59)."""
    return x & MASK


def encode(values: NDArray[np.int64]) -> Ring:
    """Signed integers as ring elements."""
    return values.astype(np.int64).view(np.uint64) & MASK


def decode(x: Ring) -> NDArray[np.int64]:
    """Ring elements as the signed integers in [−2^58, 2^58)."""
    return (x << np.uint64(64 - BITS)).view(np.int64) >> np.int64(64 - BITS)


def truncate_client(share: Ring, bits: int) -> Ring:
    """The client's share of x divided by 2^bits: local, ±1 off, wrong with probability |x|/2^59 (SecureML, 4.1)."""
    return (share & MASK) >> np.uint64(bits)


def truncate_server(share: Ring, bits: int) -> Ring:
    """The server's share, as `truncate_client`."""
    return (~(((~share + np.uint64(1)) & MASK) >> np.uint64(bits)) + np.uint64(1)) & MASK


def limb_bits(weight: NDArray[np.int64]) -> int:
    """The widest limb, in bits, with which a product-sum of this weight stays exact in float64.

    weight: (outputs, …), integers. Raises OverflowError where not even one bit fits.
    """
    rows = np.abs(weight.reshape(len(weight), -1)).sum(1)
    largest = int(rows.max()) if rows.size else 0
    width = EXACT - max(largest, 1).bit_length()
    if width < 1:
        raise OverflowError("the weights are too large for exact products in float64")
    return min(width, BITS)


class LinearMap:
    """y = W·x over the ring for a secret integer W: a convolution, or a matrix.

    The element's bits are cut into limbs, whose windows become the columns of one exact float64 product of BLAS.

    Args:
        weight: int64, (O, I/groups, kh, kw) for a convolution, (O, I) for a matrix.
        stride, padding: (vertical, horizontal), of a convolution.
    """

    def __init__(
        self,
        weight: NDArray[np.int64],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        groups: int = 1,
    ) -> None:
        self.is_matrix = weight.ndim == 2
        self.stride, self.padding, self.groups = stride, padding, groups
        self.kernel: tuple[int, ...] = (1, 1) if self.is_matrix else weight.shape[2:]
        self.by_input = np.ascontiguousarray(np.moveaxis(weight, 0, -1)).view(np.uint64)
        self.rows = weight.astype(np.float64).reshape(groups, len(weight) // groups, -1)
        self.outputs = len(weight)
        self.count = -(-BITS // limb_bits(weight))
        self.width = -(-BITS // self.count)

    def __call__(self, x: Ring) -> Ring:
        """x: (batch, …) → (batch, …), modulo 2^64."""
        images = np.ascontiguousarray(x.reshape(*x.shape[:2], 1, 1) if self.is_matrix else x)
        sides = zip(images.shape[2:], self.kernel, self.stride, self.padding, strict=True)
        shape = tuple((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in sides)
        batch, channels, outputs = len(images), images.shape[1], self.outputs
        columns = _scratch("columns", channels, *self.kernel, self.count, batch, *shape)
        kernels.limb_columns(images, self.width, self.stride, self.padding, columns)
        products = _scratch("products", outputs, self.count, batch, *shape)
        np.matmul(self.rows, columns.reshape(*self.rows.shape[::2], -1), out=products.reshape(*self.rows.shape[:2], -1))
        out = np.empty((batch, outputs, *shape), np.uint64)
        kernels.join_limbs(products, self.width, out)
        return out.reshape(batch, outputs) if self.is_matrix else out

    def add(self, out: Ring, shape: tuple[int, ...], positions: NDArray[np.int64], values: Ring) -> None:
        """out += W·x for an x that is 0 but for `values` at flat `positions`; a convolution of one group.

        out: (1, O, …), as `self(x)` is; shape: (C, H, W) of x.
        """
        kernels.add_sparse(self.by_input, shape[1:], self.stride, self.padding, positions, values, out[0])


_kept = threading.local()


def _scratch(name: str, *shape: int) -> NDArray[np.float64]:
    """This thread's buffer: fresh memory for the columns would cost as much as filling them."""
    size = math.prod(shape)
    kept: NDArray[np.float64] | None = getattr(_kept, name, None)
    if kept is None or len(kept) < size:
        kept = np.empty(size)
        setattr(_kept, name, kept)
    return kept[:size].reshape(shape)
