"""What every reader shares: a split, the two splits a set is published with, and the place its files lie in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network import cache

LIMIT = 2**34  # bytes of one split in memory (16 GiB)

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory. images: uint8 (N, C, H, W); labels: int64 (N,), on the same device."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), not {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 ({len(self.images)},), not {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split with both tensors on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def select(self, indices: Tensor) -> "Split":
        """The images at `indices`: int64 (M,), in that order."""
        indices = indices.to(self.labels.device)
        return Split(self.images[indices], self.labels[indices])

    def take(self, count: int) -> "Split":
        """`count` images, always the same ones, as many of each class as there are to have.

        A smaller take is contained in a larger one. Raises UserError unless 1 <= count <= len(self).
        """
        if not 1 <= count <= len(self):
            raise UserError(f"{count} images asked of a split of {len(self)}: ask for 1 to {len(self)}")
        return self.select(spread(self.labels, count, seed=0, proportional=False))


@dataclass(frozen=True, eq=False)
class Raw:
    """A set as published: a training split, a test split, and how many classes the labels count."""

    train: Split
    test: Split
    classes: int


def spread(labels: Tensor, count: int, *, seed: int, proportional: bool) -> Tensor:
    """Indices, ascending, of `count` of the `labels` (int64 (N,)), chosen by `seed` alone.

    proportional: each class gives its share of the whole, within one; otherwise all classes give equally many, as
    far as they last. A smaller choice is contained in a larger one of the same seed.
    """
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    key = (rank + 0.5).double() / sizes[labels[order]] if proportional else rank
    return order[torch.argsort(key, stable=True)[:count]].sort().values


@dataclass(frozen=True)
class Place:
    """Where a set's files lie, and what to tell someone who lacks them.

    folder: its name under the cache folder and inside a folder given by hand; None where only the latter serves.
    files: what must be there (for each, its .gz does as well). remedy: where to get it; `{folder}` is where to put it.
    """

    files: tuple[str, ...]
    remedy: str
    folder: str | None = None
    system: Path | None = None

    def find(self, given: Path | None) -> Path | None:
        """The first folder that holds all the files: in the one given by hand, else the system's, else the cache."""
        return next((place for place in self._candidates(given) if not self._lacking(place)), None)

    def missing(self, name: str, given: Path | None) -> UserError:
        """The error that says which file of the set `name` was looked for, where, and where to get it."""
        candidates = self._candidates(given)
        remedy = self.remedy.format(folder=given or (candidates[-1] if candidates else ""))
        if not candidates:
            return UserError(f"{name}: no folder given: {remedy}")
        if given and not given.is_dir():
            return UserError(f"{name}: {given} is not a folder: {remedy}")
        place = min(candidates, key=lambda candidate: len(self._lacking(candidate)))
        return UserError(f"{name}: no {self._lacking(place)[0]} in {place}: {remedy}")

    def _candidates(self, given: Path | None) -> list[Path]:
        if given:
            return [given, given / self.folder] if self.folder else [given]
        system = [self.system] if self.system else []
        return [*system, cache.folder() / self.folder] if self.folder else system

    def _lacking(self, place: Path) -> list[str]:
        return [f for f in self.files if not ((place / f).exists() or (place / f"{f}.gz").is_file())]


def check_bytes(what: str, count: int, shape: Shape) -> None:
    """Raises UserError when `count` uint8 images of `shape` would take more than LIMIT bytes of memory."""
    size = count * shape[0] * shape[1] * shape[2]
    if size > LIMIT:
        raise UserError(
            f"{what}: {count:,} images of {'×'.join(map(str, shape))} take {size / 2**30:.0f} GiB, more than "
            f"{LIMIT // 2**30}: ask for a smaller input shape or fewer images"
        )


def check_labels(path: Path, labels: Tensor, classes: int) -> Tensor:
    """`labels` (N,) as int64. Raises UserError naming `path` when one is not in 0 .. classes - 1."""
    labels = labels.long()
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(f"{path}: label {wrong[0]} is not in 0..{classes - 1}: replace the file with the original")
    return labels


def cached(stem: str, key: str, build: Callable[[], Raw]) -> Raw:
    """`build()`, or what an earlier call with the same `stem` and `key` built, from the cache folder."""

    def tensors() -> dict[str, Tensor]:
        raw = build()
        return {
            "train.images": raw.train.images,
            "train.labels": raw.train.labels,
            "test.images": raw.test.images,
            "test.labels": raw.test.labels,
            "classes": torch.tensor(raw.classes),
        }

    kept = cache.tensors(f"{stem}-{key}", tensors)
    return Raw(
        train=Split(kept["train.images"], kept["train.labels"]),
        test=Split(kept["test.images"], kept["test.labels"]),
        classes=int(kept["classes"]),
    )
