"""The ring Z_2^59 of the protocol: elements, fixed point, truncation of shares, and linear maps.

An element is a uint64 below 2^59. Arithmetic runs modulo 2^64 and is reduced by `MASK` where the value matters:
before it is sent, compared or truncated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

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

    The element's bits are cut into limbs, each limb's product is one exact float64 product of BLAS.

    Args:
        weight: int64, (O, I/groups, kh, kw) for a convolution, (O, I) for a matrix.
        stride, padding: (vertical, horizontal), of a convolution.
    """

    def __init__(self, weight: NDArray[np.int64], stride: tuple[int, int] = (1, 1),
                 padding: tuple[int, int] = (0, 0), groups: int = 1) -> None:  # fmt: skip
        self.weight = torch.from_numpy(weight.astype(np.float64))
        self.is_matrix = weight.ndim == 2
        self.options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups}
        self.count = -(-BITS // limb_bits(weight))
        self.width = -(-BITS // self.count)

    def __call__(self, x: Ring) -> Ring:
        """x: (batch, …) → (batch, …), modulo 2^64."""
        mask = np.uint64((1 << self.width) - 1)
        limbs = np.concatenate([(x & MASK) >> np.uint64(k * self.width) & mask for k in range(self.count)])
        products = self._float(torch.from_numpy(limbs.view(np.int64)).double())
        parts = products.to(torch.int64).numpy().view(np.uint64).reshape(self.count, len(x), *products.shape[1:])
        total = parts[0]
        for k in range(1, self.count):
            total = total + (parts[k] << np.uint64(k * self.width))
        return total

    def small(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same for plain signed integers, exact as long as no sum reaches 2^53; raises OverflowError else."""
        rows = self.weight.reshape(len(self.weight), -1).abs().sum(1).max()
        if float(rows) * float(np.abs(x).max(initial=0)) >= 2.0**EXACT:
            raise OverflowError("a product-sum reaches 2^53")
        return self._float(torch.from_numpy(x).double()).to(torch.int64).numpy()

    def _float(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x @ self.weight.T if self.is_matrix else F.conv2d(x, self.weight, **self.options)
