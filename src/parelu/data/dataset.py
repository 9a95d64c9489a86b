"""Data sets, and the registry of sets.

A new set is one entry in ENTRIES and, if its format is new, one reader in `parelu.data.readers`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from parelu.data.augmentation import Augmentation
from parelu.data.files import CENTRE, Files
from parelu.data.readers import cifar, colour, digits, fashion, folders, hub
from parelu.data.readers.base import Images, Moments, Place, Raw, Shape, Split, check_bytes, spread
from parelu.errors import UserError
from parelu.network.preprocessing import fit


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set ready for training. mean, std: per channel, of the train split, in units of the full range (0 to 1).

    train: what networks are trained on. validation: held out of the training set; models are chosen by it.
    test: read once, at the end. augmentation: the default for this set at this size.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    @property
    def input_shape(self) -> Shape:
        """(C, H, W) of every image."""
        return self.train.shape

    @property
    def middle(self) -> float | None:
        """The share of a file's smaller side that a test image is the centre of; None where it is the whole."""
        return CENTRE if isinstance(self.test, Files) and self.test.crops else None


@dataclass(frozen=True)
class Entry:
    """One entry of the registry.

    read: (folder, shape asked for or None) → the set; only a set without a size of its own comes in that shape.
    place: where its files lie; None: it needs none. fetch: downloads them. reachable: whether that can succeed.
    """

    read: Callable[[Path, Shape | None], Raw]
    augmentation: Augmentation
    place: Place | None = None
    fetch: Callable[[], Path] | None = None
    reachable: Callable[[], bool] | None = None


ENTRIES: dict[str, Entry] = {
    "digits": Entry(digits.read, Augmentation(pad=1)),
    "fashion-mnist": Entry(
        fashion.read, Augmentation(pad=2, flip=True), fashion.PLACE, fashion.download, fashion.reachable
    ),
    "colour-fashion": Entry(colour.read_fashion, Augmentation(), fashion.PLACE, fashion.download, fashion.reachable),
    "colour-digits": Entry(colour.read_digits, Augmentation()),
    "cifar10": Entry(cifar.read_ten, Augmentation(pad=4, flip=True), cifar.CIFAR10),
    "cifar100": Entry(cifar.read_hundred, Augmentation(pad=4, flip=True), cifar.CIFAR100),
    "tiny-imagenet": Entry(folders.read_tiny_imagenet, Augmentation(pad=8, flip=True), folders.TINY_IMAGENET),
    "imagenet": Entry(folders.read_imagenet, Augmentation(flip=True), folders.IMAGENET),
    "folder": Entry(folders.read_folder, Augmentation(flip=True), folders.FOLDER),
}


VALIDATION_SEED = 1  # fixed: every run of every seed holds out the same images
SAMPLE = 4096  # images of a streamed set that its moments are taken of


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(ENTRIES)


def available(name: str, *, folder: Path | None = None, download: bool = False) -> bool:
    """Whether `load(name, folder=folder)` would find the set's files; with `download`, also whether it could fetch
    them (a server is asked and has 5 seconds to answer). The files are not opened.
    """
    entry = _entry(name)
    if entry.place is None or entry.place.find(folder) is not None:
        return True
    return download and folder is None and entry.reachable is not None and entry.reachable()


