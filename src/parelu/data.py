"""Data sets as tensors in memory: splits, batched augmentation, and the registry of sets.

    data = load("fashion-mnist", images=20_000)
    for images, labels in batches(data.train, 256, seed=0, epoch=0, augmentation=data.augmentation):
        x = normalise(images, data.mean, data.std)

A new set is one entry in SOURCES and, if its format is new, one reader in `parelu.datasets`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from parelu.datasets import cifar, colour, digits, fashion, folders
from parelu.datasets.base import Place, Raw, Shape, Split, check_bytes, spread
from parelu.errors import UserError

__all__ = ["Augmentation", "Dataset", "Split", "available", "batches", "load", "names", "normalise", "resize"]


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

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: uint8 (N, C, H, W) → a new tensor of the same shape. `generator`: on the CPU, whatever the device."""
        count, _, height, width = images.shape

        def draw(high: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator).to(images.device)

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


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set ready for training. mean, std: per channel, of the train split, in units of the full range (0 to 1).

    train: what networks are trained on. validation: held out of the training set; models are chosen by it.
    test: read once, at the end. augmentation: the default for this set at this size.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    @property
    def input_shape(self) -> Shape:
        """(C, H, W) of every image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


@dataclass(frozen=True)
class Source:
    """One entry of the registry.

    read: (folder, shape asked for or None) → the set; only a set without a size of its own heeds the shape.
    place: where its files lie; None: it needs none. fetch: downloads them. reachable: whether that can succeed.
    """

    read: Callable[[Path, Shape | None], Raw]
    augmentation: Augmentation
    place: Place | None = None
    fetch: Callable[[], Path] | None = None
    reachable: Callable[[], bool] | None = None


SOURCES: dict[str, Source] = {
    "digits": Source(digits.read, Augmentation(pad=1)),
    "fashion-mnist": Source(
        fashion.read, Augmentation(pad=2, flip=True), fashion.PLACE, fashion.download, fashion.reachable
    ),
    "colour-fashion": Source(colour.read, Augmentation(), fashion.PLACE, fashion.download, fashion.reachable),
    "cifar10": Source(cifar.read_ten, Augmentation(pad=4, flip=True), cifar.CIFAR10),
    "cifar100": Source(cifar.read_hundred, Augmentation(pad=4, flip=True), cifar.CIFAR100),
    "tiny-imagenet": Source(folders.read_tiny_imagenet, Augmentation(pad=8, flip=True), folders.TINY_IMAGENET),
    "folder": Source(folders.read_folder, Augmentation(flip=True), folders.FOLDER),
}

VALIDATION_SEED = 1  # fixed: every run of every seed holds out the same images


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(SOURCES)


def available(name: str, *, folder: Path | None = None, download: bool = False) -> bool:
    """Whether `load(name, folder=folder)` would find the set's files; with `download`, also whether it could fetch
    them (a server is asked and has 5 seconds to answer). The files are not opened.
    """
    source = _source(name)
    if source.place is None or source.place.find(folder) is not None:
        return True
    return download and folder is None and source.reachable is not None and source.reachable()


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
    source = _source(name)
    if input_shape is not None and (input_shape[0] not in (1, 3) or min(input_shape) < 1):
        raise UserError(f"input shape {input_shape}: give (1 or 3, height, width)")
    raw = source.read(_locate(name, source, folder), input_shape)
    for part, split in (("training", raw.train), ("test", raw.test)):
        lacking = (torch.bincount(split.labels, minlength=raw.classes) == 0).nonzero()
        if len(lacking):
            raise UserError(f"{name}: no {part} image is of class {lacking[0].item()}: its files are incomplete")

    train, held_out = _hold_out(name, raw.train, validation)
    if images is not None:
        if not 1 <= images <= len(train):
            raise UserError(
                f"{name}: {images:,} training images asked, there are {len(train):,} beside {len(held_out):,} "
                f"for validation: ask for 1 to {len(train):,}"
            )
        train = train.take(images)
    native_height = train.images.shape[2]
    test = raw.test
    if input_shape is not None:
        train, held_out, test = (_fit(name, split, input_shape) for split in (train, held_out, test))
    mean, std = _moments(train.images)
    return Dataset(
        name=name,
        train=train,
        validation=held_out,
        test=test,
        classes=raw.classes,
        mean=mean,
        std=std,
        augmentation=source.augmentation.scaled(train.images.shape[2] / native_height),
    )


def batches(
    split: Split, size: int, *, seed: int, epoch: int, augmentation: Augmentation, drop_last: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of `split` once, shuffled and augmented: uint8 (size, C, H, W) with int64 (size,).

    The same arguments give the same bytes, so that training goes on after a kill as if it had not been killed, and
    all the networks of a run see the same batches. drop_last: leave out a last batch of fewer than `size`.
    Raises UserError when the size is not positive, or when it exceeds the split and drop_last would leave nothing.
    """
    if size < 1 or (drop_last and size > len(split)):
        raise UserError(f"batch size {size} with {len(split)} images: choose 1 to {len(split)}")
    digest = hashlib.sha256(f"batches {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    order = torch.randperm(len(split), generator=generator)
    if drop_last:
        order = order[: len(split) // size * size]

    def produce() -> Iterator[tuple[Tensor, Tensor]]:
        for indices in order.split(size):
            batch = split.select(indices)
            yield augmentation(batch.images, generator), batch.labels

    return produce()


def normalise(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], *, channels_last: bool = False
) -> Tensor:
    """images: uint8 (N, C, H, W) → float32, (images / 255 - mean) / std, per channel."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}: normalise once, and after resizing")
    centre = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    width = torch.tensor(std, device=images.device).view(-1, 1, 1)
    x = images.float().mul_(1 / (255 * width)).sub_(centre / width)
    # Last, because arithmetic that broadcasts over channels is several times slower in that layout.
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images: uint8 or float (N, C, H, W) → the same type (N, C, *size): bilinear, antialiased when it shrinks."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    # torch's kernel for bytes fails an internal assertion at 1×1 and is missing on CUDA: bytes go through floats.
    resized = F.interpolate(images.float(), tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized.to(images.dtype)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"there is no data set {name!r}: choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def _locate(name: str, source: Source, folder: Path | None) -> Path:
    if source.place is None:
        return Path()
    found = source.place.find(folder)
    if found is None and folder is None and source.fetch is not None:
        try:
            return source.fetch()
        except UserError as error:
            raise UserError(f"{error}; {source.place.missing(name, folder)}") from error
    if found is None:
        raise source.place.missing(name, folder)
    return found


def _hold_out(name: str, split: Split, count: int | None) -> tuple[Split, Split]:
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


def _fit(name: str, split: Split, shape: Shape) -> Split:
    """The split with its images brought to `shape`: colour → grey by luma (ITU-R BT.601), grey → colour by repeat."""
    channels, height, width = shape
    check_bytes(name, len(split), shape)

    def fit(images: Tensor) -> Tensor:
        if channels == 1 and images.shape[1] == 3:
            luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            images = (images * luma).sum(1, keepdim=True).round_().to(torch.uint8)
        return resize(images, (height, width)).expand(-1, channels, -1, -1)

    if tuple(split.images.shape[1:]) == shape:
        return split
    fitted = torch.empty(len(split), *shape, dtype=torch.uint8)
    for old, new in zip(split.images.split(1024), fitted.split(1024), strict=True):
        new.copy_(fit(old))
    return Split(fitted, split.labels)


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, exact from integer sums; a constant channel's is one grey level."""
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in images.split(1024):
        wide = part.to(torch.int32)
        total += wide.sum((0, 2, 3))
        squares += (wide * wide).sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total.double() / count
    std = (squares.double() / count - mean**2).clamp(min=1.0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


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
