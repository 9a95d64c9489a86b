"""Augmentation of training images, a batch at a time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from parelu.data.readers.base import WHOLE
from parelu.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What a training image goes through, each by its own draw, in this order.

    pad: crop at a random place of the image with `pad` black pixels on each side. flip: mirrored left to right, every
    second time. cutout: a black square of this side at a random place, cut off at the edges (DeVries and Taylor 2017).
    """

    pad: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.pad < 0 or self.cutout < 0:
            raise UserError(f"pad {self.pad} and cutout {self.cutout} are in pixels: give 0 or more")

    def __call__(
        self, images: Tensor, generator: torch.Generator, batch: int | None = None, part: slice = WHOLE
    ) -> Tensor:
        """images: uint8 (N, C, H, W) → a new tensor of the same shape. `generator`: on the CPU, whatever the device.

        part: which images of a batch they are; it is drawn for all `batch` of them.
        """
        count, _, height, width = images.shape

        def draw(high: int) -> Tensor:
            drawn = torch.randint(high, (count if batch is None else batch,), generator=generator)
            return drawn[part].to(images.device, non_blocking=True)

        if self.pad:
            images = _crop(images, self.pad, draw(2 * self.pad + 1), draw(2 * self.pad + 1))
        if self.flip:
            images = torch.where(draw(2).view(-1, 1, 1, 1) == 1, images.flip(3), images)
        if self.cutout:
            rows = _within(draw(height), self.cutout, height)
            columns = _within(draw(width), self.cutout, width)
            images = images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)
        return images

    def scaled(self, factor: float) -> "Augmentation":
        """The same augmentation for images `factor` times as high."""
        return Augmentation(round(self.pad * factor), self.flip, round(self.cutout * factor))


def _crop(images: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """images (N, C, H, W), padded by `pad` and cut to (H, W) from row top[n], column left[n] on."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad)).contiguous().view(-1)
    stride = width + 2 * pad
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1) * (height + 2 * pad)
    rows = planes + top.view(-1, 1, 1) + torch.arange(height, device=images.device)
    starts = rows * stride + left.view(-1, 1, 1)
    # Every run of `width` bytes as a row of a view: a crop is then a copy of whole rows, the fastest there is.
    runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, starts.view(-1)).view_as(images)


def _within(centre: Tensor, side: int, length: int) -> Tensor:
    """centre: (N,) → bool (N, length), true on the `side` positions around each."""
    position = torch.arange(length, device=centre.device) - (centre - side // 2).unsqueeze(1)
    return (position >= 0) & (position < side)