def load(
    name: str,
    *,
    folder: Path | None = None,
    images: int | None = None,
    validation: int | None = None,
    input_shape: Shape | None = None,
) -> Dataset:
    """The set `name`, the same each time.

    folder: where its files are (default: the system's place for it, then the cache, then a download if the set has
    one). validation: images held out of the training set, in the classes' proportions (default a tenth, at most
    5,000). images: how many of the remaining training images to keep, equally many of each class as far as they last
    (default all). input_shape: (C, H, W) that all images are brought to (default the set's own); C is 1 or 3.
    Raises UserError: unknown name, files missing or damaged, more images asked than there are, impossible shape.
    """
    entry = _entry(name)
    if input_shape is not None and (input_shape[0] not in (1, 3) or min(input_shape) < 1):
        raise UserError(f"input shape {input_shape}: give (1 or 3, height, width)")
    raw = entry.read(_locate(name, entry, folder), input_shape)
    for part, split in (("training", raw.train), ("test", raw.test)):
        lacking = (torch.bincount(split.labels, minlength=raw.classes) == 0).nonzero()
        if len(lacking):
            raise UserError(f"{name}: no {part} image is of class {lacking[0].item()}: its files are incomplete")

    train, held_out = hold_out(name, raw.train, validation)
    if images is not None:
        if not 1 <= images <= len(train):
            raise UserError(
                f"{name}: {images:,} training images asked, there are {len(train):,} beside {len(held_out):,} "
                f"for validation: ask for 1 to {len(train):,}"
            )
        train = train.take(images)
    native_height = train.shape[1]
    test = raw.test
    if input_shape is not None:
        train, held_out, test = (_fit(name, split, input_shape) for split in (train, held_out, test))
    mean, std = raw.moments or moments(train)
    return Dataset(
        name=name,
        train=train,
        validation=held_out,
        test=test,
        classes=raw.classes,
        mean=mean,
        std=std,
        augmentation=entry.augmentation.scaled(train.shape[1] / native_height),
    )


def _entry(name: str) -> Entry:
    if name.startswith(hub.PREFIX):
        return Entry(partial(hub.read, name), Augmentation())
    if name not in ENTRIES:
        raise UserError(f"there is no data set {name!r}: choose one of {', '.join(ENTRIES)}, or hf:NAME")
    return ENTRIES[name]


def _locate(name: str, entry: Entry, folder: Path | None) -> Path:
    if entry.place is None:
        return folder or Path()
    found = entry.place.find(folder)
    if found is None and folder is None and entry.fetch is not None:
        try:
            return entry.fetch()
        except UserError as error:
            raise UserError(f"{error}; {entry.place.missing(name, folder)}") from error
    if found is None:
        raise entry.place.missing(name, folder)
    return found


Held = TypeVar("Held", bound=Images)


def hold_out(name: str, split: Held, count: int | None) -> tuple[Held, Held]:
    if count is None:
        count = min(5000, max(1, len(split) // 10))
    if not 1 <= count < len(split):
        raise UserError(
            f"{name}: {count:,} images asked for validation, of {len(split):,} in the training set: "
            f"ask for 1 to {len(split) - 1:,}"
        )
    held_out = torch.zeros(len(split), dtype=torch.bool)
    held_out[spread(split.labels, count, seed=VALIDATION_SEED, proportional=True)] = True
    return split.select((~held_out).nonzero()[:, 0]), split.select(held_out.nonzero()[:, 0])


def _fit(name: str, split: Images, shape: Shape) -> Images:
    """The split with its images brought to `shape`."""
    if split.shape == shape:
        return split
    if isinstance(split, Files):
        return replace(split, target=shape)
    check_bytes(name, len(split), shape)
    fitted = torch.empty(len(split), *shape, dtype=torch.uint8)
    for (old, _), new in zip(split.in_order(1024), fitted.split(1024), strict=True):
        new.copy_(fit(old, shape))
    return Split(fitted, split.labels)


def moments(split: Images) -> Moments:
    """Mean and standard deviation per channel, exact from integer sums; a constant channel's is one grey level.

    Of a split in files, those of `SAMPLE` images, of all classes, in the middle of each if it is cropped.
    """
    if isinstance(split, Files):
        split = split.take(min(len(split), SAMPLE))
    total = torch.zeros(split.shape[0], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for images, _ in split.in_order(1024):
        wide = images.to(torch.int32)
        total += wide.sum((0, 2, 3))
        squares += (wide * wide).sum((0, 2, 3))
    count = len(split) * split.shape[1] * split.shape[2]
    mean = total.double() / count
    std = (squares.double() / count - mean**2).clamp(min=1.0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
