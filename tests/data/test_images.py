"""One reader of image files: what a folder is trained on is what a single file is read as."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from parelu.data import load
from parelu.errors import UserError
from parelu.network import preprocessing
from parelu.network.images import MOST_PIXELS, fit, read_image, shape_of

GREY = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(255 - GREY))
    return image


def sixteen(values: np.ndarray, mode: str = "I;16") -> Image.Image:
    kind = ">u2" if mode == "I;16B" else "<u2"
    return Image.frombytes(mode, values.shape[::-1], values.astype(kind).tobytes())


CASES = {
    "1": (lambda: Image.fromarray(GREY > 127), "a.png", np.where(GREY > 127, 255, 0)),
    "L": (lambda: Image.fromarray(GREY), "a.png", GREY),
    "LA": (lambda: with_alpha(Image.fromarray(GREY)), "a.png", GREY),
    "16 bits": (lambda: sixteen(GREY.astype(np.uint16) * 257), "a.png", GREY),
    "upper 8 of 16": (lambda: sixteen(GREY.astype(np.uint16) * 256 + 255), "a.png", GREY),
    "16 bits of a PGM": (lambda: sixteen(GREY.astype(np.uint16) * 257), "a.pgm", GREY),
    "16 bits, big end first": (lambda: sixteen(GREY.astype(np.uint16) * 257, "I;16B"), "a.tiff", GREY),
    "RGB": (lambda: Image.fromarray(COLOUR), "a.png", COLOUR),
    "RGBA": (lambda: with_alpha(Image.fromarray(COLOUR)), "a.png", COLOUR),
    "CMYK": (lambda: Image.fromarray(COLOUR).convert("CMYK"), "a.tiff", COLOUR),
    "P": (lambda: Image.fromarray(COLOUR).quantize(256), "a.png", COLOUR),
}


@pytest.mark.parametrize("case", CASES)
def test_modes_and_depths(case: str, tmp_path: Path):
    make, name, expected = CASES[case]
    path = saved(tmp_path, make(), name)
    shape = (3 if expected.ndim == 3 else 1, 9, 12)
    assert shape_of(path) == shape
    got = read_image(path, shape)
    assert got.shape == shape and got.dtype == np.uint8
    assert np.array_equal(got, expected.reshape(9, 12, -1).transpose(2, 0, 1))
    assert np.array_equal(read_image(path, (3, 9, 12)), np.broadcast_to(got, (3, 9, 12)))


@settings(max_examples=60)
@given(st.data())
def test_an_array_is_fitted_as_a_tensor_is(data: st.DataObject):
    """But for one level, where float32 puts a pixel between two: that a client without torch sees what was trained."""
    channels, height, width, rows, columns, wanted = (
        data.draw(st.sampled_from(known))  # a single column torch makes something else of
        for known in ((1, 3), *[(2, 5, 8, 12, 28, 33)] * 4, (1, 3))
    )
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (channels, height, width), np.uint8)
    shape = (wanted, rows, columns)
    ours, theirs = fit(pixels, shape), preprocessing.fit(torch.from_numpy(pixels)[None], shape)[0].numpy()
    apart = np.abs(ours.astype(int) - theirs.astype(int))
    assert ours.shape == shape and apart.max() <= 1 and (apart > 0).mean() <= 0.2


def test_a_palette_with_a_transparent_colour_and_other_forms_of_the_same_picture(tmp_path: Path):
    image = Image.fromarray(COLOUR).quantize(256)
    plain = read_image(saved(tmp_path, image), (3, 9, 12))
    assert np.array_equal(read_image(saved(tmp_path, image, "b.png", transparency=0), (3, 9, 12)), plain)
    as_bytes = saved(tmp_path, image, "c.png", transparency=bytes(range(255)))
    assert np.array_equal(read_image(as_bytes, (3, 9, 12)), plain)
    assert np.array_equal(read_image(saved(tmp_path, image, "d.gif"), (3, 9, 12)), plain)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_orientation_turns_the_pixels_upright(orientation: int, bits: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(GREY) if bits == 8 else sixteen(GREY.astype(np.uint16) * 257)
    path = saved(tmp_path, image, exif=exif)
    # What row 0 and column 0 of the file show, by the table of the EXIF standard, 4.6.5.
    upright = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY.T[:, ::-1],
        7: GREY.T[::-1, ::-1],
        8: GREY.T[::-1],
    }[orientation]
    assert shape_of(path) == (1, *upright.shape)
    assert np.array_equal(read_image(path, (1, *upright.shape))[0], upright)


@pytest.mark.parametrize("shape", [None, (1, 6, 6), (3, 20, 7)])
def test_a_file_is_read_as_the_folder_is(shape: tuple[int, int, int] | None, tmp_path: Path):
    pictures = [(make(), Path(name).suffix) for make, name, _ in CASES.values() if not name.endswith("tiff")]
    pictures += [(Image.fromarray(COLOUR).resize((31, 5)), ".jpg"), (Image.fromarray(GREY).resize((3, 40)), ".webp")]
    for part in ("train", "test"):
        for kind in "ab":
            for number, (image, suffix) in enumerate(pictures):
                saved(tmp_path, image, f"{part}/{kind}/{number:02}{suffix}")
    dataset = load("folder", folder=tmp_path, input_shape=shape)
    files = sorted((tmp_path / "test" / "a").iterdir())
    alone = np.stack([read_image(file, dataset.input_shape) for file in files])
    assert np.array_equal(dataset.test.images[dataset.test.labels == 0], alone)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def frames(form: str) -> bytes:
    file = io.BytesIO()
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    first.save(file, form, save_all=True, append_images=[second])
    return file.getvalue()


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


DAMAGED = {
    "text": (b"no image", "not a readable image"),
    "nothing": (b"", "not a readable image"),
    "truncated": (encoded(Image.fromarray(COLOUR).resize((99, 99)), "JPEG")[:-400], "not a whole image .*truncated"),
    "huge": (png_header(65_000, 65_000), "more than 64 megapixels"),
    "larger than Pillow warns of": (png_header(10_000, 10_000), "more than 64 megapixels"),
    "animated GIF": (frames("GIF"), "an animation or several pages"),
    "animated PNG": (frames("PNG"), "an animation or several pages"),
    "pages": (frames("TIFF"), "an animation or several pages"),
    "floats": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "pixels of mode F"),
    "32 bits": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "pixels of mode I, whose range"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_image_to_go_by_is_one_line(case: str, tmp_path: Path):
    content, complaint = DAMAGED[case]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (lambda: read_image(path, (3, 8, 8)), lambda: shape_of(path)):
        with pytest.raises(UserError, match=f"^{path}: {complaint}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_the_largest_allowed(tmp_path: Path):
    with pytest.raises(UserError, match="there is no such image"):
        read_image(tmp_path / "a.png", (1, 8, 8))
    assert MOST_PIXELS > 50e6, "cameras make as many"
