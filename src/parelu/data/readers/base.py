"""What every reader shares: a split, the two splits a set is published with, and the place its files lie in."""

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network import cache

WHOLE = slice(None)
LIMIT = 2**34  # bytes of one split in memory (16 GiB)

Shape = tuple[int, int, int]  # channels, height, width
Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation a channel, of the full range


class Images(abc.ABC):
    """Labelled images, wherever they lie. labels: int64 (N,)."""

    labels: Tensor

    @property
    @abc.abstractmethod
    def shape(self) -> Shape:
        """(C, H, W) of every image."""

    @abc.abstractmethod
    def parts(
        self, parts: Iterable[Tensor], draws: torch.Generator | None = None, part: slice = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of `parts`, int64 indices: their images, uint8 (M, C, H, W), and labels.

        draws: for training images, which a split in files may crop at random as it reads them; on the CPU. part: of
        each of the `parts`, the images to give; it is drawn for all of them.
        """

    @abc.abstractmethod
    def select(self, indices: Tensor) -> Self:
        """The images at `indices`: int64 (M,), in that order."""

    @abc.abstractmethod
    def contents(self) -> dict[str, Tensor]:
        """Named tensors that differ where the images or labels do."""

    def __len__(self) -> int:
        return len(self.labels)

    def in_order(self, size: int, turns: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and labels, so many at a time, as networks are tested on them. turns: only these of the times."""
        return self.parts(torch.arange(len(self)).split(size)[turns])

    def first(self, count: int) -> Tensor:
        """The first `count` images, or all where there are fewer: uint8 (M, C, H, W)."""
        return next(self.parts([torch.arange(min(count, len(self)))]))[0]

    def take(self, count: int) -> Self:
        """`count` images, always the same ones, as many of each class as there are to have.

        A smaller take is contained in a larger one. Raises UserError unless 1 <= count <= len(self).
        """
        if not 1 <= count <= len(self):
            raise UserError(f"{count} images asked of a split of {len(self)}: ask for 1 to {len(self)}")
        return self.select(spread(self.labels, count, seed=0, proportional=False))


@dataclass(frozen=True, eq=False)
class Split(Images):
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

    @property
    def shape(self) -> Shape:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def to(self, device: torch.device | str) -> "Split":
        """The same split with both tensors on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def parts(
        self, parts: Iterable[Tensor], draws: torch.Generator | None = None, part: slice = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in parts:
            chosen = self.select(indices[part])
            yield chosen.images, chosen.labels

    def select(self, indices: Tensor) -> Self:
        indices = indices.to(self.labels.device, non_blocking=True)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def contents(self) -> dict[str, Tensor]:
        return {"images": self.images, "labels": self.labels}

    def in_order(self, size: int, turns: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(size)[turns], self.labels.split(size)[turns], strict=True)  # views, no copies


@dataclass(frozen=True, eq=False)
class Raw:
    """A set as published: a training split, a test split, and how many classes the labels count.

    moments: mean and standard deviation that networks are published with; None: the training images' own.
    """

    train: Images
    test: Images
    classes: int
    moments: Moments | None = None


def spread(labels: Tensor, count: int, *, seed: int, proportional: bool) -> Tensor:
    """Indices, ascending, of `count` of the `labels` (int64 (N,)), chosen by `seed` alone.

    proportional: each class gives the same share of itself, rounded to the nearest; otherwise all classes give equally
    many, as far as they last. A smaller choice is contained in a larger one of the same seed.
    """
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    key = (rank + 0.5).double() / sizes[labels[order]] if proportional else rank
    return order[torch.argsort(key, stable=True)[:count]].sort().values


class Form(NamedTuple):
    """A way in which a set's files may lie: the name of their folder, and what must be there (or its .gz)."""

    folder: str | None
    files: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a set's files lie, and what to tell someone who lacks them.

    folder: its name under the cache folder and inside a folder given by hand; None where only the latter serves.
    files: what must be there (for each, its .gz does as well). others: further forms, after this one. remedy: where to
    get it; `{folder}` is where to put it, `{around}` the folder that this is in.
    """

    files: tuple[str, ...]
    remedy: str
    folder: str | None = None
    system: Path | None = None
    others: tuple[Form, ...] = ()

    def find(self, given: Path | None) -> Path | None:
        """The first folder that holds all the files: in the one given by hand, else the system's, else the cache.

        given: the folder of the files, one that this is in, or one of the files where that is all.
        """
        return next((place for place, form in self._candidates(given) if not _lacking(place, form)), None)

    def missing(self, name: str, given: Path | None) -> UserError:
        """The error that says which file of the set `name` was looked for, where, and where to get it."""
        candidates = self._candidates(given)
        own = given or (cache.folder() / self.folder if self.folder else Path())
        remedy = self.remedy.format(folder=own, around=given or own.parent)
        if not candidates:
            return UserError(f"{name}: no folder given: {remedy}")
        if given and not given.is_dir():
            return UserError(f"{name}: {given} is not a folder: {remedy}")
        place, form = min(candidates, key=lambda one: len(_lacking(*one)) / len(one[1].files))
        return UserError(f"{name}: no {_lacking(place, form)[0]} in {place}: {remedy}")

    def _candidates(self, given: Path | None) -> list[tuple[Path, Form]]:
        found: list[tuple[Path, Form]] = []
        for form in (Form(self.folder, self.files), *self.others):
            if given and given.is_file():
                places = [given.parent] if form.files == (given.name,) else []
            elif given:
                places = [given, given / form.folder] if form.folder else [given]
            else:
                system = [self.system] if self.system else []
                places = [*system, cache.folder() / form.folder] if form.folder else system
            found += [(place, form) for place in places]
        return found


def _lacking(place: Path, form: Form) -> list[str]:
    return [f for f in form.files if not ((place / f).exists() or (place / f"{f}.gz").is_file())]


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
    """`build()`, of splits in memory, or what an earlier call with the same `stem` and `key` built, from the cache."""

    def tensors() -> dict[str, Tensor]:
        raw = build()
        splits = {"train": raw.train, "test": raw.test}
        kept = {f"{name}.{part}": tensor for name, split in splits.items() for part, tensor in split.contents().items()}
        return {**kept, "classes": torch.tensor(raw.classes)}

    kept = cache.tensors(f"{stem}-{key}", tensors)
    train, test = (Split(kept[f"{name}.images"], kept[f"{name}.labels"]) for name in ("train", "test"))
    return Raw(train, test, int(kept["classes"]))
