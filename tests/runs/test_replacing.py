"""A trained network with what has no private form: replaced, finetuned with itself as the teacher, reduced, lowered."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parelu
from parelu import api, data
from parelu.models import external
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.private.lowering.refusals import problems
from parelu.private.offline.mode import DEFAULT, ring_for
from parelu.runs import jobs, measurement
from parelu.runs.experiment import prepare
from parelu.runs.folder import Run
from parelu.runs.obstacles import grouped, way_out
from parelu.training.evaluation import accuracy

REPLACE = "silu=relu,tanh=relu,layernorm=batchnorm,se=quadratic"
BRIEF = api.Training(epochs=3, batch=64, lr=0.02, schedule="one-cycle")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(1, 8, 3, padding=1), nn.LayerNorm(8), nn.SiLU()
        self.gate = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())
        self.second, self.squashed = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Tanh()
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        x = x * self.gate(x.mean((2, 3), keepdim=True))
        return self.fc(self.squashed(self.second(x)).flatten(1))


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits: data.Dataset) -> Net:
    torch.manual_seed(0)
    net = Net()
    images, labels = data.normalise(digits.train.images, digits.mean, digits.std), digits.train.labels
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for part in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[part]), labels[part]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def starts() -> list[dict[str, Tensor]]:
    """What each training starts from."""
    return []


@pytest.fixture(scope="module")
def run(trained: Net, starts: list[dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    train = jobs.train

    def watched(network: Any, *args: Any, **kwargs: Any) -> Any:
        starts.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return train(network, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "train", watched)
        folder = tmp_path_factory.mktemp("replacing") / "run"
        options: dict[str, Any] = {"training": BRIEF, "progress": False, "workers": 1}
        result = parelu.reduce(trained, "digits", method="random", budget=300, replace=REPLACE, run=folder, **options)
    return result.run


def kept(run: Run, name: str) -> Candidate:
    return Candidate.load(run.path / "searches" / name / "kept")


def test_the_original_is_kept_and_finetuning_from_it_helps(run: Run, trained: Net, digits: data.Dataset):
    original, given, full = kept(run, "original"), kept(run, "given"), run.candidate("teacher")
    images = torch.randn(3, *digits.input_shape)
    with torch.no_grad():
        assert torch.allclose(original.network()(images), trained(images), atol=2e-3), "gates are within 0.001"
    before, after, wanted = (accuracy(one.network(), digits.train, digits) for one in (given, full, original))
    assert before + 2 < min(after, wanted)
    assert torch.equal(given.weights["first.weight"], trained.first.weight)
    assert not torch.equal(full.weights["gate.3_square.weight"], given.weights["gate.3_square.weight"])


def test_finetuning_starts_with_the_statistics_of_training_images(run: Run, starts: list[dict[str, Tensor]]):
    first, given = starts[0], kept(run, "given").weights
    assert torch.equal(first["norm.weight"], given["norm.weight"])
    assert torch.equal(given["norm.running_mean"], torch.zeros(8)), "nothing is known of them where they are written"
    for name, fresh in (("norm.running_mean", 0.0), ("norm.running_var", 1.0)):
        assert ((first[name] - fresh).abs() > 1e-3).all()


def test_what_is_reduced_has_a_program(run: Run):
    candidate = run.candidate("random-300")
    full = run.candidate("teacher").trained
    assert candidate.trained.relus == 300 < full.relus == 8 * 64 + 4 + 8 * 16
    assert candidate.trained.squares == full.squares == 8 + 2 * 8 * 64
    lowered = measurement.lowered(run.folder("random-300"), candidate, ring_for(DEFAULT))
    assert lowered.program.relus == 300


def test_the_way_out_is_what_the_network_needs(trained: Net):
    spec = external.read(trained, (1, 8, 8), 10, "net", keeps_smooth=True).spec
    way = way_out(spec)
    assert way and way.replace == "silu=relu,tanh=relu,layernorm=batchnorm" and not way.left
    assert way.counts.squares == 2 * 8 * 64 and way.counts.relus == 8 * 64 + 4 + 8 * 20 + 8 * 16
    again = way_out(spec, "se=quadratic")
    assert again and again.replace == "silu=relu,tanh=relu,se=quadratic,layernorm=batchnorm"
    lines = grouped(problems(skeleton(spec)))
    assert lines == [
        "norm: layer_norm is not supported; --replace layernorm=batchnorm, and finetune",
        "act: silu is not supported; --replace silu=relu, and finetune",
        "squashed: tanh is not supported; --replace tanh=relu, and finetune",
    ]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.GELU(), nn.GELU(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).flatten(2)
        return self.fc((x.mT @ x).softmax(-1).mean(1).flatten(1))


def test_what_no_replacement_mends_is_left():
    spec = external.read(Attention(), (1, 8, 8), 10, "net", keeps_smooth=True).spec
    way = way_out(spec)
    assert way and way.replace == "gelu=relu", "attention=mean is named, and is of no use here"
    assert {problem.op for problem in way.left} == {"matmul", "softmax"}
    lines = grouped(problems(skeleton(spec)))
    assert lines[0] == "a: gelu is not supported; --replace gelu=relu, and finetune (1 more like it)"


CURVED = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 10))
"""


def test_piecewise_linear_functions_are_taken_without_training(tmp_path: Path):
    code = tmp_path / "net.py"
    code.write_text(CURVED, encoding="utf-8")
    way = way_out(external.read_name(f"{code}:build", (1, 8, 8), 10, keeps_smooth=True).spec)
    assert way and (way.replace, way.counts.relus) == ("silu=relu", 144)
    plain = api.Experiment(f"{code}:build", "digits", (), BRIEF, pretrained=True)
    for replace in ("", "silu=relus", "maxpool=avgpool", "silu=relu"):
        prepared = prepare(dataclasses.replace(plain, replace=replace))
        assert count(skeleton(prepared.spec)).relus == (144 if replace == "silu=relu" else 144 * 29)
        assert (prepared.original is not None) == (replace == "silu=relu"), "nothing else is another function"
    assert prepared.original
    assert "silu %1" in prepared.original.spec.to_json()["layers"], "the teacher's memory is not that of pieces"
    assert not prepared.original.plan.sites
