"""Batches of a split: shuffled and augmented, the same for the same seed and epoch."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from parelu.data.augmentation import Augmentation
from parelu.data.readers.base import WHOLE, Images
from parelu.errors import UserError


def batches(
    split: Images,
    size: int,
    *,
    seed: int,
    epoch: int,
    augmentation: Augmentation,
    drop_last: bool = True,
    part: slice = WHOLE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of `split` once, shuffled and augmented: uint8 (size, C, H, W) with int64 (size,).

    The same arguments give the same bytes, so that training goes on after a kill as if it had not been killed, and
    all the networks of a run see the same batches. drop_last: leave out a last batch of fewer than `size`. part: of
    each batch the images to give, which are what they are in the whole.
    Raises UserError when the size is not positive, or when it exceeds the split and drop_last would leave nothing.
    """
    if size < 1 or (drop_last and size > len(split)):
        raise UserError(f"batch size {size} with {len(split)} images: choose 1 to {len(split)}")
    generator = _generator(f"batches {seed} {epoch}")
    order = torch.randperm(len(split), generator=generator)
    if drop_last:
        order = order[: len(split) // size * size]

    def produce() -> Iterator[tuple[Tensor, Tensor]]:
        # Draws of their own: a split in files reads ahead.
        whole = order.split(size)
        given = split.parts(whole, _generator(f"crops {seed} {epoch}"), part)
        for indices, (images, labels) in zip(whole, given, strict=True):
            yield augmentation(images, generator, len(indices), part), labels

    return produce()


def _generator(text: str) -> torch.Generator:
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
