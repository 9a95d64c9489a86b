"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): colour 32×32 images, from the archives' *binary version*."""

from pathlib import Path

import numpy as np
import torch

from parelu.data.readers.base import Place, Raw, Shape, Split, check_labels
from parelu.errors import UserError

PIXELS = 3 * 32 * 32
FILE_LIMIT = 2**30  # bytes that one file may hold

_TEN_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


def _place(folder: str, archive: str, files: tuple[str, ...]) -> Place:
    url = f"https://www.cs.toronto.edu/~kriz/{archive}"
    return Place(
        folder=folder,
        files=files,
        remedy=f"unpack {url} (the binary version) so that the files lie in {{folder}}, "
        "or name their folder with --data-folder DIR",
    )


CIFAR10 = _place("cifar-10-batches-bin", "cifar-10-binary.tar.gz", (*_TEN_TRAIN, "test_batch.bin"))
CIFAR100 = _place("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin", "test.bin"))


def read_ten(location: Path, shape: Shape | None = None) -> Raw:
    """CIFAR-10: 50,000 + 10,000 images, 32×32 in colour, the binary version.

    uint8 (N, 3, 32, 32), 10 classes. A record is the label and 3,072 bytes. Raises UserError.
    """
    parts = [_records(location / name, label=0, labels=1, classes=10) for name in _TEN_TRAIN]
    train = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return Raw(train, _records(location / "test_batch.bin", label=0, labels=1, classes=10), classes=10)


def read_hundred(location: Path, shape: Shape | None = None) -> Raw:
    """CIFAR-100: 50,000 + 10,000 images, 32×32 in colour, the binary version.

    uint8 (N, 3, 32, 32), 100 fine classes. A record is two labels (coarse, fine) and 3,072 bytes.
    """
    train, test = (_records(location / name, label=1, labels=2, classes=100) for name in CIFAR100.files)
    return Raw(train, test, classes=100)


def _records(path: Path, *, label: int, labels: int, classes: int) -> Split:
    try:
        size = path.stat().st_size
        if not 0 < size <= FILE_LIMIT or size % (labels + PIXELS):
            raise UserError(
                f"{path}: {size:,} bytes is not a whole number of records of {labels + PIXELS:,}: "
                "unpack the binary version of the archive again"
            )
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): unpack the archive again") from error
    records = torch.from_numpy(content).view(-1, labels + PIXELS)
    images = records[:, labels:].reshape(-1, 3, 32, 32)
    return Split(images, check_labels(path, records[:, label], classes))
