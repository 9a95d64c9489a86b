"""Image files: one reader, for the folders that networks are trained on and for the images that are inferred.

A picture is turned upright as its EXIF says, becomes grey or RGB of 8 bits by its own mode (of 16 bits the upper 8;
transparency is dropped), and is then brought to a shape, whole or in part. All is numpy's: a client of private
inference runs without torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from parelu.errors import UserError

GREY = {"1", "L", "LA", "La"}
SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
COLOUR = {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}  # their pixels of mode I, 32 bits wide, have 16
SEVERAL_VIEWS = {"MPO"}  # of one picture, as some cameras write: the first is the picture
MOST_PIXELS = 64 << 20  # of one image
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601
Box = tuple[int, int, int, int]  # left, top, right, bottom
Shape = tuple[int, int, int]  # channels, height, width
Pixels = NDArray[np.uint8]


def read_image(path: Path, shape: Shape, middle: float | None = None) -> Pixels:
    """An image file as uint8 (C, H, W) of `shape`: whole, or its `centre`.

    middle: the share of its smaller side that is the centre; None for the whole image.

    Raises:
        UserError: the file is missing, no image, damaged, an animation, of more than 64 megapixels, or of numbers whose
            range is unknown (32 bits, floats).
    """
    silence()
    return whole(path, shape) if middle is None else centre(path, shape, middle)


def shape_of(path: Path) -> Shape:
    """(C, H, W) of an image file as it is: 1 channel of a grey one, 3 of any other; raises as `read_image` does."""
    silence()
    channels, height, width = _pixels(_picture(path)).shape
    return channels, height, width


def whole(path: Path, shape: Shape) -> Pixels:
    """An image file as uint8 (C, H, W) of `shape`, nothing cropped; call `silence` first."""
    return fit(_pixels(_picture(path)), shape)


def fit(pixels: Pixels, shape: Shape) -> Pixels:
    """uint8 (C, H, W) → uint8 of `shape`: colour → grey by luma, grey → colour by repeating, then resized.

    As `preprocessing.fit` does with tensors, but for what float32 rounds: one level, where a pixel is between two.
    """
    channels, height, width = shape
    if channels == 1 and len(pixels) == 3:
        red, green, blue = (np.float32(share) * channel for share, channel in zip(LUMA, pixels, strict=True))
        pixels = np.rint(red + green + blue).astype(np.uint8)[None]
    resized = np.stack([_resized(channel, height, width) for channel in pixels])
    return np.repeat(resized, channels, 0) if len(resized) < channels else resized


def _resized(channel: Pixels, height: int, width: int) -> Pixels:
    """(H, W) → (height, width): bilinear, antialiased when it shrinks."""
    if channel.shape == (height, width):
        return channel
    floats = Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(floats)).clip(0, 255).astype(np.uint8)


def part(path: Path, shape: Shape, box: Callable[[int, int], Box]) -> Pixels:
    """A part of an image file, resized to `shape` as torchvision does: uint8 (C, H, W); call `silence` first.

    box: of the picture's width and height.
    """
    picture = _coloured(_picture(path), shape[0])
    return _pixels(picture.crop(box(*picture.size)).resize((shape[2], shape[1]), Image.Resampling.BILINEAR))


def centre(path: Path, shape: Shape, share: float) -> Pixels:
    """The centre of an image file, as ImageNet's networks are tested on it: uint8 (C, H, W); call `silence` first.

    It is resized until the smaller of its sides, over that of `shape`, is 1 / share; then `shape` is cut out.
    """
    picture, (_, height, width) = _coloured(_picture(path), shape[0]), shape
    # The side that binds exactly, the other rounded down, as torchvision's Resize(256) does before CenterCrop(224).
    if height * picture.width >= width * picture.height:
        high = round(height / share)
        size = max(width, int(high * picture.width / picture.height)), high
    else:
        wide = round(width / share)
        size = wide, max(height, int(wide * picture.height / picture.width))
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    return _pixels(resized.crop((left, top, left + width, top + height)))


def silence() -> None:
    """Keep Pillow from warning of what is checked here: in any thread, so for good."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header is read and found good."""
    try:
        image = Image.open(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image; name an image file") from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"{path}: not a readable image ({_line(error)}): replace or remove it") from error
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise _too_large(path)
        if getattr(image, "is_animated", False) and image.format not in SEVERAL_VIEWS:
            raise UserError(f"{path}: an animation or several pages, not one image: save the frame that is meant")
        has_range = image.mode != "I" or image.format in SIXTEEN_BIT_FORMATS
        if image.mode not in GREY | COLOUR | SIXTEEN_BITS | {"I"} or not has_range:
            raise UserError(
                f"{path}: pixels of mode {image.mode}, whose range nothing tells: save it with 8 or 16 bits a channel"
            )
        yield image


def _picture(path: Path) -> Image.Image:
    """All of an image file, upright, of mode L or RGB."""
    with _opened(path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in GREY | COLOUR:
                return upright.convert("L" if upright.mode in GREY else "RGB")
            return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        except Exception as error:  # as in _opened
            raise UserError(f"{path}: not a whole image ({_line(error)}): replace or remove it") from error


def _coloured(picture: Image.Image, channels: int) -> Image.Image:
    return picture.convert("L" if channels == 1 else "RGB")


def _pixels(picture: Image.Image) -> Pixels:
    """uint8 (C, H, W), C = 1 or 3."""
    array = np.array(picture)
    return np.ascontiguousarray(np.moveaxis(array.reshape(*array.shape[:2], -1), 2, 0))


def _too_large(path: Path) -> UserError:
    return UserError(f"{path}: more than {MOST_PIXELS >> 20} megapixels, or a damaged header: save it smaller")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
