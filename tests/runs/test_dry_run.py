"""A dry run asks for what a run trains."""

import dataclasses

import pytest
from conftest import ALL, tiny_experiment

from parelu.errors import UserError
from parelu.methods.random import Random
from parelu.methods.snl import SNL
from parelu.models import libraries
from parelu.report.recipes import data_text, outlook_text, work_text
from parelu.runs.dry_run import outlook
from parelu.runs.experiment import Experiment, Reduction
from parelu.training.schedule import Training

BRIEF = Training(epochs=4)


def test_a_dry_run_asks_for_what_a_run_trains(finished):
    run, _ = finished
    ahead = outlook(tiny_experiment(*ALL))
    trained = {record.name: record.metrics for record in run.candidates()}
    planned = {one.task.name: one for one in ahead.planned}
    cut = {name for name in set(planned) ^ set(trained) if not name.startswith(("cull", "only"))}
    assert not cut, "its order of stages is measured, all others are known"
    for name in set(planned) & set(trained):
        assert (planned[name].relus, planned[name].counts.macs) == (trained[name].relus, trained[name].macs), name
    assert len(planned) == len(trained)
    assert ahead.images == 1294 and ahead.full.relus == trained["teacher"].relus


def test_work_grows_with_epochs_images_and_what_teaches():
    one = Experiment("resnet10 m=2", "cifar100", (), Training(epochs=3))
    first = outlook(one)
    assert first.work == 3 * 45_000 * 3 * first.full.macs
    assert outlook(dataclasses.replace(one, training=Training(epochs=6), images=450)).work * 50 == first.work
    taught = dataclasses.replace(one, reductions=(Reduction(tiny_experiment("random").reductions[0].method, ("0.5",)),))
    assert outlook(taught).work - first.work == 3 * 45_000 * 4 * first.full.macs


def test_a_dry_run_reads_no_trained_weights(monkeypatch, tmp_path):
    """They may have to be downloaded."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU())\n"
    )
    monkeypatch.setattr(libraries, "trained_weights", lambda name: pytest.fail("read"))
    one = Experiment(f"{tmp_path / 'net.py'}:build", "digits", (), Training(), pretrained=True)
    assert outlook(one).full.relus == 10


def test_what_a_recipe_would_do_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = Experiment("resnet10 m=2", "cifar100", (), Training(epochs=3))
    ahead = outlook(one)
    assert outlook_text(ahead).splitlines()[0] == "resnet10 m=2, 3x32x32: 9,728 ReLUs, 0.3M multiply-adds"
    assert "1 trainings of 45,000 images an epoch" in work_text([ahead], 2, "")
    assert "unknown on a GPU" in work_text([ahead], 2, "") and "cost: 3 GPU-hours" in work_text(
        [ahead], 2, "3 GPU-hours"
    )
    assert "data: cifar100: no " in data_text(one) and "https://" in data_text(one)
    assert data_text(dataclasses.replace(one, data="digits")) == "data: digits is here"


def test_a_dry_run_refuses_what_a_run_refuses():
    big = Reduction(SNL(search={"batch": 9999}), ("0.5",))
    senet = tiny_experiment("senet").reductions[0]
    for one, message in (
        (Experiment("resnet10 m=2", "digits", (senet,), BRIEF, teacher="resnet10 m=4"), "compares the maps"),
        (
            Experiment("resnet10 m=2", "digits", (), BRIEF, images=100),
            "100 training images do not fill one batch of 128",
        ),
        (Experiment("resnet10 m=2", "digits", (big,), BRIEF), "1,294 training images do not fill one batch of 9999"),
        (Experiment("resnet10 m=2", "digits", (Reduction(Random()),), BRIEF), "random needs a budget"),
        (Experiment("resnet10 m=2", "digits", (Reduction(Random(), match=3),), BRIEF), "and there is none; give budg"),
    ):
        with pytest.raises(UserError, match=message):
            outlook(one)
