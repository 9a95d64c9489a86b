"""What a linear layer costs in private inference: products and bytes of a homomorphic offline phase, and multiply-adds.

Coefficient packing, as in Cheetah (Huang et al. 2022, section 4): a convolution is a product of polynomials of `SLOTS`
coefficients, into which C_w input channels and M_w output channels of a padded map go together. So the number of
products depends on the map and the channels, and not on the kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from parelu.composition import Convolution

SLOTS = 8192  # coefficients of a polynomial
UP, DOWN = 216_000, 214_000  # bytes: a fresh ciphertext with a seed for half of it; one after two modulus switches

# Seconds of one core, BFV of SEAL 4.3 with N = 8192 and t = 2^59; a byte at 1 Gb/s; a multiply-add of two limbs online.
UPLOAD, PRODUCT, DOWNLOAD = 5e-3, 6e-4, 1.8e-3  # encrypt; multiply and add; back from NTT form and decrypt
BYTE, MAC = 8e-9, 3e-10


@dataclasses.dataclass(frozen=True)
class Packing:
    """Ciphertexts that go up, products of a ciphertext and a plaintext, ciphertexts that come down."""

    uploads: int
    products: int
    downloads: int

    @property
    def bytes(self) -> int:
        return self.uploads * UP + self.downloads * DOWN

    @property
    def seconds(self) -> float:
        computing = self.uploads * UPLOAD + self.products * PRODUCT + self.downloads * DOWNLOAD
        return computing + self.bytes * BYTE


@functools.cache
def packing(layer: Convolution) -> Packing:
    """The cheapest split of a polynomial between input and output channels; a matrix is a convolution of a 1×1 map.

    A map that is larger than a polynomial is cut into pieces, whose overlap is left out here.
    """
    ends = zip(layer.output_size, layer.kernel, layer.stride, strict=True)
    touched = math.prod(end * k if k < s else (end - 1) * s + k for end, k, s in ends)
    room, pieces = max(1, SLOTS // touched), -(-touched // SLOTS)
    inputs, outputs = layer.inputs // layer.groups, layer.outputs // layer.groups
    few = range(1, math.isqrt(inputs) + 2)
    found = []
    for together in {*few, *(-(-inputs // up) for up in few)}:  # the fewest channels for each number of uploads
        if together <= min(inputs, room):
            up, down = -(-inputs // together), -(-outputs // (room // together))
            found.append(Packing(*(layer.groups * pieces * count for count in (up, up * down, down))))
    return min(found, key=lambda one: one.seconds)


def seconds(layer: Convolution) -> float:
    """What fusion weighs: seconds of one core for a layer's offline products, bytes and online multiply-adds.

    A model of costs, calibrated by single operations; whatever gives a layer's seconds can stand in its place.
    """
    return packing(layer).seconds + layer.macs * MAC
