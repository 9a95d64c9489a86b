"""Sets of the Hugging Face hub: columns, splits and shapes, of a stand-in for `datasets` and of itself where it is."""

import sys
import types

import pytest
import torch
from PIL import Image

from parelu import data
from parelu.data.readers import hub
from parelu.errors import UserError


class Rows(list):
    """A split, of rows; a column by its name."""

    def __init__(self, rows, features):
        super().__init__(rows)
        self.features, self._fingerprint = features, f"{[row['label'] for row in rows]} {sorted(features)}"

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


class Label:
    def __init__(self, num_classes):
        self.num_classes = num_classes


class Picture:
    """The type of a column of images."""


def pictures(count, size=(6, 5), mode="L"):
    """Pictures whose every pixel is 8 times their number, and what is shown on them: number % 3."""
    images = [Image.new(mode, size, 8 * n if mode == "L" else (8 * n, 0, 255)) for n in range(count)]
    return [{"image": image, "label": n % 3} for n, image in enumerate(images)]


@pytest.fixture
def splits(monkeypatch):
    """What the library gives for "owner/set", to be changed by a test."""
    given = {"train": (pictures(30), {"image": Picture(), "label": Label(3)})}
    library = types.SimpleNamespace(Image=Picture, ClassLabel=Label, disable_progress_bars=lambda: None)

    def load_dataset(path, config, cache_dir):
        if path != "owner/set":
            raise ConnectionError(f"Couldn't reach\n{path}")
        return {split: Rows(*rows) for split, rows in given.items()}

    library.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr(hub, "find_spec", lambda name: library)
    return given


def test_a_tenth_is_the_test_split_where_there_is_none(splits):
    found = data.load("hf:owner/set")
    assert (found.name, found.input_shape, found.classes) == ("hf:owner/set", (1, 5, 6), 3)
    assert [len(split) for split in (found.train, found.validation, found.test)] == [25, 2, 3]
    everything = torch.cat([split.images for split in (found.train, found.validation, found.test)])
    assert sorted((everything[:, 0, 0, 0] // 8).tolist()) == list(range(30))
    assert torch.equal(found.train.labels, found.train.images[:, 0, 0, 0].long() // 8 % 3)


def test_a_test_split_and_a_shape(splits):
    splits["validation"] = (pictures(6, (8, 8), "RGB"), splits["train"][1])
    found = data.load("hf:owner/set:config", input_shape=(3, 4, 4))
    assert found.test.images.shape == (6, 3, 4, 4) and len(found.train) == 27
    assert found.test.images[:, 2].eq(255).all() and found.test.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_is_no_set_of_labelled_images_is_a_line(splits):
    rows, features = splits["train"]

    def line(name="hf:owner/set"):
        with pytest.raises(UserError) as error:
            data.load(name)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert line("hf:a b") == "hf:a b names no set; write hf:NAME, hf:NAME:CONFIG or hf:NAME#LABEL"
    assert "hf:other cannot be had, from the hub or its cache (Couldn't reach other)" in line("hf:other")
    splits["train"] = (rows, {"image": Picture(), "text": None})
    assert "has the columns image, text: not one of images and one of class labels" in line()
    splits["train"] = ([{**row, "coarse": 0} for row in rows], {**features, "coarse": Label(2)})
    assert "choose one, as hf:owner/set#label: label, coarse" in line()
    assert "no training image is of class 1" in line("hf:owner/set#coarse")
    splits["train"] = ([{**row, "label": -1} for row in rows], features)
    assert "label -1 is not in 0..2" in line()
    splits["unlabelled"] = splits.pop("train")
    assert "has no split train, but unlabelled" in line()


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hf:mnist needs datasets; pip install 'parelu\[data\]'"):
        data.load("hf:mnist")


def test_the_library_itself_reads_a_folder(tmp_path):
    pytest.importorskip("datasets")
    for split, count in (("train", 30), ("test", 6)):
        for number, row in enumerate(pictures(count)):
            place = tmp_path / "set" / split / "abc"[row["label"]]
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{number:02}.png")
    found = data.load(f"hf:{tmp_path}/set", folder=tmp_path / "cache")
    assert (len(found.train), len(found.test), found.input_shape, found.classes) == (27, 6, (1, 5, 6), 3)
    assert torch.equal(found.test.images[:, 0, 0, 0].long() // 8 % 3, found.test.labels)
