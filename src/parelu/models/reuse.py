"""ReLU-reuse: a convolution of C to C channels whose last C/N channels alone get a ReLU (DeepReShape, section 4.2).

The paper draws the wiring only; this one is inferred. Its cost is that of all published FLOPs within 0.1 %.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parelu.errors import UserError


def groups(channels: int, factor: int) -> tuple[int, int, int]:
    """Channels of the group that is reused, of the one without a ReLU of its own, and of the one with; N: `factor`."""
    if factor < 2 or channels % 4 or channels % factor:
        raise UserError(f"ReLU-reuse by {factor} needs a number of channels that 4 and {factor} divide, not {channels}")
    first, last = channels // 4, channels // factor
    return first, channels - first - last, last


class ReuseConv(nn.Module):
    """Three 3×3 convolutions, each on a group of the channels and on what the groups before it gave.

    y1 = K1·x1, y2 = K2·(x2 + P12·y1), y3 = K3·(x3 + P13·y1 + P23·y2), and [y1, y2, y3] + E·y1; P and E are 1×1.
    MACs a pixel: 9·Σ g_i² + Σ_{i<j} g_i·g_j + C²/4. The layer is linear: the caller's site has the ReLUs.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.sizes = first, second, third = groups(channels, factor)
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(size, size, 3, 1, 1, bias=False) for size in self.sizes)
        self.project12 = nn.Conv2d(first, second, 1, bias=False)
        self.project13 = nn.Conv2d(first, third, 1, bias=False)
        self.project23 = nn.Conv2d(second, third, 1, bias=False)
        self.expand = nn.Conv2d(first, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, C, H, W) → the same shape."""
        first, second, _ = self.sizes
        y1 = self.conv1(x[:, :first])
        y2 = self.conv2(x[:, first : first + second] + self.project12(y1))
        y3 = self.conv3(x[:, first + second :] + self.project13(y1) + self.project23(y2))
        return torch.cat([y1, y2, y3], 1) + self.expand(y1)
