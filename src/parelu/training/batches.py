"""Batches as a network takes them: on its device, normalised, at its side, in its layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from parelu import data
from parelu.data.dataset import Dataset
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
    stream = data.batches(dataset.train, training.batch, **options)
    for images, labels in stream:
        yield data.normalise(images.to(device()), dataset.mean, dataset.std), labels.to(device())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> Any:
    """bfloat16 where the device has it in hardware; on a CPU it was slower."""
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else nullcontext()
