"""The verbs of parelu: for a network and data in memory, and for those that have names.

    result = parelu.reduce(model, (images, labels), method=SNL(), budget=[0.1, 500], run="runs/mine")
    candidate = result.best(relus=500)
    row = parelu.bench(candidate, (images, labels), relu="sign", link="lan")

The command line calls what stands here, and nothing else.
"""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from parelu import data
from parelu.data.dataset import Dataset
from parelu.data.memory import from_memory
from parelu.errors import UserError
from parelu.methods.base import Method, methods
from parelu.models.external import Reading, copied, fresh_copy, is_trained, read
from parelu.network import machine
from parelu.network.candidate import Candidate
from parelu.network.canonical import replacements
from parelu.network.count import Counts, shared_skeleton, skeleton
from parelu.network.count import count as count_network
from parelu.network.instrument import instrument
from parelu.network.mapping import checked as checked_mapping
from parelu.network.mapping import read_mapping
from parelu.network.sites import Network
from parelu.network.spec import Spec, spec_of
from parelu.private.cost.calibrate import calibrated
from parelu.private.cost.calibration import Calibration
from parelu.private.cost.calibration import chosen as chosen_calibration
from parelu.private.cost.calibration import own_file as own_calibration
from parelu.private.cost.measure import LINKS, cases, observe
from parelu.private.cost.predict import predict
from parelu.private.engines.base import Options, chosen
from parelu.private.offline.mode import DEFAULT, modes
from parelu.private.protocol.delphi import TRUNCATIONS
from parelu.private.protocol.relu import relus
from parelu.private.rows import QUERIES, PrivateInference, Row
from parelu.private.serving.client import Client
from parelu.private.serving.greeting import check_model_name
from parelu.private.serving.served import ServedOptions
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.transport.link import Link, link_of
from parelu.report.beside import Beside, beside
from parelu.report.tables import Axis, frontier_rows
from parelu.runs import measurement
from parelu.runs.at_once import run_at_once
from parelu.runs.bars import bar
from parelu.runs.budgets import query_of
from parelu.runs.cluster import OnRay
from parelu.runs.deployment import Candidates, Setting, serve_until_stopped, server_of
from parelu.runs.dry_run import outlook
from parelu.runs.executor import InProcess
from parelu.runs.experiment import Experiment, Reduction, parse_input, prepare, run_experiment
from parelu.runs.export import OPSET, Exported, images_of, write_onnx, write_program
from parelu.runs.folder import Record, Run
from parelu.runs.hub import push
from parelu.runs.inspection import Subject, designs, measured_order, named, program_of, subject
from parelu.runs.measurement import Asked, measure_run
from parelu.runs.merging import merge
from parelu.runs.obstacles import WayOut, way_out
from parelu.runs.predictions import SHOWN, Queries
from parelu.runs.presets import training_of, under
from parelu.runs.processes import Processes
from parelu.runs.progress import TerminalProgress
from parelu.runs.recipes import read_recipe
from parelu.runs.scale import difference, small
from parelu.runs.sweep import parse_budgets, sweep
from parelu.runs.tracking import MLflow, TensorBoard, follow
from parelu.runs.workload import Workload, trained_workload, untrained_workload, workload_on
from parelu.training import ranks
from parelu.training.schedule import Training

__all__ = [
    "SHOWN",
    "TRUNCATIONS",
    "Asked",
    "Axis",
    "Beside",
    "Candidates",
    "Client",
    "Dataset",
    "Experiment",
    "InProcess",
    "MLflow",
    "Method",
    "OnRay",
    "Options",
    "PrivateInference",
    "Queries",
    "Reduction",
    "Result",
    "Run",
    "ServedOptions",
    "Server",
    "ServerOptions",
    "Setting",
    "Subject",
    "TensorBoard",
    "TerminalProgress",
    "WayOut",
    "Workload",
    "bar",
    "bench",
    "calibrate",
    "calibration",
    "check_model_name",
    "checked_mapping",
    "chosen",
    "compare",
    "count",
    "data",
    "designs",
    "difference",
    "export",
    "follow",
    "instrument",
    "is_trained",
    "link_of",
    "load",
    "measure_run",
    "measured_order",
    "merge",
    "methods",
    "modes",
    "named",
    "needs_training",
    "outlook",
    "own_calibration",
    "parse_budgets",
    "parse_input",
    "predict",
    "prepare",
    "program_of",
    "push",
    "query_of",
    "ranks",
    "read_mapping",
    "read_recipe",
    "reduce",
    "relus",
    "run_at_once",
    "run_experiment",
    "serve",
    "serve_until_stopped",
    "small",
    "spec_of",
    "subject",
    "sweep",
    "trained_workload",
    "training_of",
    "under",
    "untrained_workload",
    "way_out",
]

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
        return count_network(shared_skeleton(model))
    if input_shape is None:
        raise UserError("count needs the shape of one image: parelu.count(model, (3, 32, 32))")
    if isinstance(model, str):
        return count_network(shared_skeleton(spec_of(model, _shape(input_shape), classes)))
    return count_network(instrument(_module(model), _shape(input_shape)))


