"""Folders of photos that are none, laid out as ImageNet is."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850")
EXIF_ORIENTATION = 0x0112


def photo(path: Path, seed: int, size: tuple[int, int], mode: str = "RGB", **options: object) -> None:
    """Smooth random colours, so that a JPEG of it is about the same picture."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, **options)


def imagenet(folder: Path, train: int = 12, val: int = 4) -> Path:
    """train/CLASS and val/CLASS of JPEGs of many sizes, some grey, some CMYK, some lying on their side."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                seed = 100 * label + number
                size = 40 + 13 * (seed % 5), 36 + 17 * (seed % 4)
                mode = {1: "L", 2: "CMYK"}.get(number, "RGB")
                options = {"exif": exif} if number == 3 else {}
                photo(folder / part / name / f"{name}_{number}.JPEG", seed, size, mode, **options)
    return folder
