"""Distribution-aware polynomial approximation of the ReLU (Peng et al., AutoReP, ICCV 2023, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PUBLIC_SCALE = (1 / 5, 1.0, 1 / 10)  # of c0, c1 and c2 in AutoReP's public code: approx_2rd_torch
PUBLIC_VARIANCE = 0.5  # the smallest that it takes: --var_min
SMALLEST_STD = 1e-5  # a constant channel's input: its polynomial is then the tangent, not 0/0


def dapa(mean: Tensor, std: Tensor, degree: int) -> Tensor:
    """The polynomial closest to relu(x), least squares, for x of a normal distribution (AutoReP, eq. 13).

    Degree 2: c2 = φ(u/v)/(2v), c1 = Φ(u/v) − 2u·c2, c0 = (φ(u/v)/2)·(v + u²/v). Degree 1: c1 = Φ(u/v), c0 = v·φ(u/v).

    Args:
        mean, std: u and v of a channel's input, (C,); a standard deviation, not a variance.
        degree: 1 or 2; 0 gives the identity.

    Returns:
        (3, C): c0, c1, c2.
    """
    if degree not in (0, 1, 2):
        raise ValueError(f"degree is {degree}; it should be 0 (identity), 1 or 2")
    u, v = mean.double(), std.double().clamp(min=SMALLEST_STD)
    if degree == 0:
        return torch.stack([torch.zeros_like(u), torch.ones_like(u), torch.zeros_like(u)]).float()
    ratio = u / v
    density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(ratio)
    if degree == 1:
        return torch.stack([v * density, below, torch.zeros_like(u)]).float()
    c2 = density / (2 * v)
    return torch.stack([density / 2 * (v + u * ratio), below - 2 * u * c2, c2]).float()


def public_dapa(mean: Tensor, variance: Tensor, degree: int) -> Tensor:
    """What AutoReP's public code has for `dapa`: the variance in the deviation's place, and smaller c0 and c2.

    mean, variance: (C,) → (3, C).
    """
    found = dapa(mean, variance.clamp(min=PUBLIC_VARIANCE), degree)
    return torch.stack([scale * c for scale, c in zip(PUBLIC_SCALE, found, strict=True)])
