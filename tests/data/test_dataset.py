"""parelu.data: laws of splits and augmentation, every reader and what it refuses, the cache, the download."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import logging
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from parelu.data import dataset
from parelu.data.augmentation import Augmentation
from parelu.data.batches import batches
from parelu.data.dataset import available, load, names
from parelu.data.readers import colour, digits, fashion
from parelu.data.readers.base import Split, spread
from parelu.errors import UserError
from parelu.network import cache
from parelu.network.preprocessing import normalise, resize

DEBIAN = fashion.PLACE.system
assert DEBIAN is not None


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty cache, no Fashion-MNIST on the system, and a download server that refuses at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fashion, "BASE_URL", "http://127.0.0.1:9/")
    place = dataclasses.replace(fashion.PLACE, system=tmp_path / "absent")
    for name in ("fashion-mnist", "colour-fashion"):
        monkeypatch.setitem(dataset.ENTRIES, name, dataclasses.replace(dataset.ENTRIES[name], place=place))


def write_idx(path: Path, array: np.ndarray, *, magic: int | None = None) -> None:
    header = struct.pack(f">{1 + array.ndim}I", magic or 0x800 + array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, *, train: int = 60, test: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return folder


def write_images(folder: Path, *, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> Path:
    for part, count in (("train", 5), ("test", 2)):
        for number, name in enumerate(("ant", "bee")):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                grey = Image.new("L", size, 40 + 100 * number + index)
                grey.convert(mode).save(folder / part / name / f"{index}.png")
    return folder


def random_split(count: int, classes: int = 4, shape: tuple[int, int, int] = (1, 3, 3), seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), generator=generator).to(torch.uint8)
    return Split(images, torch.randint(classes, (count,), generator=generator))


def rows(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Choosing images


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
    proportional=st.booleans(),
)
@settings(deadline=None)
def test_spread_is_fair_and_nested(labels: list[int], share: float, seed: int, proportional: bool):
    target = torch.tensor(labels)
    count = round(share * len(labels))
    chosen = spread(target, count, seed=seed, proportional=proportional)
    assert len(set(chosen.tolist())) == len(chosen) == count
    assert set(chosen.tolist()) <= set(spread(target, len(labels), seed=seed, proportional=proportional).tolist())
    if count:
        fewer = spread(target, count - 1, seed=seed, proportional=proportional)
        assert set(fewer.tolist()) < set(chosen.tolist())
    sizes, taken = torch.bincount(target, minlength=5), torch.bincount(target[chosen], minlength=5)
    if proportional:  # one share of every class, rounded to the nearest
        there = sizes > 0
        low, high = ((taken + half)[there] / sizes[there] for half in (-0.5, 0.5))
        assert low.max() <= high.min() + 1e-6
    else:
        most = taken.max()
        assert ((taken >= most - 1) | (taken == sizes)).all()


def test_split_refuses_tensors_of_another_kind():
    with pytest.raises(ValueError, match="images must be uint8"):
        Split(torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels must be int64"):
        Split(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    split = random_split(7)
    assert len(split.take(3)) == 3
    with pytest.raises(UserError, match="ask for 1 to 7"):
        split.take(8)


def test_digits_splits_are_disjoint_stratified_and_fixed():
    digits = load("digits")
    assert digits.train.images.shape == (1294, 1, 8, 8)
    assert (len(digits.validation), len(digits.test), digits.classes) == (143, 360, 10)
    assert digits.train.images.max() == 255
    assert digits.train.images.min() == 0
    assert not rows(digits.train) & rows(digits.validation)
    assert not rows(digits.train) & rows(digits.test)
    assert not rows(digits.validation) & rows(digits.test)
    for held_out in (digits.validation, digits.test):
        assert torch.bincount(held_out.labels).float().std() < 1.5
    again = load("digits")
    assert torch.equal(digits.train.images, again.train.images)
    assert torch.equal(digits.validation.labels, again.validation.labels)


def test_images_keeps_a_balanced_subset_and_leaves_the_rest_alone():
    whole, part = load("digits"), load("digits", images=200, validation=97)
    assert torch.bincount(part.train.labels).tolist() == [20] * 10
    assert len(part.validation) == 97
    assert torch.equal(part.test.images, whole.test.images)
    assert not rows(part.train) & rows(part.validation)
    assert load("digits", images=1294).mean == whole.mean


@pytest.mark.parametrize("images", [0, -1, 1295])
def test_more_images_than_there_are(images: int):
    with pytest.raises(UserError, match=r"digits: .*there are 1,294 beside 143 for validation"):
        load("digits", images=images)


@pytest.mark.parametrize("validation", [0, 1437])
def test_impossible_validation_size(validation: int):
    with pytest.raises(UserError, match="ask for 1 to 1,436"):
        load("digits", validation=validation)


def test_moments_are_those_of_the_training_images():
    digits = load("digits", images=300)
    scaled = digits.train.images.double() / 255
    assert digits.mean == pytest.approx((scaled.mean().item(),))
    assert digits.std == pytest.approx((scaled.std(correction=0).item(),))
    x = normalise(digits.train.images, digits.mean, digits.std)
    assert x.dtype == torch.float32
    assert abs(x.mean().item()) < 1e-4
    assert x.std().item() == pytest.approx(1, abs=1e-3)


# Shapes


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 12), (3, 4, 4)])
def test_input_shape_brings_all_splits_to_it(shape: tuple[int, int, int]):
    digits = load("digits", images=50, input_shape=shape)
    assert digits.input_shape == shape
    for split in (digits.train, digits.validation, digits.test):
        assert tuple(split.images.shape[1:]) == shape
        assert split.images.dtype == torch.uint8
    if shape[0] == 3:
        assert torch.equal(digits.train.images[:, 0], digits.train.images[:, 2])
    assert len(digits.mean) == len(digits.std) == shape[0]


def test_pad_grows_with_the_image():
    assert load("digits", images=20).augmentation == Augmentation(pad=1)
    assert load("digits", images=20, input_shape=(1, 32, 32)).augmentation == Augmentation(pad=4)


def test_grey_to_colour_and_back_is_the_identity():
    grey = random_split(40, shape=(1, 5, 6))
    colourful = dataset._fit("x", grey, (3, 5, 6))
    assert torch.equal(dataset._fit("x", colourful, (1, 5, 6)).images, grey.images)


def test_luma_weights_green_most():
    primaries = (255 * torch.eye(3)).to(torch.uint8).view(3, 3, 1, 1)
    grey = dataset._fit("x", Split(primaries, torch.arange(3)), (1, 1, 1))
    assert grey.images.flatten().tolist() == [76, 150, 29]


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 0, 8), (3, 8, -1)])
def test_impossible_shapes(shape: tuple[int, int, int]):
    with pytest.raises(UserError, match="give \\(1 or 3, height, width\\)"):
        load("digits", input_shape=shape)


def test_a_set_too_large_for_memory_is_refused_before_it_is_allocated():
    with pytest.raises(UserError, match=r"digits: .* GiB, more than 16"):
        load("digits", input_shape=(3, 4096, 4096))


@given(level=st.integers(0, 255), height=st.integers(1, 9), width=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_resize_keeps_constants_and_types(level: int, height: int, width: int):
    for dtype in (torch.uint8, torch.float32):
        images = torch.full((2, 3, 6, 7), level, dtype=dtype)
        resized = resize(images, (height, width))
        assert resized.shape == (2, 3, height, width)
        assert resized.dtype == dtype
        assert (resized.float() - level).abs().max() <= (0 if dtype == torch.uint8 else 1e-3)


def test_resize_does_not_alias_and_agrees_between_types():
    stripes = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    stripes[..., ::2] = 200
    half = resize(stripes, (14, 14))
    assert (half[..., 1:-1].float() - 100).abs().max() <= 5
    assert (half.float() - resize(stripes.float(), (14, 14))).abs().max() <= 1
    assert resize(stripes, (28, 28)) is stripes


def test_normalise_layouts_agree_and_a_second_time_is_refused():
    images = random_split(5, shape=(3, 6, 4)).images
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    x = normalise(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(x.double(), expected, atol=1e-5)
    last = normalise(images, mean, std, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, x)
    with pytest.raises(ValueError, match="must be uint8"):
        normalise(x, mean, std)


# Augmentation and batches

shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


@given(shape=shapes, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_no_augmentation_is_the_identity(shape: tuple[int, int, int, int], seed: int):
    images = torch.randint(0, 256, shape, generator=generator(seed)).to(torch.uint8)
    assert torch.equal(Augmentation()(images, generator(seed)), images)


@given(shape=shapes, pad=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_crop_is_a_window_of_the_padded_image(shape: tuple[int, int, int, int], pad: int, seed: int):
    images = torch.randint(0, 256, shape, generator=generator(seed)).to(torch.uint8)
    cropped = Augmentation(pad=pad)(images, generator(seed))
    draws = generator(seed)
    top = torch.randint(2 * pad + 1, (shape[0],), generator=draws)
    left = torch.randint(2 * pad + 1, (shape[0],), generator=draws)
    height, width = shape[2:]
    for image, crop, y, x in zip(images.numpy(), cropped.numpy(), top.tolist(), left.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        assert np.array_equal(crop, padded[:, y : y + height, x : x + width])


def test_crop_keeps_the_interior_of_a_constant_and_reaches_every_offset():
    images = torch.full((400, 1, 8, 8), 9, dtype=torch.uint8)
    cropped = Augmentation(pad=2)(images, generator())
    assert (cropped[:, :, 2:-2, 2:-2] == 9).all()
    assert len({image.numpy().tobytes() for image in cropped}) == 25


@given(shape=shapes, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_flip_twice_with_the_same_draw_is_the_identity(shape: tuple[int, int, int, int], seed: int):
    images = torch.randint(0, 256, shape, generator=generator(seed)).to(torch.uint8)
    flip = Augmentation(flip=True)
    assert torch.equal(flip(flip(images, generator(seed)), generator(seed)), images)


def test_about_half_are_flipped():
    images = torch.arange(4, dtype=torch.uint8).expand(1000, 1, 1, 4)
    flipped = Augmentation(flip=True)(images, generator())[:, 0, 0, 0] == 3
    assert 400 < flipped.sum() < 600


def test_cutout_blackens_one_square_cut_off_at_the_edges():
    images = torch.full((300, 2, 9, 9), 7, dtype=torch.uint8)
    cut = Augmentation(cutout=3)(images, generator()) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    sides = {(int(square.any(1).sum()), int(square.any(0).sum()), int(square.sum())) for square in cut[:, 0]}
    assert {area for *_, area in sides} == {4, 6, 9}
    assert all(height * width == area for height, width, area in sides)


def test_negative_augmentation_is_refused():
    with pytest.raises(UserError, match="give 0 or more"):
        Augmentation(pad=-1)


@given(count=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(-3, 2**40), epoch=st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_an_epoch_sees_each_image_once(count: int, size: int, seed: int, epoch: int):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    split = Split(images, torch.arange(count))
    seen = list(batches(split, size, seed=seed, epoch=epoch, augmentation=Augmentation(), drop_last=False))
    labels = torch.cat([label for _, label in seen])
    assert sorted(labels.tolist()) == list(range(count))
    assert torch.equal(torch.cat([image for image, _ in seen]).flatten().long(), labels)
    if size <= count:
        kept = list(batches(split, size, seed=seed, epoch=epoch, augmentation=Augmentation()))
        assert [len(label) for _, label in kept] == [size] * (count // size)
        assert torch.equal(torch.cat([label for _, label in kept]), labels[: count // size * size])


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else():
    split = random_split(64, shape=(3, 6, 6))

    def epoch_of(seed: int, epoch: int) -> bytes:
        augmentation = Augmentation(pad=1, flip=True, cutout=2)
        drawn = batches(split, 16, seed=seed, epoch=epoch, augmentation=augmentation)
        return b"".join(images.numpy().tobytes() for images, _ in drawn)

    first = epoch_of(0, 0)
    torch.manual_seed(123)
    assert epoch_of(0, 0) == first
    assert len({first, epoch_of(0, 1), epoch_of(1, 0), epoch_of(1, 1), epoch_of(2**32, 0)}) == 5


@pytest.mark.parametrize("size", [0, 65])
def test_batch_size_that_would_train_nothing(size: int):
    with pytest.raises(UserError, match="choose 1 to 64"):
        batches(random_split(64), size, seed=0, epoch=0, augmentation=Augmentation())


# The registry


def test_unknown_set_lists_the_known_ones():
    with pytest.raises(UserError, match="'mnist': choose one of digits, fashion-mnist"):
        load("mnist")
    with pytest.raises(UserError, match="choose one of"):
        available("mnist")


@pytest.mark.parametrize("name", [name for name in names() if dataset.ENTRIES[name].place])
def test_missing_set_says_where_to_get_it(name: str, tmp_path: Path):
    assert not available(name)
    with pytest.raises(UserError, match="--data-folder DIR") as caught:
        load(name)
    if name != "folder":
        assert "http" in str(caught.value)
        assert str(tmp_path / "cache" / "parelu") in str(caught.value)
    assert "\n" not in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not available(name, folder=empty, download=True)
    with pytest.raises(UserError, match=f"{name}: no .* in {empty}: .*--data-folder DIR"):
        load(name, folder=empty)
    with pytest.raises(UserError, match=f"{name}: {tmp_path / 'typo'} is not a folder"):
        load(name, folder=tmp_path / "typo")


def test_digits_are_always_there():
    assert available("digits")


# Fashion-MNIST


def test_fashion_from_a_folder_and_from_the_cache(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    assert available("fashion-mnist", folder=folder)
    fashioned = load("fashion-mnist", folder=folder)
    assert fashioned.train.images.shape == (54, 1, 28, 28)
    assert (len(fashioned.validation), len(fashioned.test), fashioned.classes) == (6, 20, 10)
    assert fashioned.augmentation == Augmentation(pad=2, flip=True)
    write_fashion(tmp_path / "cache" / "parelu" / "fashion-mnist")
    assert available("fashion-mnist")
    assert torch.equal(load("fashion-mnist").train.images, fashioned.train.images)


def test_truncated_gz(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=f"{path}: cannot be read"):
        load("fashion-mnist", folder=folder)


def test_not_a_gz_at_all(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"<html>moved</html>")
    with pytest.raises(UserError, match=f"{path}: cannot be read"):
        load("fashion-mnist", folder=folder)


def test_damaged_gz_whose_length_is_right(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    path = folder / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: cannot be read .*CRC"):
        load("fashion-mnist", folder=folder)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\0\0\x08\x01", "ends within its header"),
        (struct.pack(">II", 0x803, 60) + bytes(60), "0x00000803, not with the 0x00000801"),
        (struct.pack(">II", 0x801, 60) + bytes(59), "has 59 bytes where its header promises 60"),
        (struct.pack(">II", 0x801, 60) + bytes(99), "has more bytes"),
        (struct.pack(">II", 0x801, 2**32 - 1), "promises 4,294,967,295 bytes"),
        (struct.pack(">II", 0x801, 0), "promises 0 bytes"),
        (struct.pack(">II", 0x801, 60) + bytes(59) + b"\x0a", r"label 10 is not in 0\.\.9"),
        (struct.pack(">II", 0x801, 30) + bytes(30), "30 labels for the 60 images"),
    ],
)
def test_wrong_idx_files_are_named(tmp_path: Path, content: bytes, complaint: str):
    folder = write_fashion(tmp_path / "mine")
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: .*{complaint}"):
        load("fashion-mnist", folder=folder)


def test_idx_images_of_another_size(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    path = folder / "train-images-idx3-ubyte.gz"
    write_idx(path, np.zeros((60, 32, 32)))
    with pytest.raises(UserError, match=f"{path}: images of 32×32"):
        load("fashion-mnist", folder=folder)


def test_a_class_without_images(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(60) % 9)
    with pytest.raises(UserError, match="fashion-mnist: no training image is of class 9"):
        load("fashion-mnist", folder=folder)


@pytest.mark.skipif(not fashion.PLACE.find(DEBIAN), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    real = load("fashion-mnist", folder=DEBIAN)
    assert (len(real.train), len(real.validation), len(real.test)) == (55_000, 5_000, 10_000)
    assert torch.bincount(real.train.labels).tolist() == [5_500] * 10
    assert torch.bincount(real.validation.labels).tolist() == [500] * 10
    assert real.mean == pytest.approx((0.2860,), abs=1e-3)
    assert real.std == pytest.approx((0.3530,), abs=1e-3)


# Download


@pytest.fixture
def server(tmp_path: Path):
    """A server of a small made-up Fashion-MNIST: (its URL, the right checksums)."""
    served = write_fashion(tmp_path / "served")
    for labels in served.glob("*labels*"):
        (served / f"{labels.name}.gz").write_bytes(gzip.compress(labels.read_bytes()))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        checksums = {name: hashlib.md5((served / name).read_bytes()).hexdigest() for name in fashion.MD5}
        yield f"http://127.0.0.1:{running.server_port}/", checksums
        running.shutdown()
        thread.join()


def test_download_fetches_once_and_tells_its_progress(server: tuple[str, dict[str, str]], tmp_path: Path):
    url, checksums = server
    told: list[tuple[str, int, int]] = []
    folder = fashion.download(base_url=url, checksums=checksums, progress=lambda *step: told.append(step))
    assert folder == tmp_path / "cache" / "parelu" / "fashion-mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(checksums)
    assert {name for name, done, total in told if done == total} == set(checksums)
    assert len(load("fashion-mnist").test) == 20
    fashion.download(base_url="http://127.0.0.1:9/", checksums=checksums)  # nothing is left to ask for


def test_load_downloads_what_is_missing(server: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch):
    url, checksums = server
    monkeypatch.setattr(fashion, "BASE_URL", url)
    fetch = functools.partial(fashion.download, checksums=checksums)
    entry = dataclasses.replace(dataset.ENTRIES["fashion-mnist"], fetch=fetch)
    monkeypatch.setitem(dataset.ENTRIES, "fashion-mnist", entry)
    assert not available("fashion-mnist")
    assert available("fashion-mnist", download=True)
    assert available("colour-fashion", download=True)
    assert len(load("fashion-mnist").train) == 54
    assert available("fashion-mnist")


def test_wrong_checksum_keeps_nothing(server: tuple[str, dict[str, str]], tmp_path: Path):
    url, _ = server
    with pytest.raises(UserError, match=f"{url}train-images-idx3-ubyte.gz has MD5 .* not the published file"):
        fashion.download(base_url=url)
    assert list((tmp_path / "cache" / "parelu" / "fashion-mnist").iterdir()) == []


def test_a_file_that_is_not_served(server: tuple[str, dict[str, str]]):
    url, checksums = server
    with pytest.raises(UserError, match=r"absent\.gz could not be downloaded .*404"):
        fashion.download(base_url=url, checksums={**checksums, "absent.gz": "0"})


def test_no_server():
    assert not available("fashion-mnist", download=True)
    with pytest.raises(UserError, match=r"could not be downloaded .*dataset-fashion-mnist"):
        load("fashion-mnist")


def test_download_into_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot be written .*XDG_CACHE_HOME"):
        fashion.download()


# colour-fashion and the cache


def test_colour_fashion_is_derived_and_deterministic(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    derived = load("colour-fashion", folder=folder)
    grey = load("fashion-mnist", folder=folder)
    assert derived.input_shape == (3, 28, 28)
    assert derived.augmentation == Augmentation()
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(derived, part).labels, getattr(grey, part).labels)
    images = grey.train.images
    assert torch.equal(colour.colour(images, seed=1), colour.colour(images, seed=1))
    assert not torch.equal(colour.colour(images, seed=1), colour.colour(images, seed=2))


def test_colour_fashion_shows_the_item_in_either_polarity_and_place():
    item = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    item[..., 8:20, 8:20] = 255
    coloured = colour.colour(item.expand(400, -1, -1, -1), seed=0).float()
    contrast = (coloured[:, :, 12:16, 12:16].mean((2, 3)) - coloured[:, :, :2, :2].mean((2, 3))).mean(1)
    assert 0.35 < (contrast > 0).float().mean() < 0.65
    assert contrast.abs().median() > 20
    empty = colour.colour(torch.zeros(400, 1, 28, 28, dtype=torch.uint8), seed=0)
    assert empty.float().std((2, 3)).mean() < contrast.abs().mean()


def test_colour_digits_is_derived_and_deterministic():
    derived, source = load("colour-digits"), digits.read()
    assert derived.input_shape == (3, 28, 28)
    assert len(derived.train) + len(derived.validation) == colour.COPIES * len(source.train)
    assert len(derived.test) == colour.COPIES * len(source.test)
    assert torch.equal(derived.test.labels, source.test.labels.repeat(colour.COPIES))
    assert torch.equal(derived.test.images, load("colour-digits").test.images)
    assert len(rows(derived.test)) == len(derived.test), "each copy is drawn anew"


def test_colour_digits_are_not_mirrored():
    """Two of them would be others; an item at one side stays nearer to it."""
    item = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    item[..., 8:20, 4:9] = 255
    for drawn, least, most in ((colour.Drawn(), 0.35, 0.65), (colour.DIGITS, 0.8, 1.0)):
        coloured = colour.colour(item.expand(400, -1, -1, -1), seed=0, drawn=drawn).float()
        left, right = (half.std((2, 3)).mean(1) for half in coloured.split(14, dim=3))
        assert least < (left > right).float().mean() <= most


def cache_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "parelu").iterdir()
    return path


def test_a_damaged_cache_is_built_anew(tmp_path: Path):
    folder = write_fashion(tmp_path / "mine")
    first = load("colour-fashion", folder=folder)
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    for damaged in (whole[:-1], whole[:5], b"", bytes(flipped)):
        path.unlink()
        path.write_bytes(damaged)
        again = load("colour-fashion", folder=folder)
        assert torch.equal(again.train.images, first.train.images)
        assert torch.equal(again.test.images, first.test.images)
        assert path.read_bytes() == whole
        assert cache_file(tmp_path) == path


def test_the_cache_is_read_and_knows_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_fashion(tmp_path / "mine")
    load("colour-fashion", folder=folder)
    with monkeypatch.context() as patched:
        patched.setattr(colour, "colour", None)
        load("colour-fashion", folder=folder)
    write_fashion(folder, train=70)
    assert len(load("colour-fashion", folder=folder).train) == 63


def test_an_unwritable_cache_costs_a_log_entry_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_fashion(tmp_path / "mine")
    (tmp_path / "cache").write_text("a file where a folder should be")
    with caplog.at_level(logging.INFO):
        derived = load("colour-fashion", folder=folder)
    assert len(derived.train) == 54
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "going on without a cache" in caplog.text


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    load("colour-fashion", folder=write_fashion(tmp_path / "mine"))
    assert list((tmp_path / "cache" / "parelu").iterdir()) == []


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "parelu"


# Folders of images


def test_folder_takes_its_shape_from_the_first_image(tmp_path: Path):
    folder = write_images(tmp_path / "mine")
    Image.new("L", (20, 16), 200).save(folder / "test" / "bee" / "9.png")
    (folder / "train" / "ant" / "notes.txt").write_text("not an image")
    own = load("folder", folder=folder, validation=2)
    assert own.input_shape == (3, 8, 10)
    assert own.classes == 2
    assert (len(own.train), len(own.validation), len(own.test)) == (8, 2, 5)
    assert own.test.images[:, 0, 0, 0].tolist() == [40, 41, 140, 141, 200]
    assert own.test.labels.tolist() == [0, 0, 1, 1, 1]
    assert own.augmentation == Augmentation(flip=True)
    assert load("folder", folder=folder, input_shape=(1, 6, 6)).input_shape == (1, 6, 6)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("P", 3), ("RGBA", 3)])
def test_folder_reads_other_modes(tmp_path: Path, mode: str, channels: int):
    own = load("folder", folder=write_images(tmp_path / "mine", mode=mode))
    assert own.input_shape == (channels, 8, 10)


def test_folder_is_cached_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from parelu.data.readers import folders

    folder = write_images(tmp_path / "mine")
    load("folder", folder=folder)
    with monkeypatch.context() as patched:
        patched.setattr(folders, "read_images", None)
        load("folder", folder=folder)
    path = folder / "test" / "ant" / "0.png"
    Image.new("RGB", (10, 8), (99, 99, 99)).save(path)
    os.utime(path, ns=(1, 1))
    assert load("folder", folder=folder).test.images[0].unique().tolist() == [99]


def test_corrupt_images_are_named(tmp_path: Path):
    folder = write_images(tmp_path / "mine", size=(64, 64))
    path = folder / "train" / "bee" / "1.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    for content in (path.read_bytes()[:3000], b"not an image", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}: not a (whole|readable) image"):
            load("folder", folder=folder)


def test_folder_classes_must_agree(tmp_path: Path):
    folder = write_images(tmp_path / "mine")
    (folder / "test" / "cat").mkdir()
    with pytest.raises(UserError, match="class folder 'cat' is in only one of train and test"):
        load("folder", folder=folder)
    (folder / "train" / "cat").mkdir()
    with pytest.raises(UserError, match=f"{folder / 'train' / 'cat'}: has no images"):
        load("folder", folder=folder)


def test_folder_without_classes(tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    with pytest.raises(UserError, match="0 class folders, at least 2"):
        load("folder", folder=tmp_path)


# TinyImageNet


def write_tiny(folder: Path, classes: int = 200) -> Path:
    names = [f"n{number:08d}" for number in range(classes)]
    folder.mkdir()
    (folder / "wnids.txt").write_text("\n".join(reversed(names)) + "\n")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number, name in enumerate(names):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for index in range(2):
            Image.new("RGB" if number else "L", (64, 64), number).save(images / f"{name}_{index}.JPEG")
        Image.new("RGB", (64, 64), number).save(folder / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet_reads_its_layout(tmp_path: Path):
    folder = write_tiny(tmp_path / "tiny-imagenet-200")
    tiny = load("tiny-imagenet", folder=tmp_path, validation=200)
    assert (len(tiny.train), len(tiny.validation), len(tiny.test)) == (200, 200, 200)
    assert tiny.input_shape == (3, 64, 64)
    assert tiny.augmentation == Augmentation(pad=8, flip=True)
    assert tiny.test.labels.tolist() == list(reversed(range(200)))  # wnids.txt counts down
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn99999999\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=f"{annotations}: the line 'val_0.JPEG.* names no class"):
        load("tiny-imagenet", folder=folder)
    annotations.write_text("gone.JPEG\tn00000000\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"gone\.JPEG: cannot be read"):
        load("tiny-imagenet", folder=folder)
    annotations.write_text("")
    with pytest.raises(UserError, match="names no image"):
        load("tiny-imagenet", folder=folder)
    (folder / "wnids.txt").write_text("n00000000\n")
    with pytest.raises(UserError, match=r"wnids\.txt: 1 classes, not 200"):
        load("tiny-imagenet", folder=folder)


def test_the_table_of_digits_is_scikit_learns(monkeypatch):
    """The file is read, or, where a version has it elsewhere, the package is asked."""
    read = digits._table()
    monkeypatch.setattr(digits.Path, "exists", lambda path: False)
    assert np.array_equal(digits._table(), read)
