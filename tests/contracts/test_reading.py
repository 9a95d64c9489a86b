"""A step reads nothing off the device: whatever does makes the host wait for all that is queued there.

The device here is torch's meta: its tensors have shapes and no numbers, so that reading one fails by itself.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from methods_bench import DryBench
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from parelu import data
from parelu.methods.base import methods
from parelu.methods.learned import LearnedMasks
from parelu.models import external
from parelu.network.instrument import network_of
from parelu.training import batches, loop, teacher
from parelu.training.callback import Still
from parelu.training.meter import Meter
from parelu.training.objectives import CrossEntropy, DecoupledDistillation, Distillation
from parelu.training.schedule import Training

META, BUDGET = torch.device("meta"), 60
SMALL = nn.Sequential(
    *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
    *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(144, 10)),
)
SPEC = external.read(SMALL, (1, 8, 8), 10, "small").spec
LEARNED = [(name, {}) for name, cls in methods().items() if issubclass(cls, LearnedMasks)]
OPTIONS = [*LEARNED, ("autorep", {"fit": "public"}), ("autorep", {"anneal": False})]
# What decides on the host now and then: between two such steps it reads nothing either.
ON_THE_HOST = {
    "bcd": "a block goes when the accuracy allows it",
    "latency": "sites go by a price of the host's",
    "delphi": "whole sites go, one after another",
    "safenet": "whole channels go, one after another",
}
TRAINING = Training(epochs=1, batch=300, lr=0.1, schedule="one-cycle", clip=0.5)


class Waiting(TorchDispatchMode):
    """Fails where the host waits until a tensor has been copied to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            source, to, waits = args[0], torch.device(given.get("device") or "cpu"), not given.get("non_blocking")
            assert not (waits and source.device != META and to == META), f"{func} waits"
        elif func is torch.ops.aten.copy_.default:
            target, source, waits = *args[:2], not any(args[2:])
            assert not (waits and source.device != META and target.device == META), f"{func} waits"
        return func(*args, **given)


@pytest.fixture(autouse=True)
def on_meta(monkeypatch) -> Iterator[None]:
    for module in (batches, loop, teacher):
        monkeypatch.setattr(module, "device", lambda: META)
    yield
    batches._RESIDENT.clear()


def go(net, objective, callback, folder, first=0) -> None:
    """An epoch of four steps."""
    digits = data.load("digits")
    taught = teacher.Teacher(network_of(SPEC), folder)
    taught.LARGEST = 0  # it runs along
    optimizers = loop._optimizers(net, TRAINING, callback)
    whole = loop._Loop(net, digits, TRAINING, objective, 0, taught, callback, optimizers)
    meter = Meter()
    meter.begin(AssertionError)
    meter._looked = torch.inf  # as if it had looked just now, all the time
    batches.resident(digits.train)  # once, which waits
    with Waiting():
        for epoch in range(TRAINING.epochs):
            for terms in whole.epoch(epoch):
                meter.add(terms)
    assert meter._steps == len(digits.train) // TRAINING.batch == 4


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_step_of_a_search_reads_nothing(name, options, tmp_path):
    method, bench = methods()[name](**options), DryBench(spec=SPEC)
    plan = bench.teacher.plan
    chosen = method.optimizer(bench, plan, (BUDGET,))
    if hasattr(chosen, "every"):
        chosen = dataclasses.replace(chosen, every=10**6 if name in ON_THE_HOST else 2)
    if name == "latency":
        chosen = dataclasses.replace(chosen, sites=False)
    net = network_of(SPEC)
    plan.apply(net)
    net.to(META)
    masks = chosen.build(net)
    if name == "snl":
        masks.sloped.fill_(2 * BUDGET)  # read once, as the positions begin to settle
    go(net, method.objective(finetuning=False), masks, tmp_path)


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(0.1),
        DecoupledDistillation(),
        *(Distillation(mismatch=1.0, tails=1.0, form=f) for f in ("attention", "elements")),
    ],
    ids=str,
)
def test_a_step_of_a_training_reads_nothing(objective, tmp_path):
    go(network_of(SPEC).to(META), objective, Still(), tmp_path)


def test_this_test_sees_what_reads():
    x = torch.zeros(3, device=META)
    with pytest.raises(RuntimeError, match="meta"):
        x.sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        x[x > 0]
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.cpu()
    with pytest.raises(AssertionError, match="waits"), Waiting():
        torch.zeros(3).to(META)