def load(folder: str | Path) -> Candidate:
    """A candidate from its folder, RUN/candidates/NAME, which holds all of it: no code of yours is needed again.

    Raises:
        UserError: the folder holds no candidate, or it was damaged.
    """
    return Candidate.load(Path(folder))


def export(
    candidate: Candidate | str | Path,
    onnx: str | Path | None = None,
    program: str | Path | None = None,
    *,
    opset: int = OPSET,
    folder: str | Path | None = None,
) -> list[Exported]:
    """Write a candidate for other runtimes; its masks and polynomials are constants, its images normalised.

    Each is run on images of its test set before it is written, an ONNX file where onnxruntime is installed.

    Args:
        candidate: its folder, or the candidate itself.
        onnx: an .onnx file.
        program: a .pt2 file, which `torch.export.load` opens without parelu.
        opset: of the ONNX file, from 14.
        folder: where the files of the candidate's data set are.

    Raises:
        UserError: onnx is not installed or does not know the opset; or what was written computes something else.
    """
    own = None if folder is None else Path(folder)
    if not isinstance(candidate, Candidate):
        own = own or measurement.data_folder_of(Path(candidate))
        candidate = load(candidate)
    images = images_of(candidate, own)
    written = [] if onnx is None else [write_onnx(candidate, Path(onnx), images, opset)]
    return written + ([] if program is None else [write_program(candidate, Path(program), images)])


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run holds: the full-ReLU network and its reduced candidates.

    Attributes:
        run: the folder.
    """

    run: Run

    @classmethod
    def open(cls, folder: str | Path) -> Result:
        """The result in a run folder; raises `UserError` where there is none."""
        return cls(Run.open(Path(folder)))

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
            least = min(record.metrics.relus_and_comparisons for record in self.records)
            raise UserError(f"no network of {self.run.path} has {relus:,} ReLUs or fewer; the smallest has {least:,}")
        return self.candidate(max(rows, key=lambda row: row.validation).name)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page about the run; report.html in its folder unless a path is given."""
        from parelu.report.page import write_report  # matplotlib takes half a second

        return write_report([self.run], Path(path) if path else self.run.path / "report.html")


def compare(runs: Sequence[Run | str | Path], paper: str = "") -> Beside:
    """Runs beside a paper's table: the published points, ours that stand for them, and the ratios that papers quote.

    Args:
        runs: run folders of one data set, of any networks and seeds.
        paper: such as "AutoReP Table 3"; left out, the table that the runs' recipe names.

    Raises:
        UserError: there is no such paper or table, or a run has no full-ReLU network.
    """
    return beside([run if isinstance(run, Run) else Run.open(run) for run in runs], paper)


