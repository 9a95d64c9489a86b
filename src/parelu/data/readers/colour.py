"""colour-fashion and colour-digits: harder sets in colour, derived from Fashion-MNIST and from scikit-learn's digits.

Their numbers compare with no published ones.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from parelu.data.readers import digits, fashion
from parelu.data.readers.base import Raw, Shape, Split, cached
from parelu.network.preprocessing import resize

VERSION = 1  # raise it whenever `colour` draws something else: it is part of the cache's key


@dataclass(frozen=True)
class Drawn:
    """How an item is put into its picture.

    shift: by how much of the picture's side at most; mirrors: half of them; contrast: the least distance between the
    two colours, of channels from 0 to 1.
    """

    shift: float = 0.17
    mirrors: bool = True
    contrast: float = 0.6


DIGITS = Drawn(shift=0.1, mirrors=False, contrast=0.7)  # a mirrored digit is another one
COPIES = 8  # images of each digit
SIDE, MARGIN = 20, 4  # of a digit in its picture of 28×28, as in MNIST


def read_digits(location: Path | None = None, shape: Shape | None = None) -> Raw:
    """11,496 + 2,880 images, 28×28 in colour, derived from scikit-learn's digits.

    Eight of each digit, drawn from seeds of their own as `colour` says, not mirrored. No digit of the test images is
    one of the training images; those held out for validation are of digits that are.
    """
    source = digits.read()
    assert isinstance(source.train, Split) and isinstance(source.test, Split)
    return Raw(_copies(source.train, seed=1), _copies(source.test, seed=2), 10)


def _copies(split: Split, seed: int) -> Split:
    grey = F.pad(resize(split.images, (SIDE, SIDE)), (MARGIN,) * 4).repeat(COPIES, 1, 1, 1)
    return Split(colour(grey, seed=seed, drawn=DIGITS), split.labels.repeat(COPIES))


def read_fashion(location: Path, shape: Shape | None = None) -> Raw:
    """60,000 + 10,000 images, 28×28 in colour, derived from Fashion-MNIST.

    From its files in `location`: uint8 (N, 3, 28, 28), the labels unchanged. Derived once, in seconds, then cached.
    Train and test are drawn from different seeds.
    """
    digest = hashlib.sha256(str(VERSION).encode())
    for path in fashion.sources(location):
        digest.update(path.read_bytes())

    def derive() -> Raw:
        train, test = fashion.splits(location)
        return Raw(
            Split(colour(train.images, seed=1), train.labels), Split(colour(test.images, seed=2), test.labels), 10
        )

    return cached("colour-fashion", digest.hexdigest()[:16], derive)


def colour(grey: Tensor, *, seed: int, drawn: Drawn = Drawn()) -> Tensor:
    """grey: uint8 (N, 1, H, W) → uint8 (N, 3, H, W), the same bytes for the same seed.

    Each item becomes a soft matte of one random colour on another, darker as often as lighter, under smooth colour
    noise behind it and a little pixel noise over all; scaled by 0.75 to 1.1, shifted by up to 17 %, mirrored or not.
    No pixel then says anything of the class by its value alone, so that a network linear in the pixels fails.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [_colour(part.float() / 255, generator, drawn) for part in grey.split(1000)]
    return torch.cat(parts)


def _colour(grey: Tensor, generator: torch.Generator, drawn: Drawn) -> Tensor:
    count, _, height, width = grey.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    scale = 0.75 + 0.35 * uniform(1)
    shift = 2 * drawn.shift * (2 * uniform(2) - 1)  # of the two units that the picture is wide
    mirror = torch.where(uniform(1) < 0.5, -1.0 if drawn.mirrors else 1.0, 1.0)
    across = ((torch.arange(width) * 2 + 1) / width - 1 - shift[:, :1]) / scale * mirror
    down = ((torch.arange(height) * 2 + 1) / height - 1 - shift[:, 1:]) / scale
    grid = torch.stack(
        (
            across[:, None, :].expand(count, height, width),
            down[:, :, None].expand(count, height, width),
        ),
        dim=-1,
    )
    matte = F.grid_sample(grey**0.75, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    pairs = uniform(6, 2, 3)  # the first of six pairs of colours that differ enough to be told apart
    distinct = (pairs[:, :, 0] - pairs[:, :, 1]).norm(dim=2) > drawn.contrast
    item, ground = pairs[torch.arange(count), distinct.float().argmax(dim=1)].unbind(1)

    noise = F.interpolate(uniform(3, 5, 5) - 0.5, (height, width), mode="bilinear", align_corners=True)
    behind = ground[:, :, None, None] + 0.4 * noise
    images = torch.lerp(behind, item[:, :, None, None].expand_as(behind), matte)
    images += 0.02 * torch.randn(images.shape, generator=generator)
    return images.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
