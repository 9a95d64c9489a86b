"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 70,000 grey 28×28 images of ten kinds of clothing, as idx files."""

import gzip
import hashlib
import http.client
import math
import os
import struct
import threading
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from parelu.data.readers.base import Place, Raw, Shape, Split, check_labels
from parelu.errors import UserError
from parelu.network import cache

BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

MD5 = {  # as published beside the files
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

PLACE = Place(
    folder="fashion-mnist",
    files=tuple(name.removesuffix(".gz") for name in MD5),
    system=Path("/usr/share/datasets/fashion-mnist"),
    remedy=(
        "install Debian's package dataset-fashion-mnist, or put the four files of "
        f"{BASE_URL} into {{folder}}, or name their folder with --data-folder DIR"
    ),
)

IDX_LIMIT = 2**30  # bytes that one idx file may hold
DOWNLOAD_LIMIT = 2**26  # bytes of one downloaded file; the largest is 26 MB

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that came so far, and the bytes in all (0: the server did not say)."""


def read(location: Path, shape: Shape | None = None) -> Raw:
    """Fashion-MNIST: 60,000 + 10,000 images, 28×28 in grey.

    The four idx files in `location`, each plain or .gz, as uint8 (N, 1, 28, 28). Raises UserError naming a file.
    """
    return Raw(*splits(location), classes=10)


def splits(location: Path) -> tuple[Split, Split]:
    """Its training and test images."""
    return _split(location, "train"), _split(location, "t10k")


def sources(location: Path) -> list[Path]:
    """The paths of the four files in `location`."""
    return [_file(location, name) for name in PLACE.files]


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor of so many `dimensions` in an idx file, plain or .gz.

    Raises UserError naming the file: another format, truncated, longer than its header says, damaged, too large.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions:
                raise UserError(f"{path}: ends within its header: replace the file with the original")
            magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if magic != 0x800 + dimensions:
                raise UserError(
                    f"{path}: starts with {magic:#010x}, not with the {0x800 + dimensions:#010x} of an idx file of "
                    f"{dimensions} dimension{'s' * (dimensions > 1)}: replace the file with the original"
                )
            size = math.prod(shape)
            if not 0 < size <= IDX_LIMIT:
                raise UserError(f"{path}: its header promises {size:,} bytes: replace the file with the original")
            body = bytearray(file.read(size + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}): replace the file with the original") from error
    if len(body) != size:
        has = f"{len(body):,}" if len(body) < size else "more"
        raise UserError(
            f"{path}: has {has} bytes where its header promises {size:,}: replace the file with the original"
        )
    return torch.frombuffer(body, dtype=torch.uint8).view(shape)


def reachable(*, base_url: str | None = None, timeout: float = 5.0) -> bool:
    """Whether the server of the files answers within `timeout` seconds, the look-up of its name included."""
    url = (base_url or BASE_URL) + next(iter(MD5))
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                answers.append(response.status == 200)
        except (OSError, http.client.HTTPException):
            answers.append(False)

    # A name server that does not answer is outside the reach of urlopen's timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return answers == [True]


def download(
    folder: Path | None = None,
    *,
    base_url: str | None = None,
    checksums: Mapping[str, str] = MD5,
    progress: Progress | None = None,
    timeout: float = 5.0,
) -> Path:
    """Fetches the files that `folder` (default: in the cache) lacks, and returns the folder.

    checksums: file name → MD5 of the file; a file takes its name only after it matched. timeout: seconds without a
    byte. Raises UserError naming the URL (no answer, wrong content) or the folder (not writable).
    """
    folder = folder or cache.folder() / "fashion-mnist"
    for name, checksum in checksums.items():
        if not (folder / name).is_file() or _md5(folder / name) != checksum:
            _fetch((base_url or BASE_URL) + name, folder / name, checksum, progress, timeout)
    return folder


def _fetch(url: str, path: Path, checksum: str, progress: Progress | None, timeout: float) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("wb")
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written ({error}): set XDG_CACHE_HOME to a folder that can"
        ) from error
    try:
        with file, urllib.request.urlopen(url, timeout=timeout) as response:
            total = response.length or 0
            done = 0
            while chunk := response.read(2**16):
                done += len(chunk)
                if done > DOWNLOAD_LIMIT:
                    raise UserError(f"{url} is larger than {DOWNLOAD_LIMIT:,} bytes: it is not the published file")
                file.write(chunk)
                if progress:
                    progress(path.name, done, total)
        if (found := _md5(partial)) != checksum:
            raise UserError(f"{url} has MD5 {found}, not {checksum}: it is not the published file; try again later")
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} could not be downloaded to {path.parent} ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _split(location: Path, prefix: str) -> Split:
    images_path = _file(location, f"{prefix}-images-idx3-ubyte")
    labels_path = _file(location, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise UserError(
            f"{images_path}: images of {images.shape[1]}×{images.shape[2]}, not 28×28: this is not Fashion-MNIST"
        )
    if len(images) != len(labels):
        raise UserError(
            f"{labels_path}: {len(labels):,} labels for the {len(images):,} images of {images_path.name}: "
            "replace both with the originals"
        )
    return Split(images.unsqueeze(1), check_labels(labels_path, labels, 10))


def _file(location: Path, name: str) -> Path:
    plain = location / name
    return plain if plain.is_file() else location / f"{name}.gz"
