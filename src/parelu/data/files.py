"""Labelled images that stay in their files: decoded a few batches ahead of whoever asks, never all in memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parelu.data.readers.base import WHOLE, Images, Shape
from parelu.network.images import Box, Pixels, centre, part, silence, whole

AHEAD = 2  # batches
CENTRE = 224 / 256  # of the smaller side: torchvision's Resize(256), CenterCrop(224)
# torchvision's RandomResizedCrop, after Szegedy et al. 2015, section 6: share of the area, width over height.
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


@dataclass(frozen=True, eq=False)
class Files(Images):
    """Labelled images in the files of a folder.

    Attributes:
        names: bytes, (N,): paths below `folder`.
        sizes: bytes of each file: int64 (N,).
        target: (C, H, W) that each image is brought to.
        crops: a training image is a random part of its file's, a test image the centre; else the whole is both.
    """

    folder: Path
    names: NDArray[np.bytes_]
    sizes: Tensor
    labels: Tensor
    target: Shape
    crops: bool = False

    @property
    def shape(self) -> Shape:
        return self.target

    def select(self, indices: Tensor) -> Self:
        return replace(self, names=self.names[indices.numpy()], sizes=self.sizes[indices], labels=self.labels[indices])

    def contents(self) -> dict[str, Tensor]:
        """The names and sizes of the files stand for what is in them: reading a set of this size takes an hour."""
        names = torch.from_numpy(np.frombuffer(self.names.tobytes(), np.uint8).copy())
        how = torch.tensor([*self.target, self.crops])
        return {"names": names, "sizes": self.sizes, "labels": self.labels, "how": how}

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index].item())

    def parts(
        self, parts: Iterable[Tensor], draws: torch.Generator | None = None, part: slice = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Decoded by as many threads as torch computes with: Pillow leaves Python's lock. All draws are made here, in
        order, so that neither threads nor what is read ahead decide anything.

        Raises:
            UserError: a file is missing, damaged or no image.
        """
        silence()
        waiting: deque[tuple[Tensor, Tensor, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(max(1, torch.get_num_threads()))
        try:
            for indices in parts:
                waiting.append(self._begun(pool, indices, draws, part))
                if len(waiting) > AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begun(
        self, pool: ThreadPoolExecutor, indices: Tensor, draws: torch.Generator | None, part: slice
    ) -> tuple[Tensor, Tensor, list[Future[None]]]:
        chances = None
        if self.crops and draws is not None:
            chances = torch.rand(len(indices), TRIES, 4, generator=draws)[part].tolist()
        indices = indices[part]
        pixels = torch.empty(len(indices), *self.target, dtype=torch.uint8)

        def decode(place: int, index: int) -> None:
            pixels[place] = torch.from_numpy(self._image(self.path(index), chances and chances[place]))

        futures = [pool.submit(decode, place, index) for place, index in enumerate(indices.tolist())]
        return pixels, self.labels[indices], futures

    def _image(self, path: Path, chances: list[list[float]] | None) -> Pixels:
        if not self.crops:
            return whole(path, self.target)
        if chances is None:
            return centre(path, self.target, CENTRE)
        return part(path, self.target, lambda width, height: random_box(width, height, chances))


def _finished(pixels: Tensor, labels: Tensor, futures: list[Future[None]]) -> tuple[Tensor, Tensor]:
    for future in futures:
        future.result()
    return pixels, labels


def random_box(width: int, height: int, chances: list[list[float]]) -> Box:
    """The first of random boxes that is inside an image: `AREA` of it, uniformly, `RATIO` of its sides, by logarithm.

    Where none is, the largest central box of an allowed ratio. chances: from 0 to 1, four for each try.
    """
    for area, ratio, left, top in chances:
        pixels = width * height * (AREA[0] + (AREA[1] - AREA[0]) * area)
        across = math.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * ratio)
        wide, high = round(math.sqrt(pixels * across)), round(math.sqrt(pixels / across))
        if 0 < wide <= width and 0 < high <= height:
            x, y = int(left * (width - wide + 1)), int(top * (height - high + 1))
            return x, y, x + wide, y + high
    wide, high = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    x, y = (width - wide) // 2, (height - high) // 2
    return x, y, x + wide, y + high
