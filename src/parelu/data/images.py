"""Many image files as one tensor, each read as a client reads the image that it infers (`network.images`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from parelu.data.readers.base import Shape
from parelu.network.images import read_image


def read_images(paths: Sequence[Path], shape: Shape, middle: float | None = None) -> Tensor:
    """Image files as uint8 (N, C, H, W) of `shape`, (C, H, W); middle, and what is raised: as `read_image` has them."""
    images = torch.empty(len(paths), *shape, dtype=torch.uint8)

    def place(index: int) -> None:
        images[index] = torch.from_numpy(read_image(paths[index], shape, middle))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(place, range(len(paths))):
            pass
    return images
