"""Inner loops of a gate, compiled by numba; what they compute stands in `gates.gated`.

x, y, g, dx: (batch, K) float32; a, c0, c1, c2, da: (K,) float32, K = C·H·W in the order of a row.
"""

# pyright: reportMissingParameterType=false

import numba
import numpy as np

# Without "nnan": a number that is not one must come out as such, or a training that blew up would go on.
_loop = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})


@_loop
def forward(x, a, c0, c1, c2, y):
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            v = x[i, k]
            p = (c2[k] * v + c1[k]) * v + c0[k]
            y[i, k] = p + a[k] * (max(v, np.float32(0)) - p)


@_loop
def backward(x, a, c0, c1, c2, g, dx, da):
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            v = x[i, k]
            p = (c2[k] * v + c1[k]) * v + c0[k]
            slope = two * c2[k] * v + c1[k]
            da[k] += g[i, k] * (max(v, zero) - p)
            dx[i, k] = g[i, k] * (slope + a[k] * ((one if v > zero else zero) - slope))
