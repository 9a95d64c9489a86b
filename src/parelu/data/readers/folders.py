"""Sets that are folders of image files: TinyImageNet, ImageNet, and a user's own.

What fits is decoded once, then cached; a set of more than `STREAMED` bytes stays in its files.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from parelu.data.files import Files
from parelu.data.images import read_images
from parelu.data.readers.base import Images, Place, Raw, Shape, Split, cached
from parelu.errors import UserError
from parelu.network.images import shape_of

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp")
VERSION = 3  # raise it whenever `read_images` makes something else of a file: it is part of the cache's key
STREAMED = 4 << 30  # bytes of a set's images in memory
TINY_CLASSES = 200
# Of the million photos of ImageNet, as all of torchvision's networks are trained with.
IMAGENET_MOMENTS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_SHAPE = (3, 224, 224)

TINY_IMAGENET = Place(
    folder="tiny-imagenet-200",
    files=("wnids.txt", "train", "val/val_annotations.txt", "val/images"),
    remedy="unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip (248,100,043 bytes, MD5 "
    "90528d7ca1a48142e341f4ef8d21d0de) as {folder}, or name its folder with --data-folder DIR",
)
IMAGENET = Place(
    folder="imagenet",
    files=("train", "val"),
    remedy="unpack ILSVRC2012_img_train.tar (138 GB, MD5 1d675b47d978889d74fa0da5fadfb00e) and ILSVRC2012_img_val.tar "
    "(6.3 GB, MD5 29b22e2961454d5413ddabcf34fc5622) of https://image-net.org/download-images, for which you sign up, "
    "as {folder}/train/CLASS/ and {folder}/val/CLASS/, as torchvision.datasets.ImageNet does, or name their folder "
    "with --data-folder DIR",
)
FOLDER = Place(
    files=("train", "test"),
    remedy="name with --data-folder DIR a folder of images in DIR/train/CLASS/ and DIR/test/CLASS/",
)


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, and the label of each, before any is opened: names, bytes, times of change, (N,)."""

    folder: Path
    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    changed: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def streamed(self, shape: Shape, *, crops: bool = False) -> Files:
        return Files(self.folder, self.names, torch.from_numpy(self.sizes), torch.from_numpy(self.labels), shape, crops)

    def paths(self) -> list[Path]:
        return [self.folder / os.fsdecode(name) for name in self.names]


def read_folder(location: Path, shape: Shape | None = None) -> Raw:
    """A folder of images, `train/CLASS/*` and `test/CLASS/*`.

    The classes are numbered in the order of their names. Every image is brought to `shape`, or to that of the first
    training image: uint8 (N, C, H, W), C = 1 or 3. Raises UserError naming the folder or file: no or one class,
    classes that differ, no images, a corrupt image.
    """
    names = _classes(location, "train", "test", FOLDER)
    train, test = (_listing(location, _folders(part, names)) for part in ("train", "test"))
    return _images("folder", train, test, len(names), shape or shape_of(train.paths()[0]))


def read_imagenet(location: Path, shape: Shape | None = None) -> Raw:
    """ImageNet or any folders like it, `train/CLASS/*` and `val/CLASS/*`, streamed: val is the test split.

    The classes are numbered in the order of their names, as torchvision does. Training images are random parts,
    resized to `shape` (3×224×224); the others are resized to 8/7 of it, and the centre is cut out. Raises UserError.
    """
    shape = shape or IMAGENET_SHAPE
    names = _classes(location, "train", "val", IMAGENET)
    train, test = (_listing(location, _folders(part, names)).streamed(shape, crops=True) for part in ("train", "val"))
    return Raw(train, test, len(names), IMAGENET_MOMENTS if shape[0] == 3 else None)


