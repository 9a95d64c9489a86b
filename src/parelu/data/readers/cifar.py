"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): colour 32×32 images, the binary or the python version, packed or not."""

import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from parelu.data.readers import pickled
from parelu.data.readers.base import Form, Place, Raw, Shape, Split, check_labels
from parelu.errors import UserError

PIXELS = 3 * 32 * 32
FILE_LIMIT = 2**30  # bytes that one file may hold


@dataclass(frozen=True)
class _Version:
    """One of the two forms of a set: its archive, the folder in that, its files, the last of which is the test."""

    archive: str
    contents: str  # bytes and MD5 of the archive
    folder: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Set:
    """labels: bytes of labels before each image of the binary version, the last of which counts; key: of the python
    version's labels."""

    classes: int
    binary: _Version
    python: _Version
    labels: int
    key: str

    def place(self) -> Place:
        versions = (self.binary, self.python)
        archives = " or ".join(f"{version.archive} ({version.contents})" for version in versions)
        return Place(
            folder=self.binary.folder,
            files=self.binary.files,
            others=(
                Form(self.python.folder, self.python.files),
                *(Form(".", (version.archive,)) for version in versions),
            ),
            remedy=f"put {archives} of https://www.cs.toronto.edu/~kriz/cifar.html, as it is or unpacked, into "
            "{around}, or name the folder it is in with --data-folder DIR",
        )


_NUMBERED = tuple(f"data_batch_{number}" for number in range(1, 6))
# Bytes and digests as published, https://www.cs.toronto.edu/~kriz/cifar.html.
_TEN = _Set(
    classes=10,
    binary=_Version(
        "cifar-10-binary.tar.gz",
        "162 MB, MD5 c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in (*_NUMBERED, "test_batch")),
    ),
    python=_Version(
        "cifar-10-python.tar.gz",
        "163 MB, MD5 c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        (*_NUMBERED, "test_batch"),
    ),
    labels=1,
    key="labels",
)
_HUNDRED = _Set(
    classes=100,
    binary=_Version(
        "cifar-100-binary.tar.gz",
        "161 MB, MD5 03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        ("train.bin", "test.bin"),
    ),
    python=_Version(
        "cifar-100-python.tar.gz",
        "161 MB, MD5 eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        ("train", "test"),
    ),
    labels=2,
    key="fine_labels",
)

CIFAR10, CIFAR100 = _TEN.place(), _HUNDRED.place()


def read_ten(location: Path, shape: Shape | None = None) -> Raw:
    """CIFAR-10: 50,000 + 10,000 images, 32×32 in colour, the binary or the python version.

    uint8 (N, 3, 32, 32), 10 classes. A record is the label and 3,072 bytes. Raises UserError.
    """
    return _read(location, _TEN)


def read_hundred(location: Path, shape: Shape | None = None) -> Raw:
    """CIFAR-100: 50,000 + 10,000 images, 32×32 in colour, the binary or the python version.

    uint8 (N, 3, 32, 32), 100 fine classes. A record is two labels (coarse, fine) and 3,072 bytes.
    """
    return _read(location, _HUNDRED)


def _read(location: Path, one: _Set) -> Raw:
    for version in (one.binary, one.python):
        archive = location / version.archive
        if all((location / name).is_file() for name in version.files):
            contents = {location / name: _content(location / name) for name in version.files}
        elif archive.is_file():
            contents = _unpacked(archive, version.files)
        else:
            continue
        parse = _records if version is one.binary else _batch
        *train, test = (parse(path, content, one) for path, content in contents.items())
        images, labels = (torch.cat([getattr(part, name) for part in train]) for name in ("images", "labels"))
        return Raw(Split(images, labels), test, one.classes)
    raise UserError(f"{location}: its files are not those of CIFAR-{one.classes}: unpack the archive again")


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise UserError(f"{path}: larger than {FILE_LIMIT:,} bytes: unpack the archive again")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): unpack the archive again") from error


def _unpacked(archive: Path, names: Sequence[str]) -> dict[Path, bytes]:
    """The files of these names in an archive, in memory: path as an error names it → content."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|gz") as packed:
            for member in packed:
                name = PurePosixPath(member.name).name
                if name in names and name not in found and member.isreg() and member.size <= FILE_LIMIT:
                    file = packed.extractfile(member)
                    assert file, "of a regular file"
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive}: cannot be read ({error}): replace the file with the original") from error
    lacking = [name for name in names if name not in found]
    if lacking:
        raise UserError(f"{archive}: has no {lacking[0]}: replace the file with the original")
    return {archive / name: found[name] for name in names}


def _records(path: Path, content: bytes, one: _Set) -> Split:
    """A file of the binary version."""
    size = one.labels + PIXELS
    if not content or len(content) % size:
        raise UserError(
            f"{path}: {len(content):,} bytes is not a whole number of records of {size:,}: unpack the archive again"
        )
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, size).copy())
    images = records[:, one.labels :].reshape(-1, 3, 32, 32)
    return Split(images, check_labels(path, records[:, one.labels - 1], one.classes))


def _batch(path: Path, content: bytes, one: _Set) -> Split:
    """A file of the python version."""
    try:
        found = pickled.read(content)
    except pickled.UnreadableError as error:
        raise UserError(f"{path}: not a file of CIFAR's python version, {error}: unpack the archive again") from error
    data, labels = found.get("data"), found.get(one.key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS or not len(data):
        raise UserError(f"{path}: has no images of {PIXELS:,} bytes as 'data': unpack the archive again")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(isinstance(n, int) for n in labels):
        raise UserError(f"{path}: has no label for each image as {one.key!r}: unpack the archive again")
    images = torch.from_numpy(data.copy()).view(-1, 3, 32, 32)
    return Split(images, check_labels(path, torch.tensor(labels), one.classes))
