"""Run folders and the files in them: atomic, checked, refused where they are of something else."""

import dataclasses
import errno
import fcntl
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.errors import UserError
from parelu.network import storage
from parelu.runs.folder import Run
from parelu.training.history import Epoch, read_history, write_history

CONFIG = {"model": "resnet10", "seed": 0, "training": {"epochs": 3}}


def test_start_then_continue(tmp_path):
    first = Run.start(tmp_path / "run", CONFIG)
    assert Run.start(tmp_path / "run", CONFIG).config == first.config == Run.open(tmp_path / "run").config
    assert {"python", "torch", "cores"} <= set(first.environment)
    first.record("figures", {"a": 1})
    assert first.records() == {"figures": {"a": 1}}


def test_a_kill_while_starting_leaves_a_folder_that_can_be_started(tmp_path):
    Run.start(tmp_path / "run", CONFIG)
    (tmp_path / "run" / "environment.json").unlink()
    assert "torch" in Run.start(tmp_path / "run", CONFIG).environment
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".config.json.123").write_text("{")
    assert Run.start(tmp_path / "other", CONFIG).config == CONFIG


def test_the_table_that_a_run_is_compared_with_may_change(tmp_path):
    Run.start(tmp_path, CONFIG)
    assert Run.start(tmp_path, {**CONFIG, "paper": "AutoReP Table 3"}).config["paper"] == "AutoReP Table 3"
    assert Run.open(tmp_path).config["paper"] == "AutoReP Table 3"
    assert "paper" not in Run.start(tmp_path, CONFIG).config


def test_another_configuration_is_refused_by_name(tmp_path):
    Run.start(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"training\.epochs is 3 there and 4 now"):
        Run.start(tmp_path, {**CONFIG, "training": {"epochs": 4}})
    with pytest.raises(UserError, match=r"images is null there and 5 now"):
        Run.start(tmp_path, {**CONFIG, "images": 5})
    assert Run.open(tmp_path).config == CONFIG


def test_another_budget_is_named_where_it_differs(tmp_path):
    method = {"method": "snl", "options": {"lam": 1e-5}, "budgets": ["0.1"]}
    Run.start(tmp_path, {"reductions": [method]})
    with pytest.raises(UserError, match=r'reductions\.1\.budgets\.1 is "0\.1" there and "0\.2" now'):
        Run.start(tmp_path, {"reductions": [{**method, "budgets": ["0.2"]}]})
    with pytest.raises(UserError, match=r'budgets is \["0\.1"\] there and \["0\.1", "0\.2"\] now'):
        Run.start(tmp_path, {"reductions": [{**method, "budgets": ["0.1", "0.2"]}]})
    with pytest.raises(UserError, match=r"options\.lam is 1e-05 there and null now"):
        Run.start(tmp_path, {"reductions": [{**method, "options": {}}]})


def test_what_is_no_run_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no run folder"):
        Run.start(tmp_path, CONFIG)
    with pytest.raises(UserError, match="exists and is no run folder"):
        Run.start(tmp_path / "notes.txt", CONFIG)
    with pytest.raises(UserError, match="is no run folder"):
        Run.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {"seed": 1}, "sha256": "0"}'])
def test_damaged_configuration(tmp_path, content):
    Run.start(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        Run.open(tmp_path)


def test_one_process_at_a_time(tmp_path):
    run = Run.start(tmp_path, CONFIG)
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process works in"), run.locked():
            pass
    with run.locked(), pytest.raises(UserError, match="another process"), run.locked():
        pass
    with run.locked():
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_history_round_trip_and_damage(tmp_path):
    assert read_history(tmp_path) == []
    history = [Epoch(n, 1 / n, {"ce": 0.25, "stages": {"S1": 3}}, 0.1, 50.0 + n, 2.5) for n in (1, 2)]
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert list(json.loads(line)) == ["epoch", "loss", "ce", "stages", "lr", "validation_accuracy", "seconds"]
    for damaged in (f'{line}\n{{"ep', '{"epoch": 1}', "[]"):
        (tmp_path / "metrics.jsonl").write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            read_history(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        write_history(tmp_path, [dataclasses.replace(history[0], loss=float("nan"))])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    storage.write(folder, "thing", {"metrics": {"relus": 7}}, {"a": torch.arange(6.0), "b": torch.ones(2, 3)})
    return folder, storage.read(folder, "thing")


@settings(max_examples=80)
@given(name=st.sampled_from(["thing.json", "thing.safetensors"]), where=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(pair, name, where, bit):
    folder, (header, tensors) = pair
    path = folder / name
    whole = path.read_bytes()
    at = min(int(where * len(whole)), len(whole) - 1)
    try:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            got_header, got = storage.read(folder, "thing")
        except UserError as error:
            assert "\n" not in str(error)
        else:  # white space, or a key's case that JSON reads the same
            assert got_header == header
            assert all(torch.equal(got[key], tensors[key]) for key in tensors)
    finally:
        path.write_bytes(whole)


@settings(max_examples=30)
@given(name=st.sampled_from(["thing.json", "thing.safetensors"]), share=st.floats(0, 0.999))
def test_any_truncation_is_noticed(pair, name, share):
    folder, _ = pair
    path = folder / name
    whole = path.read_bytes()
    cut = whole[: int(share * len(whole))]
    try:
        path.write_bytes(cut)
        if cut != whole.rstrip():
            with pytest.raises(UserError, match="thing"):
                storage.read(folder, "thing")
    finally:
        path.write_bytes(whole)


def test_missing_foreign_and_huge(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no thing"):
        storage.read(tmp_path, "thing")
    storage.write(tmp_path, "thing", {}, {"a": torch.ones(1)})
    (tmp_path / "thing.safetensors").unlink()
    with pytest.raises(UserError, match="is missing beside"):
        storage.read(tmp_path, "thing")
    (tmp_path / "other.json").write_text(json.dumps({"format": "something else"}))
    with pytest.raises(UserError, match="is not a other of this version"):
        storage.read(tmp_path, "other")
    monkeypatch.setattr(storage, "LARGEST_HEADER", 10)
    with pytest.raises(UserError, match="is larger than"):
        storage.read(tmp_path, "thing")
