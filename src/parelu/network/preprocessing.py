"""What an image goes through before it reaches a network: grey or colour, resizing, normalising."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from parelu.network.images import LUMA


def normalise(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], *, channels_last: bool = False
) -> Tensor:
    """images: uint8 (N, C, H, W) → float32, (images / 255 - mean) / std, per channel."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}: normalise once, and after resizing")
    scale, shift = _moments(tuple(mean), tuple(std), images.device)
    x = images.float().mul_(scale).sub_(shift)
    # Last, because arithmetic that broadcasts over channels is several times slower in that layout.
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@functools.lru_cache(maxsize=64)
def _moments(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of bytes, (C, 1, 1), on the device once: a copy there waits for all that is queued."""
    with torch.inference_mode(False):
        centre, width = (torch.tensor(each, device=device).view(-1, 1, 1) for each in (mean, std))
        return 1 / (255 * width), centre / width


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images: uint8 or float (N, C, H, W) → the same type (N, C, *size): bilinear, antialiased when it shrinks."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    # torch's kernel for bytes fails an internal assertion at 1×1 and is missing on CUDA: bytes go through floats.
    resized = F.interpolate(images.float(), tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized.to(images.dtype)


def fit(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """uint8 (N, C, H, W) → uint8 (N, *shape): colour → grey by luma, grey → colour by repeating, then `resize`d."""
    channels, height, width = shape
    if channels == 1 and images.shape[1] == 3:
        luma = torch.tensor(LUMA, device=images.device).view(3, 1, 1)
        images = (images * luma).sum(1, keepdim=True).round_().to(torch.uint8)
    # A channel at a time, for what large photos take as floats.
    resized = torch.cat([resize(channel, (height, width)) for channel in images.split(1, 1)], 1)
    return resized.expand(-1, channels, -1, -1)
