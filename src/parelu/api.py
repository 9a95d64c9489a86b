"""The verbs of parelu: for a network and data in memory, and for those that have names.

    result = parelu.reduce(model, (images, labels), method=SNL(), budget=[0.1, 500], run="runs/mine")
    candidate = result.best(relus=500)
    row = parelu.bench(candidate, (images, labels), relu="sign", link="lan")

The command line calls what stands here, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parelu import data
from parelu.data.memory import from_memory
from parelu.errors import UserError
from parelu.methods.base import Method, methods
from parelu.models.in_memory import InMemory
from parelu.network.candidate import Candidate
from parelu.network.count import Counts, skeleton
from parelu.network.count import count as count_network
from parelu.network.instrument import instrument
from parelu.network.sites import Network
from parelu.network.spec import Spec, spec_of
from parelu.private.serving.client import Client
from parelu.report.page import write_report
from parelu.report.tables import Axis, frontier_rows
from parelu.runs.experiment import TRAININGS, Experiment, Reduction, run_experiment
from parelu.runs.folder import Record, Run
from parelu.runs.progress import TerminalProgress
from parelu.training.schedule import Training

__all__ = ["Client", "Result", "bench", "count", "instrument", "load", "reduce"]

Shape = tuple[int, int, int]


def count(model: nn.Module | Candidate | Spec | str, input_shape: Shape | None = None, *, classes: int = 10) -> Counts:
    """ReLUs, multiply-adds, parameters and depth of a network, per site and per stage.

    Args:
        model: a module that can be traced, a candidate, or a network's name such as "resnet18 m=16".
        input_shape: (C, H, W) of one image, for a module and a name.
        classes: for a name.

    Raises:
        UserError: it cannot be traced, or has ops without a place in a private network.
    """
    if isinstance(model, Candidate):
        network = skeleton(model.spec)
        model.plan.apply(network)
        return count_network(network)
    if isinstance(model, Network):
        return count_network(model)
    if isinstance(model, Spec):
        return count_network(skeleton(model))
    if input_shape is None:
        raise UserError("count needs the shape of one image: parelu.count(model, (3, 32, 32))")
    if isinstance(model, str):
        return count_network(skeleton(spec_of(model, _shape(input_shape), classes)))
    return count_network(instrument(_module(model), _shape(input_shape)))


def load(folder: str | Path, model: nn.Module | None = None) -> Candidate:
    """A candidate from its folder, RUN/candidates/NAME.

    Args:
        model: the module that it was made of, where it was one in memory: a file holds no code.

    Raises:
        UserError: the folder holds no candidate, or it was damaged, or is of another module.
    """
    candidate = Candidate.load(Path(folder))
    if model is None:
        return candidate
    spec = InMemory.of(_module(model), candidate.spec.input, candidate.spec.classes)
    if spec != candidate.spec:
        raise UserError(
            f"{folder} is not of this module: it is a {candidate.spec.to_json().get('target', 'named network')}"
            " of other layers; give the module that was reduced, or none"
        )
    return candidate


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run holds: the full-ReLU network and its reduced candidates.

    Attributes:
        run: the folder; `Result(Run.open(path))` opens one that is there.
    """

    run: Run

    @property
    def records(self) -> list[Record]:
        """The finished networks without their weights, by falling number of ReLUs."""
        return self.run.candidates()

    @property
    def full(self) -> Candidate:
        """The full-ReLU network that the others were made of."""
        return self.run.candidate("teacher")

    def candidate(self, name: str) -> Candidate:
        """One network by its name in `records`."""
        return self.run.candidate(name)

    def best(self, *, relus: int | None = None) -> Candidate:
        """The network of highest validation accuracy, of those with at most so many ReLUs.

        Raises:
            UserError: every network of the run has more.
        """
        rows = [row for row in frontier_rows(self.records) if row.on_frontier and (relus is None or row.relus <= relus)]
        if not rows:
            least = min(record.metrics.relus for record in self.records)
            raise UserError(f"no network of {self.run.path} has {relus:,} ReLUs or fewer; the smallest has {least:,}")
        return self.candidate(max(rows, key=lambda row: row.validation).name)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page about the run; report.html in its folder unless a path is given."""
        return write_report([self.run], Path(path) if path else self.run.path / "report.html")


def reduce(
    model: nn.Module | str,
    dataset: Any,
    *,
    method: Method | str,
    budget: int | float | str | Sequence[int | float | str] = (),
    run: str | Path,
    training: Training | str = "short",
    pretrained: bool = True,
    weights: Mapping[str, Tensor] | str | Path | None = None,
    test: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: data.Augmentation | None = None,
    input_shape: Shape | None = None,
    images: int | None = None,
    data_folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Reduce the ReLUs of a network to one budget or several; a call that is made again continues.

    Args:
        model: a module that `torch.fx` can trace, or a network's name such as "resnet10 m=8".
        dataset: a name such as "cifar10", (images, labels), or a map-style torch data set; see
            `parelu.data.memory.from_memory`, also for `test`, `mean`, `std` and `augmentation`.
        method: such as `SNL()`, or its name.
        budget: ReLUs to keep: 5000, "50k", or a fraction of the network's such as 0.1.
        run: the run folder.
        training: of each network: "short", "paper", or a `Training`.
        pretrained: whether the module's own weights are those of the trained full-ReLU network; else it is trained
            first, from fresh weights. A name's network is trained first unless it has `weights`.
        weights: of the trained full-ReLU network: a state dict, a candidate's folder, or a .safetensors file.
        input_shape: (C, H, W) of the network, where the images are of another shape.
        images: training images kept of a named set; data_folder: where its files are.
        seed: of fresh weights and of the order of the images.
        progress: bars on a terminal, a line for each network elsewhere.

    Raises:
        UserError: no data set, a module that cannot be traced, an unknown method, a budget that cannot be had.
    """
    reduction = Reduction(_method(method), _budgets(budget))
    schedule = _training(training)
    if isinstance(dataset, str):
        source: Any = dataset
        own = data.load(dataset, folder=_path(data_folder), images=images, input_shape=input_shape)
    else:
        source = own = from_memory(dataset, test, mean=mean, std=std, augmentation=augmentation)
    network: Any = model
    if not isinstance(model, str):
        module = _module(model)
        network = InMemory.of(module, _shape(input_shape or own.input_shape), own.classes)
        count(module, network.input)  # refuse, before anything is trained, what cannot be traced or counted
        if weights is None and pretrained:
            weights = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    experiment = Experiment(
        model=network,
        data=source,
        reductions=(reduction,),
        training=schedule,
        seed=seed,
        input=input_shape,
        images=images,
        data_folder=_path(data_folder),
        weights=_path(weights) if isinstance(weights, str) else weights,
    )
    with TerminalProgress(quiet=not progress) as watcher:
        return Result(run_experiment(experiment, Path(run), watcher))


def _budgets(budget: int | float | str | Sequence[int | float | str]) -> tuple[str, ...]:
    several = [budget] if isinstance(budget, (int, float, str)) else list(budget)
    return tuple(str(one) for one in several)


def _method(method: Method | str) -> Method:
    if isinstance(method, Method):
        return method
    known = methods()
    name = method.name if isinstance(method, type) and issubclass(method, Method) else method
    if name not in known:
        raise UserError(f"unknown method {method!r}; known are {', '.join(known)}")
    return known[name]()


def _training(training: Training | str) -> Training:
    if isinstance(training, Training):
        return training
    if training not in TRAININGS:
        raise UserError(f"training is {training!r}; it should be one of {', '.join(TRAININGS)}, or a Training")
    return TRAININGS[training]


def _module(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}; give a torch.nn.Module, or a network's name")
    return model


def _shape(shape: Any) -> Shape:
    try:
        channels, height, width = (int(side) for side in shape)
    except (TypeError, ValueError):
        raise UserError(f"input shape {shape!r} is not (channels, height, width), such as (3, 32, 32)") from None
    return channels, height, width


def _path(path: Any) -> Any:
    return Path(path) if isinstance(path, str) else path
