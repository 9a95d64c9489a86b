"""The ring Z_2^bits of a program: fixed point, truncation of shares, and linear maps.

An element is held as a uint64, of which the lowest `bits` bits count. Arithmetic runs modulo 2^64, a multiple of every
ring's modulus, and so do masks, transfers and keys: they know no ring. The ring matters where a share is truncated,
given to a circuit as bits, or revealed: there it is reduced first, since its bits above the ring hold carries that
depend on secrets. Every other element that a party sends is masked by one that is uniform modulo 2^64.
"""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.kernels import kernels

WIDTHS = (59, 64)
EXACT = 53  # bits of the magnitude of an integer that float64 holds exactly

Elements = NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Ring(Encodable, kind="ring"):
    """Z_2^bits; bits: one of `WIDTHS`. Raises ValueError for another."""

    bits: int = 64

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise ValueError(f"a ring of {self.bits} bits; known are {' and '.join(map(str, WIDTHS))}")

    def reduce(self, x: Elements) -> Elements:
        """The representatives in [0, 2^bits)."""
        return x & np.uint64((1 << self.bits) - 1)

    def decode(self, x: Elements) -> NDArray[np.int64]:
        """The signed integers in [−2^(bits − 1), 2^(bits − 1)): the inverse of `encode`."""
        return (x << np.uint64(64 - self.bits)).view(np.int64) >> np.int64(64 - self.bits)

    def truncate_client(self, share: Elements, cut: int) -> Elements:
        """The client's share of x divided by 2^cut, cut from 1 to bits − 1: local, less than 1 off, wrong with
        probability |x|/2^bits (SecureML, section 4.1)."""
        return self.reduce(share) >> np.uint64(cut)

    def truncate_server(self, share: Elements, cut: int) -> Elements:
        """The server's share, as `truncate_client`."""
        return self.reduce(_minus(self.reduce(_minus(share)) >> np.uint64(cut)))


WIDE = Ring()  # of a program, unless its offline mode computes in less


def encode(values: NDArray[np.int64]) -> Elements:
    """Signed integers modulo 2^64, and so in every ring."""
    return values.astype(np.int64).view(np.uint64)


def _minus(x: Elements) -> Elements:
    return np.uint64(0) - x


def limb_bits(weight: NDArray[np.int64]) -> int:
    """The widest limb, in bits, with which a product-sum of this weight stays exact in float64: |limb| ≤ 2^(bits − 1).

    weight: (outputs, …), integers. Raises OverflowError where not even one bit fits.
    """
    rows = np.abs(weight.reshape(len(weight), -1)).sum(1)
    largest = int(rows.max()) if rows.size else 0
    width = EXACT + 1 - max(largest, 1).bit_length()
    if width < 1:
        raise OverflowError("the weights are too large for exact products in float64")
    return width


class LinearMap:
    """y = W·x over the ring for a secret integer W: a convolution, or a matrix.

    The element's bits are cut into signed limbs, whose windows become the columns of one exact float64 product of BLAS.

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
        ring: Ring = WIDE,
    ) -> None:
        self.is_matrix = weight.ndim == 2
        self.stride, self.padding, self.groups = stride, padding, groups
        self.kernel: tuple[int, ...] = (1, 1) if self.is_matrix else weight.shape[2:]
        self.by_input = np.ascontiguousarray(np.moveaxis(weight, 0, -1)).view(np.uint64)
        self.rows = weight.astype(np.float64).reshape(groups, len(weight) // groups, -1)
        self.outputs = len(weight)
        self.count = -(-ring.bits // limb_bits(weight))
        self.width = -(-ring.bits // self.count)

    def __call__(self, x: Elements) -> Elements:
        """x: (batch, …) → (batch, …), right in the ring, with any bits above it."""
        images = np.ascontiguousarray(x.reshape(*x.shape[:2], 1, 1) if self.is_matrix else x)
        sides = zip(images.shape[2:], self.kernel, self.stride, self.padding, strict=True)
        shape = tuple((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in sides)
        batch, channels, outputs = len(images), images.shape[1], self.outputs
        columns = scratch("columns", channels, *self.kernel, self.count, batch, *shape)
        kernels.limb_columns(images, self.width, self.stride, self.padding, columns)
        products = scratch("products", outputs, self.count, batch, *shape)
        np.matmul(self.rows, columns.reshape(*self.rows.shape[::2], -1), out=products.reshape(*self.rows.shape[:2], -1))
        out = np.empty((batch, outputs, *shape), np.uint64)
        kernels.join_limbs(products, self.width, out)
        return out.reshape(batch, outputs) if self.is_matrix else out

    def add(self, out: Elements, shape: tuple[int, ...], positions: NDArray[np.int64], values: Elements) -> None:
        """out += W·x, modulo 2^64, for an x that is 0 but for `values` at flat `positions`; a convolution of one group.

        out: (1, O, …), as `self(x)` is; shape: (C, H, W) of x.
        """
        kernels.add_sparse(self.by_input, shape[1:], self.stride, self.padding, positions, values, out[0])


_kept = threading.local()


def scratch(name: str, *shape: int) -> NDArray[np.float64]:
    """This thread's buffer of this name: fresh memory would cost as much as filling it."""
    size = math.prod(shape)
    kept: NDArray[np.float64] | None = getattr(_kept, name, None)
    if kept is None or len(kept) < size:
        kept = np.empty(size)
        setattr(_kept, name, kept)
    return kept[:size].reshape(shape)