def reduce(
    model: nn.Module | str,
    dataset: Any,
    *,
    method: Method | str,
    budget: int | float | str | Sequence[int | float | str] = (),
    run: str | Path,
    training: Training | str = "paper",
    pretrained: bool | None = None,
    weights: Mapping[str, Tensor] | str | Path | None = None,
    input_shape: Shape | None = None,
    replace: str = "",
    output: int | str | None = None,
    seed: int = 0,
    link: str | None = None,
    relu: str | None = None,
    offline: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Result:
    """Reduce the ReLUs of a network to one budget or several; a call that is made again continues.

    Args:
        model: a module that `torch.fx` can trace, or a network's name such as "resnet10 m=8".
        dataset: a name such as "cifar10", (images, labels), a map-style torch data set, or what `parelu.data.load` and
            `parelu.data.from_memory` give, which take a folder, a test set, a normalisation, an augmentation.
        method: such as `SNL()`, or its name.
        budget: ReLUs to keep, the comparisons of max-pools among them: 5000, "50k", or a fraction of the network's such
            as 0.1. Or what a query may take, such as "200ms", "offline:2s", "total:5s", "bytes:20MB" or several as
            "200ms+bytes:20MB".
        run: the run folder.
        training: "paper", as the method's paper trains; "short", some epochs of one-cycle training; another paper's
            name; or a `Training` of each network. A name has options of the method too, which go before its defaults.
        pretrained: whether the network's own weights are those of the trained full-ReLU network; else that is trained
            first, from fresh weights of the same scale. Left out, a module's are, and those that code of yours builds
            by its name are not.
        weights: of the trained full-ReLU network: a state dict, a candidate's folder, a safetensors file or a
            checkpoint of torch.
        input_shape: (C, H, W) of the network, where the images are of another shape.
        replace: what is to stand in the place of ops, such as "silu=relu,maxpool=avgpool", or "all"; a trained network
            is then trained on, with itself as it was as the teacher.
        output: of a network with several outputs, the index or name of the logits.
        seed: of fresh weights and of the order of the images.
        link, relu, offline: of a query that a budget is about, as `bench` has them.
        workers: processes that train side by side, from a script that is guarded by `if __name__ == "__main__":`; 1 is
            this process alone. Left out, one a core for a named network on a named data set, and 1 for what is in
            memory. Equal numbers of threads give equal bits.
        progress: bars on a terminal, a line for each network elsewhere.

    Raises:
        UserError: no data set, a module that cannot be traced, an unknown method, a budget that cannot be had.
    """
    method = _method(method)
    if isinstance(training, str):
        method, training = under(method, training), training_of(training, method.name)
    reduction, seed = Reduction(method, _budgets(budget)), _whole("seed", seed)
    if isinstance(dataset, str):
        source: Any = dataset
        own = data.load(dataset, input_shape=input_shape)
    else:
        source = own = from_memory(dataset)
    given: Any = _path(weights)
    network: Any = model
    original: Reading | None = None
    if not isinstance(model, str):
        own_weights = pretrained is not False or weights is not None
        shape, kinds = _shape(input_shape or own.input_shape), replacements.parsed(replace)
        found = _read(_module(model), shape, own.classes, given, own_weights, output, kinds)
        if found.is_replaced and own_weights:
            original = _read(_module(model), shape, own.classes, given, True, output, {}, keeps_smooth=True)
        network, given, pretrained = found.spec, found.weights if own_weights else None, False
    experiment = Experiment(
        model=network,
        data=source,
        reductions=(reduction,),
        training=training,
        seed=seed,
        input=input_shape,
        weights=given,
        pretrained=bool(pretrained),
        replace=replace if isinstance(model, str) else "",
        output=None if output is None or not isinstance(model, str) else str(output),
        original=original,
        query=query_of(reduction.budgets, link, relu, offline),
    )
    in_memory = not isinstance(model, str) or not isinstance(dataset, str)
    alone = workers == 1 or (in_memory and workers is None)
    executor = InProcess() if alone else Processes(workers and _whole("workers", workers))
    with TerminalProgress(quiet=not progress) as watcher:
        return Result(run_experiment(experiment, Path(run), watcher, executor))


def needs_training(replace: str) -> bool:
    """Whether a network with such replacements (`--replace`) is another function, beyond small errors."""
    return replacements.need_training(replacements.parsed(replace))


def bench(
    candidate: Candidate,
    dataset: Any = None,
    *,
    images: int = 5,
    engine: str = "delphi",
    relu: str = "sign",
    offline: str = DEFAULT,
    link: str = "loopback",
    batch: int = 1,
    truncation: str = "local",
    queries: int = QUERIES,
) -> Row:
    """Measure private inference of a candidate between two processes: seconds, bytes, rounds, per layer and in all.

    Args:
        dataset: that the ranges are calibrated on and the images taken from, as `reduce` takes it; left out, the named
            set that the candidate was trained on.
        images: inferences, after one that warms up; `batch` of them share a query.
        engine, relu, offline, link, truncation, queries: as `parelu bench --help` has them.

    Raises:
        UserError: a name is unknown, or an op of the network cannot be run privately.
    """
    if not isinstance(candidate, Candidate):
        raise UserError(
            f"the candidate is a {type(candidate).__name__}; give one of a run: result.best(), or parelu.load(folder)"
        )
    options = Options(relu, offline, link, batch, truncation, queries)
    chosen([engine], options)
    if dataset is None or isinstance(dataset, str):
        known = data.load(dataset) if dataset else measurement.dataset_of(candidate)
    else:
        known = from_memory(dataset)
    return workload_on(candidate, known, images, offline).run(options, engine)


def calibrate(links: Sequence[str] | None = None, times: int = 1) -> Calibration:
    """Measure what private inference takes on this machine, in minutes, between two processes.

    Warns where the machine is busy with something else.

    links: to measure on as well, as `link_of` reads them; left out, LAN and WAN. Raises UserError for another, and for
    loopback. times: that each program is measured, the second time after all were.
    """
    if times < 1:
        raise UserError(f"a calibration of {times} times has no measurements; it should be 1 or more")
    if links is not None and Link() in map(link_of, links):
        raise UserError("loopback is measured anyway: give the link of two machines, or leave it out for LAN and WAN")
    found = cases(LINKS if links is None else [str(link_of(link)) for link in links], times)
    if machine.load() > machine.cores() / 2:
        warnings.warn(
            f"this machine is busy (load {machine.load():.1f} on {machine.cores()} cores): what is measured now takes "
            "longer than it does alone",
            stacklevel=2,
        )
    with bar("calibration", len(found)) as progress:
        return calibrated(observe(found, lambda _: progress(1)))


def calibration(path: str | Path | None = None) -> Calibration:
    """The calibration in a file; left out, this user's own, else the one that ships. Warns where it is of another
    machine or version; raises UserError for a file that is none."""
    return chosen_calibration(None if path is None else Path(path))


def serve(
    candidate: Candidate | str | Path,
    dataset: Any = None,
    *,
    folder: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7000,
    certificates: str | Path | None = None,
    options: ServerOptions | None = None,
    **terms: Any,
) -> Server:
    """A server of a candidate, listening; `.run()` answers clients until `.close()`.

    Args:
        candidate: its folder, or the candidate itself.
        dataset: that the ranges are calibrated on, as `reduce` takes it; left out, the named set that the candidate was
            trained on. Of its images nothing is kept but the largest numbers in the network.
        folder: where a candidate that is not in one is kept, with its program and hints.
        certificates: folder with ca.pem, server.pem and server.key; needed unless the address is this machine's own.
        options, terms: how it serves, and relu, offline, reveal, step, truncation, as `parelu serve --help` has them.

    Raises:
        UserError: an op of the network cannot be run privately, or what is asked for cannot be served.
    """
    if isinstance(candidate, Candidate):
        if folder is None:
            raise UserError("serve keeps the candidate's program beside it: give folder=, or the folder it is in")
        candidate.save(Path(folder))
    place = Path(folder) if isinstance(candidate, Candidate) and folder else Path(str(candidate))
    if dataset is not None:
        terms["calibrate"] = data.load(dataset) if isinstance(dataset, str) else from_memory(dataset)
    options = options or ServerOptions()
    return server_of(Setting(place, options=options, **terms), (host, port), _path(certificates), options)


def _budgets(budget: int | float | str | Sequence[int | float | str]) -> tuple[str, ...]:
    try:
        several = [budget] if isinstance(budget, str) else list(budget)  # pyright: ignore[reportArgumentType]
    except TypeError:  # a number, of Python, numpy or torch
        several = [budget]
    return tuple(str(one.item() if hasattr(one, "item") else one) for one in several)  # pyright: ignore


def _whole(name: str, number: Any) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise UserError(f"{name} is {number!r}; it should be a whole number") from None


def _read(
    module: nn.Module,
    shape: Shape,
    classes: int,
    weights: Any,
    is_trained: bool,
    output: int | str | None,
    replace: Mapping[str, str],
    *,
    keeps_smooth: bool = False,
) -> Reading:
    """A module as a graph, which is left as it is; what it computes and trains, also of frozen parts, is a copy's."""
    if any(isinstance(tensor, UninitializedParameter) for tensor in module.parameters()):
        instrument(module, shape)  # its layers get their shapes, as with the first image
    if not is_trained:
        module = fresh_copy(module)
    elif weights is not None:
        module = copied(module)
    name = type(module).__qualname__
    return read(module, shape, classes, name, weights, output, replace, keeps_smooth=keeps_smooth)


def _method(method: Method | str) -> Method:
    if isinstance(method, Method):
        return method
    known = methods()
    name = method.name if isinstance(method, type) and issubclass(method, Method) else method
    if name not in known:
        raise UserError(f"unknown method {method!r}; known are {', '.join(known)}")
    return known[name]()


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
