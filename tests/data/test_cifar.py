"""CIFAR in both of its forms, packed or not: the same images, and no code of a file is run."""

import contextlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parelu.data.augmentation import Augmentation
from parelu.data.dataset import available, load
from parelu.data.readers import pickled
from parelu.errors import UserError

RECORDS = 20
NUMBERED = [f"data_batch_{number}" for number in range(1, 6)]
FILES = {"cifar10": [*NUMBERED, "test_batch"], "cifar100": ["train", "test"]}
FOLDERS = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class OldPickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, as CIFAR's files have them."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_old(self, value: str | bytes) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write((b"U" + struct.pack("<B", len(data)) if short else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_old


def pickle_of(value: object) -> bytes:
    file = io.BytesIO()
    OldPickler(file, 2).dump(value)
    return file.getvalue()


def images(name: str) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    """File → pixels, (N, 3072), and labels."""
    random = np.random.default_rng(0)
    classes, records = (10, RECORDS) if name == "cifar10" else (100, 200)
    return {
        file: (random.integers(0, 256, (records, 3072), dtype=np.uint8), [int(n) % classes for n in range(records)])
        for file in FILES[name]
    }


def write(folder: Path, name: str, form: str) -> Path:
    folder.mkdir(parents=True)
    for file, (pixels, labels) in images(name).items():
        column = np.array(labels, np.uint8)[:, None]
        if form == "binary":
            coarse = [column // 5] if name == "cifar100" else []
            (folder / f"{file}.bin").write_bytes(np.concatenate([*coarse, column, pixels], 1).tobytes())
            continue
        keys = ["labels"] if name == "cifar10" else ["coarse_labels", "fine_labels"]
        names = [f"{number}.png" for number in range(len(labels))]
        rest = dict(zip(keys, [[n // 5 for n in labels], labels][-len(keys) :], strict=True))
        (folder / file).write_bytes(pickle_of({"batch_label": "one", "filenames": names, "data": pixels, **rest}))
    return folder


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


@pytest.mark.parametrize("name", FILES)
def test_all_forms_are_found_and_are_the_same_images(name: str, tmp_path: Path):
    expected = images(name)
    found = []
    for form in ("binary", "python"):
        folder = write(tmp_path / form / FOLDERS[name, form], name, form)
        archive = packed(folder, tmp_path / f"{name[:5]}-{name[5:]}-{form}.tar.gz")
        alone = tmp_path / f"packed-{form}"
        alone.mkdir()
        archive.rename(alone / archive.name)
        for given_folder in (folder, folder.parent, alone, alone / archive.name):
            assert available(name, folder=given_folder)
            found.append(load(name, folder=given_folder, validation=100 if name == "cifar100" else None))
    pixels, labels = expected[FILES[name][-1]]
    for one in found:
        assert torch.equal(one.test.images, torch.from_numpy(pixels).view(-1, 3, 32, 32))
        assert one.test.labels.tolist() == labels
        assert torch.equal(one.train.images, found[0].train.images)
        assert torch.equal(one.train.labels, found[0].train.labels)
    assert found[0].augmentation == Augmentation(pad=4, flip=True)
    assert found[0].classes == int(name[5:])
    assert len(found[0].train) + len(found[0].validation) == sum(len(labels) for _, labels in expected.values()) - len(
        labels
    )


def test_an_archive_in_the_cache_is_found(tmp_path: Path):
    folder = write(tmp_path / "cifar-10-batches-py", "cifar10", "python")
    (tmp_path / "cache" / "parelu").mkdir(parents=True)
    assert not available("cifar10")
    packed(folder, tmp_path / "cache" / "parelu" / "cifar-10-python.tar.gz")
    assert len(load("cifar10").test) == RECORDS


def test_a_missing_file_is_named_with_its_archive(tmp_path: Path):
    folder = write(tmp_path / "mine", "cifar10", "python")
    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match=f"no data_batch_3 in {folder}: put cifar-10-binary.tar.gz .162 MB, MD5 c32a"):
        load("cifar10", folder=folder)


def damaged(path: Path, change: Callable[[bytes], bytes], name: str, message: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    with pytest.raises(UserError, match=message):
        load(name, folder=path.parent)
    path.write_bytes(whole)


def test_a_damaged_file_is_named(tmp_path: Path):
    folder = write(tmp_path / "binary", "cifar10", "binary")
    path = folder / "data_batch_3.bin"
    for change in (lambda whole: whole[:-1], lambda whole: b""):
        damaged(path, change, "cifar10", f"{path}: .* not a whole number of records of 3,073")
    damaged(path, lambda whole: b"\x0b" + whole[1:], "cifar10", rf"{path}: label 11 is not in 0\.\.9")

    folder = write(tmp_path / "python", "cifar100", "python")
    path = folder / "train"
    damaged(path, lambda whole: whole[:-2000], "cifar100", f"{path}: not a file of CIFAR's python version, it is damag")
    damaged(path, lambda whole: b"", "cifar100", f"{path}: not a file of CIFAR's python version, it is damaged")
    wrong: list[tuple[object, str]] = [
        ([1], "it holds a list, no dict"),
        ({"data": np.zeros((2, 7), np.uint8)}, "has no images of 3,072 bytes as 'data'"),
        ({"data": np.zeros((2, 3072), np.uint16)}, "an array of other numbers than bytes"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, "has no label for each image as 'fine_labels'"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 100]}, r"label 100 is not in 0\.\.99"),
    ]
    for value, message in wrong:
        damaged(path, lambda _, value=value: pickle_of(value), "cifar100", f"{path}: .*{message}")

    archive = packed(write(tmp_path / "one", "cifar10", "binary"), tmp_path / "cifar-10-binary.tar.gz")
    damaged(archive, lambda whole: whole[: len(whole) // 2], "cifar10", f"{archive}: cannot be read")
    damaged(archive, lambda whole: b"no archive", "cifar10", f"{archive}: cannot be read")
    (tmp_path / "one" / "test_batch.bin").unlink()
    packed(tmp_path / "one", archive)
    with pytest.raises(UserError, match=rf"{archive}: has no test_batch\.bin"):
        load("cifar10", folder=archive)


# The reader of pickles

plain = st.recursive(
    st.none() | st.integers(-(2**31), 2**31 - 1) | st.text(st.characters(max_codepoint=255)),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(st.characters(max_codepoint=255), max_size=4), plain, max_size=4))
@settings(deadline=None)
def test_plain_values_are_what_pickle_makes_of_them(value: dict[str, Any]):
    content = pickle_of(value)
    assert pickled.read(content) == pickle.loads(content, encoding="latin-1") == value


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_arrays_are_what_pickle_makes_of_them(shape: list[int], seed: int):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = pickle_of({"data": array, "again": array})
    theirs = pickle.loads(content, encoding="latin-1")
    ours = pickled.read(content)
    for name in ("data", "again"):
        assert np.array_equal(ours[name], theirs[name]) and np.array_equal(ours[name], array)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_named_and_not_run(tmp_path: Path):
    content = pickle.dumps({"data": Hostile(tmp_path / "ran")}, 2)
    with pytest.raises(pickled.UnreadableError, match=r"no code of a file is run|does not need"):
        pickled.read(content)
    with pytest.raises(pickled.UnreadableError, match=r"it names os\.system, and no code of a file is run"):
        pickled.read(b"\x80\x02cos\nsystem\nU\x04true\x85R.")
    with pytest.raises(pickled.UnreadableError, match="it calls what is no array"):
        pickled.read(b"\x80\x02cnumpy\nndarray\nK\x05\x85R.")
    assert not (tmp_path / "ran").exists()


@given(place=st.integers(0, 400), byte=st.integers(0, 255), length=st.integers(0, 500), extra=st.binary(max_size=20))
@settings(deadline=None, max_examples=100)
def test_any_bytes_are_read_or_refused(place: int, byte: int, length: int, extra: bytes):
    content = bytearray(pickle_of({"data": np.zeros((2, 8), np.uint8), "labels": [1, 2], "names": ["a", "b"]}))
    content[place % len(content)] = byte
    for damaged in (bytes(content), bytes(content[:length]), bytes(content[:length]) + extra):
        with contextlib.suppress(pickled.UnreadableError):
            assert isinstance(pickled.read(damaged), dict)
