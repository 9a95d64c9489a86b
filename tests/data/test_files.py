"""Sets that stay in files: the images that are in memory, the same crops whatever the threads, ImageNet's layout."""

import dataclasses
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
import torch
from hand_programs import Hand
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import CLASSES, photo
from PIL import Image
from torch import Tensor

from parelu.data.augmentation import Augmentation
from parelu.data.batches import batches
from parelu.data.dataset import Dataset, load
from parelu.data.files import AHEAD, AREA, CENTRE, RATIO, TRIES, Files, random_box
from parelu.data.readers import folders
from parelu.data.readers.base import Images, Split
from parelu.errors import UserError
from parelu.network.images import centre, read_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos.imagenet(tmp_path_factory.mktemp("data") / "imagenet")


def drawn(split: Images, size: int = 8, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
    found = list(batches(split, size, seed=seed, epoch=epoch, augmentation=Augmentation(flip=True), drop_last=False))
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


def in_memory(split: Images) -> Split:
    images, labels = zip(*split.in_order(5), strict=True)
    return Split(torch.cat(images), torch.cat(labels))


def test_a_folder_is_streamed_where_it_is_too_large_and_is_the_same_there(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own").mkdir()
    for ours, theirs in (("train", "train"), ("test", "val")):
        (tmp_path / "own" / ours).symlink_to(imagenet / theirs)
    kept = load("folder", folder=tmp_path / "own", input_shape=(3, 24, 20))
    monkeypatch.setattr(folders, "STREAMED", 48 * 3 * 24 * 20 - 1)
    streamed = load("folder", folder=tmp_path / "own", input_shape=(3, 24, 20))
    assert isinstance(kept.train, Split) and isinstance(streamed.train, Files)
    assert (streamed.input_shape, streamed.mean, streamed.std) == (kept.input_shape, kept.mean, kept.std)
    for name in ("train", "validation", "test"):
        a, b = getattr(kept, name), getattr(streamed, name)
        assert torch.equal(a.images, in_memory(b).images) and torch.equal(a.labels, b.labels)
        assert torch.equal(a.first(3), b.first(3)) and torch.equal(a.take(2).labels, b.take(2).labels)
        for ours, theirs in zip(drawn(a), drawn(b), strict=True):
            assert torch.equal(ours, theirs)


def test_tiny_imagenet_in_a_large_shape_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "TINY_CLASSES", 2)
    for name in ("a", "b"):
        (tmp_path / "train" / name / "images").mkdir(parents=True)
        for number in range(4):
            photo(tmp_path / "train" / name / "images" / f"{number}.JPEG", number, (64, 64))
    (tmp_path / "val" / "images").mkdir(parents=True)
    for number in range(2):
        photo(tmp_path / "val" / "images" / f"{number}.JPEG", number, (64, 64))
    (tmp_path / "val" / "val_annotations.txt").write_text("0.JPEG\tb\t\n1.JPEG\ta\t\n")
    (tmp_path / "wnids.txt").write_text("a\nb\n")
    monkeypatch.setattr(folders, "STREAMED", 10 * 3 * 64 * 64)
    kept = load("tiny-imagenet", folder=tmp_path)
    streamed = load("tiny-imagenet", folder=tmp_path, input_shape=(3, 96, 96))
    assert isinstance(kept.train, Split) and isinstance(streamed.train, Files)
    assert streamed.train.shape == (3, 96, 96) and streamed.augmentation == Augmentation(pad=12, flip=True)
    assert streamed.test.labels.tolist() == kept.test.labels.tolist() == [1, 0]


@pytest.fixture
def dataset(imagenet: Path) -> Dataset:
    return load("imagenet", folder=imagenet.parent, input_shape=(3, 32, 32), validation=6)


def test_imagenet_is_read_as_it_is_laid_out(dataset: Dataset, imagenet: Path):
    assert (len(dataset.train), len(dataset.validation), len(dataset.test), dataset.classes) == (30, 6, 12, 3)
    assert dataset.test.labels.tolist() == sorted([0, 1, 2] * 4)
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.augmentation == Augmentation(flip=True)
    assert load("imagenet", folder=imagenet).input_shape == (3, 224, 224)
    grey = load("imagenet", folder=imagenet, input_shape=(1, 32, 32))
    assert grey.test.first(2).shape == (2, 1, 32, 32) and len(grey.mean) == 1


def test_crops_are_of_the_seed_and_epoch_alone(dataset: Dataset):
    first, labels = drawn(dataset.train)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    again, _ = drawn(dataset.train)
    torch.set_num_threads(threads)
    assert torch.equal(first, again)
    other, same = drawn(dataset.train, epoch=1)
    assert not torch.equal(other, first) and sorted(labels.tolist()) == sorted(same.tolist())
    assert torch.equal(dataset.train.first(30), dataset.train.first(30))
    one = dataset.train.take(1)
    seen = {
        next(batches(one, 1, seed=seed, epoch=epoch, augmentation=Augmentation()))[0].numpy().tobytes()
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    }
    assert len(seen) == 3


def test_no_more_is_read_than_a_few_batches_ahead(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    begun, used, begin = [0], 0, Files._begun

    def counted(self: Files, pool: Any, indices: Tensor, *others: Any) -> Any:
        begun[0] += len(indices)
        return begin(self, pool, indices, *others)

    monkeypatch.setattr(Files, "_begun", counted)
    for images, _ in dataset.train.in_order(3):
        used += len(images)
        assert begun[0] <= used + AHEAD * 3
    assert begun[0] == used == 30
    assert len(list(zip(range(2), dataset.train.in_order(3), strict=False))) == 2, "who stops early ends the reading"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_photo_is_read_as_a_test_image_is(dataset: Dataset):
    assert isinstance(dataset.test, Files) and dataset.middle == CENTRE
    for index in range(4):
        alone = read_image(dataset.test.path(index), dataset.input_shape, dataset.middle)
        assert np.array_equal(alone, next(dataset.test.parts([torch.tensor([index])]))[0][0])


def test_a_test_image_is_the_centre_and_upright(dataset: Dataset, imagenet: Path, tmp_path: Path):
    upright, lying = (imagenet / "val" / CLASSES[0] / f"{CLASSES[0]}_{number}.JPEG" for number in (0, 3))
    with Image.open(upright) as picture:
        width, height = picture.size
        resized = picture.resize(
            (int(37 * width / height), 37) if width > height else (37, int(37 * height / width)), 2
        )
        left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
        expected = np.array(resized.crop((left, top, left + 32, top + 32)))
    assert np.array_equal(dataset.test.first(1)[0].permute(1, 2, 0).numpy(), expected)
    with Image.open(lying) as picture:
        turned = picture.transpose(Image.Transpose.ROTATE_270)
        turned.save(tmp_path / "upright.png")
    expected = centre(tmp_path / "upright.png", (3, 32, 32), CENTRE)
    assert np.array_equal(dataset.test.first(4)[3], expected)


@given(width=st.integers(1, 600), height=st.integers(1, 600), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_random_boxes_are_inside_and_of_allowed_sizes(width: int, height: int, seed: int):
    chances = torch.rand(TRIES, 4, generator=torch.Generator().manual_seed(seed)).tolist()
    left, top, right, bottom = random_box(width, height, chances)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    wide, high = right - left, bottom - top
    if min(width, height) > 50 and max(width, height) < 1.3 * min(width, height):
        assert AREA[0] * 0.9 < wide * high / (width * height) <= AREA[1] * 1.05
        assert RATIO[0] * 0.9 < wide / high < RATIO[1] * 1.1


def test_random_boxes_reach_everywhere():
    generator = torch.Generator().manual_seed(0)
    found = [random_box(100, 80, torch.rand(TRIES, 4, generator=generator).tolist()) for _ in range(2000)]
    shares = torch.tensor([(right - left) * (bottom - top) / 8000 for left, top, right, bottom in found])
    assert abs(float(shares.mean()) - 0.5) < 0.05, "a little below the uniform mean: large ones fit less often"
    assert {left for left, *_ in found} >= set(range(40)) and max(right for *_, right, _ in found) == 100


def test_a_broken_file_is_named_when_it_is_read(imagenet: Path, tmp_path: Path):
    shutil.copytree(imagenet, tmp_path / "copy")
    broken = tmp_path / "copy" / "train" / CLASSES[1] / f"{CLASSES[1]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:-100])
    data = load("imagenet", folder=tmp_path / "copy", input_shape=(3, 16, 16))
    with pytest.raises(UserError, match=f"{broken}: not a whole image .*replace or remove it"):
        drawn(data.train)
    broken.unlink()
    with pytest.raises(UserError, match=f"{broken}: there is no such image"):
        drawn(data.train)


def test_folders_that_are_not_imagenet(imagenet: Path, tmp_path: Path):
    (tmp_path / "train").symlink_to(imagenet / "train")
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="class folder 'n01440764' is in only one of train and val"):
        load("imagenet", folder=tmp_path)


def test_warnings_of_pillow_end_nothing(tmp_path: Path, imagenet: Path):
    data = load("imagenet", folder=imagenet, input_shape=(3, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(data.train)
        with pytest.raises(UserWarning, match="of another's"):
            warnings.warn("of another's", stacklevel=1)


@pytest.mark.parametrize("middle", [0.001, 1.5, float("nan"), 1, "0.9"])
def test_a_program_asks_for_no_image_far_larger_than_it_takes(middle: Any):
    hand = Hand((1, 4, 4))
    hand.linear(0, 2)
    program = hand.lowered().program
    kept = {**program.preprocessing, "middle": CENTRE}
    assert dataclasses.replace(program, preprocessing=kept).preprocessing["middle"] == CENTRE
    with pytest.raises(ValueError, match="middle is not a share"):
        dataclasses.replace(program, preprocessing={**kept, "middle": middle})
