"""Candidates for other runtimes: what is written, checked, and refused."""

import inspect
import json
import shutil
import sys

import pytest
import torch
from commands import refused, run
from small_networks import network

import parelu
from parelu.errors import UserError
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.report.card import card
from parelu.runs import export
from parelu.runs.inspection import named


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a candidate with 37 ReLUs, as a run writes it."""
    full = network()
    plan = Plan.from_masks({name: torch.zeros(site.shape, dtype=torch.bool) for name, site in full.sites.items()})
    first = next(iter(plan.sites.values())).mask
    first.view(-1)[torch.randperm(first.numel())[:37]] = True
    preprocessing = {"dataset": "digits", "image": [1, 8, 8], "mean": [0.3], "std": [0.4]}
    place = tmp_path_factory.mktemp("candidates") / "random-37"
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    Candidate(spec, plan, full.state_dict(), None, preprocessing).save(place)
    return place


def test_an_onnx_file_is_a_network_again(folder, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "there" / "net.onnx"
    assert run("export", str(folder), "--onnx", str(path)) == 0
    assert str(path) in capsys.readouterr().err
    candidate = parelu.load(folder)
    assert parelu.count(named(str(path), None, None)).relus == candidate.plan.relus == 37
    about = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert (about["relus"], about["dataset"]) == ("37", '"digits"')
    assert json.loads(about["mean"]) == list(candidate.preprocessing["mean"])


def test_a_program_needs_torch_alone(folder, tmp_path):
    """Of any number of images; and one that computes something else is not written."""
    path, candidate = tmp_path / "net.pt2", parelu.load(folder)
    (exported,) = parelu.export(folder, program=path)
    assert "32 test images of digits" in str(exported) and exported.difference < 1e-5
    program = torch.export.load(path)
    assert {node.target.__module__ for node in program.graph.nodes if node.op == "call_function"} <= {
        "_operator",
        *("torch._ops.aten", "torch._ops"),
    }
    images = torch.randn(5, *candidate.spec.input)
    with torch.no_grad():
        assert torch.allclose(program.module()(images), candidate.network()(images), atol=1e-5)
    images = export.images_of(candidate)
    other = export.Images(images.normalised, "others")
    with pytest.raises(UserError, match=r"is not written: torch .*, others: its logits are 1 of the largest"):
        export._checked(candidate.network(), other, path, "torch 2", lambda x: torch.zeros(len(x), 10))


def test_what_cannot_be_exported_is_a_line(folder, tmp_path, capsys):
    pytest.importorskip("onnx")
    to = str(tmp_path / "net.onnx")
    assert refused(capsys, "export", str(folder)) == "give --onnx FILE.onnx, --torch FILE.pt2 or --card FILE.md"
    assert "does not end in .onnx" in refused(capsys, "export", str(folder), "--onnx", str(tmp_path / "net"))
    assert "does not end in .pt2" in refused(capsys, "export", str(folder), "--torch", to)
    assert "opset 9 cannot be written" in refused(capsys, "export", str(folder), "--onnx", to, "--opset", "9")
    assert "holds no candidate" in refused(capsys, "export", str(tmp_path), "--onnx", to)
    assert f"{folder} exists; give another path" in refused(capsys, "export", str(folder), "--card", str(folder))
    assert not list(tmp_path.iterdir())


def test_images_that_no_file_has_are_random(folder):
    candidate = parelu.load(folder)
    assert export.images_of(candidate).what == "32 test images of digits"
    unknown = type(candidate)(candidate.spec, candidate.plan, candidate.weights)
    assert export.images_of(unknown).what == "32 random images"


class Hub:
    """What huggingface_hub has of what is used."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict]] = []
        self.pushed: dict[str, object] = {}

    def HfApi(self):
        return self

    def CommitOperationAdd(self, path_in_repo, path_or_fileobj):
        return path_in_repo, path_or_fileobj

    def create_repo(self, repo_id, *, private, exist_ok):
        if " " in repo_id:
            raise OSError("Repo id must be\nalphanumeric")
        self.made.append((repo_id, {"private": private, "exist_ok": exist_ok}))
        return Address(f"https://hub/{repo_id}")

    def create_commit(self, repo_id, operations, *, commit_message):
        assert commit_message == "random-37, made by parelu"
        self.pushed = {repo_id: dict(operations)}


class Address(str):
    @property
    def repo_id(self):
        return self.removeprefix("https://hub/")


def test_a_candidate_is_pushed_with_its_card(folder, tmp_path, capsys, monkeypatch):
    from parelu.runs import hub

    fake = Hub()
    monkeypatch.setattr(hub, "find_spec", lambda name: fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert run("push", str(folder), "me/net") == 0
    assert "pushed: https://hub/me/net" in capsys.readouterr().err
    assert fake.made == [("me/net", {"private": True, "exist_ok": True})]
    files = fake.pushed["me/net"]
    assert {name: files[name] for name in sorted(files)[1:]} == {
        name: folder / name for name in ("candidate.json", "candidate.safetensors")
    }
    assert files["README.md"].decode() == card(folder)
    own = tmp_path / "random-37"
    shutil.copytree(folder, own)
    (own / "README.md").write_text("mine")
    assert run("push", str(own), "me/net", "--public") == 0
    assert fake.pushed["me/net"]["README.md"] == own / "README.md" and fake.made[-1][1]["private"] is False
    line = refused(capsys, "push", str(folder), "my net")
    assert line == "my net does not take the candidate (Repo id must be alphanumeric); log in with: hf auth login"
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    assert "pip install 'parelu[hub]'" in refused(capsys, "push", str(folder), "me/net")


def test_the_calls_of_the_hub_are_those_that_it_has():
    hub = pytest.importorskip("huggingface_hub")
    inspect.signature(hub.HfApi.create_repo).bind(None, "me/net", private=True, exist_ok=True)
    inspect.signature(hub.HfApi.create_commit).bind(None, "me/net", [], commit_message="text")
    assert hub.CommitOperationAdd("README.md", b"card").path_in_repo == "README.md"
