"""Batches as a network takes them: on its device, normalised, at its side, in its layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from parelu import data
from parelu.data.dataset import Dataset
from parelu.data.readers.base import Images, Split
from parelu.network.sites import Network
from parelu.training import ranks
from parelu.training.schedule import Training


def fit(images: Tensor, network: Network) -> Tensor:
    """Images, (N, C, H, W), at the side and in the layout that a network takes."""
    images = data.resize(images, (network.input_shape[1], network.input_shape[2]))
    return images.contiguous(memory_format=memory_format(network))


def memory_format(network: nn.Module) -> torch.memory_format:
    """channels_last, the faster layout, unless a convolution reads 2 to 7 channels.

    There oneDNN's kernel for a strided 1×1 convolution writes past its buffer in the backward pass (torch 2.13).
    """
    widths = [m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    return torch.channels_last if all(width >= 8 for width in widths[1:]) else torch.contiguous_format


def normalised_batches(dataset: Dataset, training: Training, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised float batches at the data set's own side; of each this rank's images."""
    options = {"seed": seed, "epoch": epoch, "augmentation": dataset.augmentation, "part": ranks.mine()}
    stream = data.batches(resident(dataset.train), training.batch, **options)
    for images, labels in stream:
        yield data.normalise(moved(images), dataset.mean, dataset.std), moved(labels)


def resident(split: Images) -> Images:
    """The split on the device, if it is in memory and takes at most a quarter of what is free there; moved once."""
    where = device()
    if where.type == "cpu" or not isinstance(split, Split):
        return split
    if split not in _RESIDENT:
        free = torch.cuda.mem_get_info()[0] if where.type == "cuda" else split.images.nbytes * 4
        _RESIDENT[split] = split.to(where) if split.images.nbytes <= free / 4 else split
    return _RESIDENT[split]


_RESIDENT: WeakKeyDictionary[Split, Split] = WeakKeyDictionary()


def moved(tensor: Tensor) -> Tensor:
    """On the device; nothing waits for the copy, which what is queued after it does."""
    where = device()
    tensor = tensor.pin_memory() if where.type == "cuda" and tensor.device.type == "cpu" else tensor
    return tensor.to(where, non_blocking=True)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> Any:
    """bfloat16 where the device has it in hardware; on a CPU it was slower."""
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else nullcontext()
