"""Inner loops of a gate, compiled by numba; what they compute stands in `gate.gated`.

x, y, g, dx: (batch, K) float32; a, c0, c1, c2, da: (K,) float32, K = C·H·W in the order of a row. For the backward pass
x is kept in half its size: rounded: (batch, K) uint16, the upper halves of its bits, (batch, K) uint32, rounded.
"""

# pyright: reportMissingParameterType=false

import numpy as np

from parelu.network.cache import compiled

# Without "nnan": a number that is not one must come out as such, or a training that blew up would go on.
_loop = compiled(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})


@_loop
def forward(x, bits, a, c0, c1, c2, y, rounded):
    zero = np.float32(0)
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            v = x[i, k]
            p = (c2[k] * v + c1[k]) * v + c0[k]
            y[i, k] = p + a[k] * (max(v, zero) - p)
            rounded[i, k] = (bits[i, k] + np.uint32(0x8000)) >> np.uint32(16)


@_loop
def widen(rounded, bits):
    """The inverse of what `forward` keeps: uint16 → uint32 bits of float32, a row."""
    for k in range(rounded.shape[0]):
        bits[k] = np.uint32(rounded[k]) << np.uint32(16)


@_loop
def backward(rounded, a, c0, c1, c2, g, dx, da):
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    bits = np.empty(rounded.shape[1], np.uint32)
    x = bits.view(np.float32)
    for i in range(rounded.shape[0]):
        widen(rounded[i], bits)
        for k in range(rounded.shape[1]):
            v = x[k]
            p = (c2[k] * v + c1[k]) * v + c0[k]
            slope = two * c2[k] * v + c1[k]
            da[k] += g[i, k] * (max(v, zero) - p)
            dx[i, k] = g[i, k] * (slope + a[k] * ((one if v > zero else zero) - slope))
