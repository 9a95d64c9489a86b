"""Candidates for other runtimes: what is written, checked, and refused."""

import json

import pytest
import torch
from commands import refused, run
from small_networks import network

import parelu
from parelu.errors import UserError
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
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
    assert refused(capsys, "export", str(folder)) == "give --onnx FILE.onnx, --torch FILE.pt2 or both"
    assert "does not end in .onnx" in refused(capsys, "export", str(folder), "--onnx", str(tmp_path / "net"))
    assert "does not end in .pt2" in refused(capsys, "export", str(folder), "--torch", to)
    assert "opset 9 cannot be written" in refused(capsys, "export", str(folder), "--onnx", to, "--opset", "9")
    assert "holds no candidate" in refused(capsys, "export", str(tmp_path), "--onnx", to)
    assert not list(tmp_path.iterdir())


def test_images_that_no_file_has_are_random(folder):
    candidate = parelu.load(folder)
    assert export.images_of(candidate).what == "32 test images of digits"
    unknown = type(candidate)(candidate.spec, candidate.plan, candidate.weights)
    assert export.images_of(unknown).what == "32 random images"
