"""Sets that are folders of image files: TinyImageNet, and a user's own. Decoded once, then cached."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from parelu.data.images import read_images, shape_of
from parelu.data.readers.base import Place, Raw, Shape, Split, cached, check_bytes
from parelu.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"}
VERSION = 2  # raise it whenever `read_images` makes something else of a file: it is part of the cache's key
TINY_CLASSES = 200

TINY_IMAGENET = Place(
    folder="tiny-imagenet-200",
    files=("wnids.txt", "train", "val/val_annotations.txt", "val/images"),
    remedy="unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip as {folder}, "
    "or name its folder with --data-folder DIR",
)
FOLDER = Place(
    files=("train", "test"),
    remedy="name with --data-folder DIR a folder of images in DIR/train/CLASS/ and DIR/test/CLASS/",
)


@dataclass(frozen=True)
class Listing:
    """Image files and the label of each, before any is opened."""

    paths: list[Path]
    labels: list[int]


def read_folder(location: Path, shape: Shape | None = None) -> Raw:
    """A folder of images, `train/CLASS/*` and `test/CLASS/*`.

    The classes are numbered in the order of their names. Every image is brought to `shape`, or to that of the first
    training image: uint8 (N, C, H, W), C = 1 or 3. Raises UserError naming the folder or file: no or one class,
    classes that differ, no images, a corrupt image.
    """
    names = _class_names(location / "train")
    if len(names) < 2:
        raise UserError(f"{location / 'train'}: {len(names)} class folders, at least 2 are needed: {_layout()}")
    different = sorted(set(names) ^ set(_class_names(location / "test")))
    if different:
        raise UserError(
            f"{location}: class folder {different[0]!r} is in only one of train and test: both need every class"
        )
    train, test = (
        _listing([(location / part / name, label) for label, name in enumerate(names)]) for part in ("train", "test")
    )
    return _decoded("folder", location, train, test, len(names), shape or shape_of(train.paths[0]))


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
    train = _listing([(location / "train" / name / "images", label) for name, label in number.items()])
    annotations = location / "val" / "val_annotations.txt"
    paths, labels = [], []
    for line in _lines(annotations):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in number or Path(name).name != name:
            raise UserError(f"{annotations}: the line {line!r} names no class of wnids.txt: unpack the archive again")
        paths.append(location / "val" / "images" / name)
        labels.append(number[wnid])
    if not paths:
        raise UserError(f"{annotations}: names no image: unpack the archive again")
    return _decoded("tiny-imagenet", location, train, Listing(paths, labels), TINY_CLASSES, (3, 64, 64))


def _layout() -> str:
    return FOLDER.remedy


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder: {_layout()}")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): unpack the archive again") from error


def _listing(folders: list[tuple[Path, int]]) -> Listing:
    paths: list[Path] = []
    labels: list[int] = []
    for folder, label in folders:
        found = sorted(p for p in folder.iterdir() if _is_image(p)) if folder.is_dir() else []
        if not found:
            raise UserError(f"{folder}: has no images: add some ({', '.join(sorted(SUFFIXES))}) or remove the class")
        paths += found
        labels += [label] * len(found)
    return Listing(paths, labels)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _decoded(stem: str, location: Path, train: Listing, test: Listing, classes: int, shape: Shape) -> Raw:
    for listing in (train, test):
        check_bytes(str(location), len(listing.paths), shape)
    digest = hashlib.sha256(f"{VERSION} {location.resolve()} {classes} {shape}".encode())
    for listing in (train, test):
        for path, label in zip(listing.paths, listing.labels, strict=True):
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}): restore it") from error
            name = os.fsencode(path.relative_to(location))
            digest.update(b"%b\0%d %d %d\n" % (name, label, status.st_size, status.st_mtime_ns))
        digest.update(b"\0")
    return cached(stem, digest.hexdigest()[:16], lambda: Raw(_decode(train, shape), _decode(test, shape), classes))


def _decode(listing: Listing, shape: Shape) -> Split:
    return Split(read_images(listing.paths, shape), torch.tensor(listing.labels))