def read_tiny_imagenet(location: Path, shape: Shape | None = None) -> Raw:
    """TinyImageNet: 100,000 + 10,000 images, 64×64 in colour.

    uint8 (N, 3, 64, 64), 200 classes in the order of wnids.txt. The published test images have no labels, so val is
    the test split. Raises UserError naming the folder or file.
    """
    names = _lines(location / "wnids.txt")
    if len(set(names)) != TINY_CLASSES or len(names) != TINY_CLASSES:
        raise UserError(
            f"{location / 'wnids.txt'}: {len(set(names))} classes, not {TINY_CLASSES}: unpack the archive again"
        )
    number = {name: label for label, name in enumerate(names)}
    train = _listing(location, [(f"train/{name}/images", label) for name, label in number.items()])
    annotations = location / "val" / "val_annotations.txt"
    files: list[tuple[str, int]] = []
    for line in _lines(annotations):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in number or Path(name).name != name:
            raise UserError(f"{annotations}: the line {line!r} names no class of wnids.txt: unpack the archive again")
        files.append((f"val/images/{name}", number[wnid]))
    if not files:
        raise UserError(f"{annotations}: names no image: unpack the archive again")
    rows = [(*_status(location / name), name, label) for name, label in files]
    return _images("tiny-imagenet", train, _listed(location, rows), TINY_CLASSES, (3, 64, 64), shape)


def _classes(location: Path, train: str, test: str, place: Place) -> list[str]:
    """The class folders of both parts, which are the same."""
    layout = place.remedy.format(folder=location)
    names, tested = (_class_names(location / part, layout) for part in (train, test))
    if len(names) < 2:
        raise UserError(f"{location / train}: {len(names)} class folders, at least 2 are needed: {layout}")
    different = sorted(set(names) ^ set(tested))
    if different:
        raise UserError(
            f"{location}: class folder {different[0]!r} is in only one of {train} and {test}: both need every class"
        )
    return names


def _class_names(folder: Path, layout: str) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder: {layout}")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _folders(part: str, names: list[str]) -> list[tuple[str, int]]:
    return [(f"{part}/{name}", label) for label, name in enumerate(names)]


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): unpack the archive again") from error


Row = tuple[int, int, str, int]  # bytes, time of change, name, label


def _listing(location: Path, folders: list[tuple[str, int]]) -> Listing:
    rows: list[Row] = []
    for folder, label in folders:
        place = location / folder
        try:
            found = sorted(os.scandir(place), key=lambda entry: entry.name) if place.is_dir() else []
        except OSError as error:
            raise UserError(f"{place}: cannot be read ({error.strerror}): restore it") from error
        images = [entry for entry in found if _is_image(entry.name)]
        if not images:
            raise UserError(f"{place}: has no images: add some ({', '.join(SUFFIXES)}) or remove the class")
        rows += [(*_status(entry), f"{folder}/{entry.name}", label) for entry in images]
    return _listed(location, rows)


def _listed(location: Path, rows: list[Row]) -> Listing:
    sizes, changed, names, labels = zip(*rows, strict=True)
    numbers = (np.array(column, dtype=np.int64) for column in (sizes, changed, labels))
    return Listing(location, np.array([os.fsencode(name) for name in names]), *numbers)


def _status(entry: os.DirEntry[str] | Path) -> tuple[int, int]:
    try:
        found = entry.stat()
    except OSError as error:
        raise UserError(f"{os.fspath(entry)}: cannot be read ({error.strerror}): restore it") from error
    return found.st_size, found.st_mtime_ns


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _images(stem: str, train: Listing, test: Listing, classes: int, shape: Shape, asked: Shape | None = None) -> Raw:
    """The files' images, brought to `shape`: decoded and cached, or streamed where `asked` for what is too large."""
    if sum(len(part) for part in (train, test)) * max(math.prod(shape), math.prod(asked or shape)) > STREAMED:
        return Raw(train.streamed(shape), test.streamed(shape), classes)
    digest = hashlib.sha256(f"{VERSION} {train.folder.resolve()} {classes} {shape}".encode())
    for part in (train, test):
        for name, label, size, changed in zip(part.names, part.labels, part.sizes, part.changed, strict=True):
            digest.update(b"%b\0%d %d %d\n" % (name, label, size, changed))
        digest.update(b"\0")
    return cached(stem, digest.hexdigest()[:16], lambda: Raw(_decode(train, shape), _decode(test, shape), classes))


def _decode(listing: Listing, shape: Shape) -> Images:
    return Split(read_images(listing.paths(), shape), torch.from_numpy(listing.labels))
