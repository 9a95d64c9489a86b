"""A run on images that stay in their files: finetuned without SiLUs, resumed, reduced, lowered."""

import dataclasses
from pathlib import Path
from typing import Any

import photos
import pytest
import torch
from conftest import Silent
from torch import Tensor, nn

import parelu
from parelu import api, data
from parelu.errors import UserError
from parelu.network.instrument import network_of
from parelu.network.spec import spec_of
from parelu.private.offline.mode import DEFAULT, ring_for
from parelu.runs import measurement
from parelu.runs.executor import InProcess
from parelu.runs.folder import Run
from parelu.training.loop import Progress, train
from parelu.training.objectives import CrossEntropy, Distillation
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher

SHAPE = (3, 16, 16)
BRIEF = Training(epochs=2, batch=8, lr=0.01, schedule="cosine")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU()
        self.second, self.again, self.fc = nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU(), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.again(self.second(self.act(self.norm(self.first(x))))).flatten(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos.imagenet(tmp_path_factory.mktemp("data") / "imagenet")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> data.Dataset:
    return data.load("imagenet", folder=folder, input_shape=SHAPE)


def test_finetuned_without_silus_reduced_and_lowered(dataset: data.Dataset, tmp_path: Path):
    options: dict[str, Any] = {"training": BRIEF, "progress": False, "replace": "silu=relu", "run": tmp_path / "run"}
    method = api.methods()["autorep"](search_epochs=2, finetune_epochs=1)
    candidate = parelu.reduce(Net(), dataset, method=method, budget=200, **options).run.candidate("autorep-200")
    assert candidate.trained.relus == 200
    assert candidate.preprocessing["dataset"] == "imagenet" and candidate.preprocessing["middle"] == dataset.middle
    candidate.save(tmp_path / "one")
    lowered = measurement.lowered(tmp_path / "one", candidate, ring_for(DEFAULT), dataset)
    assert lowered.program.preprocessing["middle"] == dataset.middle
    ring = measurement.ring_accuracy(lowered, candidate, dataset.test)
    assert ring.images == len(dataset.test) and ring.agreement > 90


class Killed(Exception):
    pass


@pytest.mark.parametrize("distilled", [False, True])
def test_a_training_goes_on_as_if_it_had_not_been_killed(dataset: data.Dataset, tmp_path: Path, distilled: bool):
    def trained(folder: Path, kill: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network, taught = (network_of(spec) for _ in range(2))
        teacher = Teacher(taught, tmp_path / "logits") if distilled else None

        def watch(progress: Progress) -> None:
            if progress.step == kill:
                raise Killed

        objective = Distillation() if distilled else CrossEntropy()
        train(network, dataset, BRIEF, objective, seed=0, folder=folder, teacher=teacher, watch=watch)
        return network.state_dict()

    spec = spec_of("resnet10 m=2", SHAPE, 3)
    whole = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "killed", kill=6)
    resumed = trained(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_knows_the_files_it_was_trained_on(folder: Path, tmp_path: Path):
    one = api.Experiment(
        "resnet10 m=2", "imagenet", (), dataclasses.replace(BRIEF, epochs=1), 0, SHAPE, data_folder=folder
    )
    run = api.run_experiment(one, tmp_path / "run", Silent(), InProcess())
    assert isinstance(run, Run)
    api.run_experiment(one, tmp_path / "run", Silent(), InProcess())
    photos.photo(folder / "train" / photos.CLASSES[0] / f"{photos.CLASSES[0]}_0.JPEG", 5, (90, 70))
    with pytest.raises(UserError, match="give another --run"):
        api.run_experiment(one, tmp_path / "run", Silent(), InProcess())
