"""Channel pruning: what is left of a network, and that it can be built again from its spec."""

import json
from importlib.util import find_spec

import pytest
import torch
from conftest import Silent
from methods_bench import DryBench
from torch import nn

from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.models.pruned import Pruned
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.instrument import instrument
from parelu.network.ops import unsupported
from parelu.network.plan import Plan
from parelu.network.spec import spec_from_json, spec_of
from parelu.runs import experiment
from parelu.runs.experiment import Experiment, Reduction
from parelu.training.schedule import SHORT, Training

NAMES = ("resnet18 m=4", "wrn-10-1 m=4", "vgg16 m=4 (16 classifier)", "mobilenetv1 m=4", "efficientnet-b0 (relu) m=16")
with_torch_pruning = pytest.mark.skipif(find_spec("torch_pruning") is None, reason="torch-pruning is not installed")


def sliced(module: nn.Module) -> nn.Module:
    """A ResNet of one stage that lost channels by hand: of the first block, the inner ones but 1 and 2."""
    block = module.get_submodule("layer1.0")
    first, norm, second = nn.Conv2d(4, 2, 3, 1, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, 1, 1, bias=False)
    first.weight.data = block.conv1.weight.data[1:3]
    second.weight.data = block.conv2.weight.data[:, 1:3]
    block.conv1, block.bn1, block.conv2 = first, norm, second
    return module


def test_a_pruned_network_is_built_again_with_its_weights():
    spec = spec_of("resnet10 m=4", (1, 8, 8), 10)
    torch.manual_seed(0)
    module = sliced(spec.module()).eval()
    pruned = Pruned.of(spec, module)
    assert spec_from_json(json.loads(json.dumps(pruned.to_json()))) == pruned
    candidate = Candidate(pruned, Plan.of(skeleton(pruned)), module.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(candidate.network()(x), module(x))
    assert candidate.plan.sites["layer1.0.relu1"].mask.shape == (2, 8, 8)
    assert skeleton(pruned).sites["layer1.0.relu1"].stage == "S1"


@pytest.mark.parametrize("change", [{"sizes": [4, 4]}, {"base": "{"}, {"base": '{"family": "nothing"}'}])
def test_a_damaged_spec_is_refused(change):
    spec = spec_of("resnet10 m=4", (1, 8, 8), 10)
    pruned = Pruned.of(spec, spec.module())
    with pytest.raises(UserError):
        spec_from_json({**json.loads(json.dumps(pruned.to_json())), **change}).module()
    with pytest.raises(UserError, match="prune it further"):
        pruned.scale_channels(0.5)


def test_a_missing_package_is_named_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "find_spec", lambda name: None)
    one = Experiment("resnet10 m=2", "digits", (Reduction(methods()["channels"](), ("0.5",)),), SHORT)
    with pytest.raises(UserError, match=r"channels needs torch_pruning; pip install 'parelu\[prune\]'"):
        experiment.run_experiment(one, tmp_path, Silent())
    assert not list(tmp_path.iterdir())


@with_torch_pruning
@pytest.mark.parametrize("name", NAMES)
def test_half_the_relus_cost_about_a_quarter_of_the_macs(name):
    bench = DryBench(spec=spec_of(name, (1, 16, 16), 10))
    full = count(skeleton(bench.teacher.spec))
    methods()["channels"]().reduce(bench, (full.relus // 2,))
    (job,) = bench.jobs
    half = count(skeleton(job.spec))
    assert 0.4 * full.relus < half.relus <= full.relus // 2
    assert half.macs < 0.4 * full.macs
    start = bench.kept[job.start.name]
    assert start.spec == job.spec and start.network()(torch.randn(2, 1, 16, 16)).shape == (2, 10)


@with_torch_pruning
def test_the_smallest_filters_go():
    bench = DryBench(spec=spec_of("resnet10 m=4", (1, 8, 8), 10))
    weight = bench.teacher.weights["layer2.0.conv1.weight"]
    weight[::2] *= 1e-3
    methods()["channels"]().reduce(bench, (count(skeleton(bench.teacher.spec)).relus // 2,))
    (job,) = bench.jobs
    left = bench.kept[job.start.name].weights["layer2.0.conv1.weight"]
    assert left.shape[0] == 4 and left.abs().sum((1, 2, 3)).min() > 100 * weight[::2].abs().sum((1, 2, 3)).max() / 4


@with_torch_pruning
def test_small_is_the_sum_of_magnitudes():
    """Not their Euclidean norm: a filter with one large weight goes before one with many small ones."""
    bench = DryBench(spec=spec_of("resnet10 m=4", (1, 8, 8), 10))
    weight = bench.teacher.weights["layer2.0.conv1.weight"]
    weight.fill_(0.5)
    weight[::2] = 0.0
    weight[::2, 0, 1, 1] = 10.0
    methods()["channels"]().reduce(bench, (count(skeleton(bench.teacher.spec)).relus // 2,))
    (job,) = bench.jobs
    left = bench.kept[job.start.name].weights["layer2.0.conv1.weight"]
    assert left.shape[0] == 4 and left.unique().tolist() == [0.5]


@with_torch_pruning
@pytest.mark.slow
def test_an_experiment_finetunes_what_is_left(tmp_path):
    training = Training(epochs=1, batch=128, lr=0.05)
    one = Experiment("resnet10 m=4", "digits", (Reduction(methods()["channels"](), ("0.5",)),), training, images=384)
    run = experiment.run_experiment(one, tmp_path / "run", Silent())
    (record,) = [r for r in run.candidates() if r.metrics.method == "channels"]
    assert record.metrics.relus <= record.metrics.relus_full / 2
    assert run.candidate(record.name).network()(torch.randn(1, 1, 8, 8)).shape == (1, 10)
    assert unsupported(instrument(record and run.candidate(record.name).spec.module(), (1, 8, 8))) == ()
