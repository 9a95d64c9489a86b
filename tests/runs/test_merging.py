"""Merged networks: an architecture of their own that is written out, and what finetuning makes of it."""

import json
import shutil

import pytest
import torch
from commands import refused, run
from torch import nn
from two_parties import Residual, ready

from parelu.errors import UserError
from parelu.fusion.fuse import fuse
from parelu.models.graph import Graph
from parelu.models.writing import graph_of, weights_of
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_from_json, spec_of
from parelu.network.steps import apply_steps
from parelu.private.lowering.refusals import problems
from parelu.report.tables import frontier_rows
from parelu.runs.folder import Run


def merged_network():
    """ResNet10, merged with the padding of the sum, and its spec."""
    reduced = apply_steps(spec_of("resnet10 m=4", (1, 14, 14), 10), "cull S1; thin S2+S3")
    network = ready(reduced.spec.module(), reduced.spec.input)
    reduced.plan.apply(network)
    fused = fuse(network, padded=True)
    return fused, graph_of(fused, 10)


FUSED, SPEC = merged_network()


def test_a_merged_network_is_rebuilt_from_its_spec(tmp_path):
    candidate = Candidate(SPEC, Plan.of(FUSED), FUSED.state_dict())
    candidate.save(tmp_path)
    again = Candidate.load(tmp_path)
    assert again.spec == SPEC == spec_from_json(json.loads(json.dumps(SPEC.to_json())))
    network, x = again.network(), torch.randn(3, *SPEC.input)
    assert torch.allclose(network(x), FUSED(x), atol=1e-6)
    assert count(network) == count(FUSED) and problems(network) == ()
    assert [site.stage for site in network.sites.values()] == ["S2", "S3", "S4", "S4"]
    assert count(skeleton(SPEC)).stages.keys() == {"S2", "S3", "S4", "head"}


def test_every_layer_that_fusion_leaves_can_be_written():
    network = ready(Residual(), (1, 6, 6), lambda u: u < 0.5)
    spec = graph_of(network, 5)
    again = Candidate(spec, Plan.of(network), weights_of(spec, network)).network()
    x = torch.randn(3, 1, 6, 6)
    assert torch.allclose(again(x), network.eval()(x), atol=1e-6)
    assert {line.split()[0] for line in spec.layers.splitlines()} == {
        "conv",
        "norm",
        "relu",
        "pool",
        "add",
        "flatten",
        "linear",
    }


def test_a_network_with_relu_reuse_can_be_written():
    reduced = apply_steps(spec_of("resnet10 m=8", (1, 8, 8), 10), "cull S1; thin S2; reuse 4")
    network = ready(reduced.spec.module(), reduced.spec.input)
    reduced.plan.apply(network)
    fused = fuse(network, padded=True)
    spec = graph_of(fused, 10)
    again = Candidate(spec, Plan.of(fused), weights_of(spec, fused)).network()
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(again(x), fused(x), atol=1e-6)
    assert {"concat", "slice"} <= {line.split()[0] for line in spec.layers.splitlines()}
    assert problems(again) == ()


def test_a_bias_that_is_a_map_has_no_place_in_it():
    layers = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(50, 3)
    fused = fuse(ready(nn.Sequential(*layers), (2, 5, 5)))
    with pytest.raises(UserError, match="1: MapConv2d has no place in a graph"):
        graph_of(fused, 3)


def test_fuse_prints_what_merging_makes(capsys):
    arguments = ("fuse", "resnet18", "--input", "3x32x32", "--steps", "cull S1+S4; thin S2+S3")
    assert run(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["depth"] for one in found.values()] == [17, 13, 4]
    assert found["as_it_is"]["rounds"] == found["fused"]["rounds"] == found["merged"]["rounds"] == 4
    for name in ("layers", "macs", "products", "bytes"):
        assert found["as_it_is"][name] > found["fused"][name] > found["merged"][name]
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert "HE products" in text and "--finetune EPOCHS trains it" in text
    assert run("fuse", "resnet18") == 0
    assert "--finetune" not in capsys.readouterr().out, "with all ReLUs there is nothing to train"


def test_finetuning_needs_a_run_and_something_to_merge(capsys, finished, tmp_path):
    folder = finished[0].path
    assert refused(capsys, "fuse", "resnet18", "--finetune", "3").startswith("--finetune trains in a run; resnet18")
    assert "unknown network" in refused(capsys, "fuse", str(folder / "candidates" / "nothing"), "--finetune", "3")
    teacher = str(folder / "candidates" / "teacher")
    assert "teacher: no two layers merge that are not" in refused(capsys, "fuse", teacher, "--finetune", "3")
    thinned = next(path for path in (folder / "candidates").iterdir() if "_thin" in path.name)
    assert "epochs is 0" in refused(capsys, "fuse", str(thinned), "--finetune", "0")


def test_a_merged_candidate_is_finetuned_in_its_run(capsys, finished, tmp_path):
    shutil.copytree(finished[0].path, tmp_path / "run")
    folder = next(path for path in (tmp_path / "run" / "candidates").iterdir() if path.name.count("_") == 1)
    assert run("fuse", str(folder), "--finetune", "1") == 0
    assert "% merged" in capsys.readouterr().err
    whole, found = (Run.open(tmp_path / "run").candidate(name) for name in (folder.name, f"{folder.name}-merged"))
    assert isinstance(found.spec, Graph) and found.plan.relus == whole.plan.relus == found.metrics.relus
    assert found.metrics.depth < whole.metrics.depth and found.metrics.epochs == 1
    assert run("fuse", str(folder), "--finetune", "1") == 0, "again: nothing is trained twice"
    assert "no two layers merge" in refused(capsys, "fuse", f"{folder}-merged", "--finetune", "1")
    rows = {row.name: row for row in frontier_rows(Run.open(tmp_path / "run").candidates())}
    assert rows[found_name := f"{folder.name}-merged"].label == f"{rows[folder.name].label}, merged", found_name
