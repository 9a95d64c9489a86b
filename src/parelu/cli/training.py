"""The commands that train: quickstart, train, reduce, sweep."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from parelu.cli.bench import measure_run
from parelu.cli.inspection import print_frontier, save_report
from parelu.cli.output import say
from parelu.cli.own import Read
from parelu.errors import UserError

if TYPE_CHECKING:
    from parelu.api import Experiment, Method, OnRay, Reduction, Run

    AnyMethod = Method
    ReluName = OfflineName = str


def resolve() -> None:
    """Make the types that are read off a registry, which costs a second: one subcommand a method."""
    from parelu import api

    known = (Annotated[cls, tyro.conf.subcommand(name)] for name, cls in api.methods().items())
    globals()["AnyMethod"] = Union[tuple(known)]  # noqa: UP007
    globals().update(ReluName=Literal[tuple(api.relus())], OfflineName=Literal[tuple(api.modes())])


@dataclasses.dataclass(frozen=True)
class _Common:
    model: str
    """a network's name, such as "resnet10 m=8"; your.module:builder, net.py:builder, torchvision:NAME, timm:NAME; or
    net.onnx"""
    data: str = "digits"
    """digits, colour-digits, fashion-mnist, colour-fashion, cifar10, cifar100, tiny-imagenet, imagenet, hf:NAME, or
    folder for one of images"""
    data_folder: Path | None = None
    """where the data set's files are"""
    images: int | None = None
    """keep so many training images"""
    input: str | None = None
    """channels x height x width, such as 3x32x32; the data set's own if left out"""
    training: str = "paper"
    """a paper's, by name: deepreduce, deepreduce-cifar10, snl, autorep, autorep-public, senet, shallow, deepreshape;
    paper is that of the first method. short: one-cycle training in a few epochs"""
    epochs: int | None = None
    """of the networks that train from fresh weights, instead of the training's own number"""
    lr: float | None = None
    """likewise, the learning rate"""
    batch: int | None = None
    """likewise, images a step"""
    lr_schedule: Literal["step", "cosine", "one-cycle", "constant"] | None = None
    """likewise, how the learning rate falls"""
    milestones: tuple[int, ...] = ()
    """likewise, epochs after which the schedule step divides it by 10"""
    weight_decay: float | None = None
    """likewise, of the weights"""
    teacher: str | None = None
    """another network, by name, that all distillation learns from; it is trained first. The network's own full-ReLU
    version if left out"""
    seed: int = 0
    """of fresh weights, of the order of the images and of random masks"""
    run: Path | None = None
    """the run folder; a run that is there is continued"""
    on: str | None = None
    """where networks are trained: ray:HOST:PORT, a cluster that sees the run folder too; ray, one that is started
    here; with cpus=N and gpus=N of each training, such as ray:auto,gpus=0.5. This machine's cores if left out"""

    def experiment(self, reductions: tuple[Reduction, ...] = ()) -> Experiment:
        from parelu import api

        instead = {
            "epochs": self.epochs,
            "lr": self.lr,
            "batch": self.batch,
            "schedule": self.lr_schedule,
            "milestones": self.milestones or None,
            "weight_decay": self.weight_decay,
        }
        given: dict[str, Any] = {name: value for name, value in instead.items() if value is not None}
        first = reductions[0].method.name if reductions else ""
        return api.Experiment(
            self.model,
            self.data,
            reductions,
            api.training_of(self.training, first).changed(**given),
            self.seed,
            api.parse_input(self.input) if self.input else None,
            self.images,
            self.data_folder,
            teacher=self.teacher,
        )

    def folder(self, name: str) -> Path:
        model = Path(self.model).name if Path(self.model.partition(":")[0]).suffix in (".py", ".onnx") else self.model
        default = f"{name}-{model}-{self.data}-seed{self.seed}"
        for sign in " :/#":
            default = default.replace(sign, "-")
        return self.run or Path("runs") / default


@dataclasses.dataclass(frozen=True)
class Train(_Common, Read):
    """Train a full-ReLU network; one with --weights is taken into a run as it is, or trained on for --epochs.

    parelu train --model "resnet10 m=8" --data fashion-mnist --training short

    parelu train --model net.py:build --weights net.safetensors --data folder --data-folder pictures --input 3x32x32

    parelu train --model timm:mobilenetv3_small_050 --weights net.pth --replace all --epochs 5 --data cifar10
    """

    def __call__(self) -> None:
        one = dataclasses.replace(self.read(self.experiment()), goes_on=self.epochs is not None and self._is_trained)
        conduct(one, self.folder("train"), on=self.on)

    @property
    def _is_trained(self) -> bool:
        return self.weights is not None or self.pretrained or self.model.endswith(".onnx")


@dataclasses.dataclass(frozen=True)
class Reduce(_Common, Read):
    """Reduce a network's ReLUs with a method; trains the full-ReLU network first unless --weights has it.

    parelu reduce deepreduce --model "resnet10 m=8" --data colour-fashion --training short

    parelu reduce random --model resnet18 --data cifar100 --budget 50k 0.02

    parelu reduce snl --model "resnet10 m=8" --data digits --training short --budget 200ms+bytes:20MB --link wan
    """

    method: AnyMethod = dataclasses.field(kw_only=True)
    budget: tuple[str, ...] = ()
    """ReLUs to keep, the comparisons of max-pools among them: 50k, 12.9k, 50000, or a fraction such as 0.1; several for
    several candidates. Or what a query may take: 200ms online, offline:2s, total:5s, bytes:20MB, or several of these as
    200ms+bytes:20MB"""
    link: str | None = None
    """that such a query goes over, as bench has it; loopback if left out"""
    relu: ReluName | None = None
    """likewise, its ReLU protocol; sign if left out"""
    offline: OfflineName | None = None
    """likewise, its offline mode; hints if left out"""
    label: str = ""
    """ends the candidates' names, and stands beside them in tables"""

    def __call__(self) -> None:
        from parelu import api

        method = api.under(self.method, self.training)
        experiment = self.read(self.experiment((api.Reduction(method, self.budget, label=self.label),)))
        query = api.query_of(self.budget, self.link, self.relu, self.offline)
        experiment = dataclasses.replace(experiment, query=query)
        folder = self.folder("-".join(filter(None, (self.method.name, self.label))))
        print_frontier([conduct(experiment, folder, on=self.on)])


@dataclasses.dataclass(frozen=True)
class Sweep(_Common):
    """Reduce a ResNet of several base widths and multipliers, and draw accuracy over ReLUs and over FLOPs.

    parelu sweep --model resnet18 --m 8 16 --multipliers 2x2x2x 4x4x4x 5x5x3x --methods snl --data fashion-mnist
    --training short --budget 20k 5k
    """

    m: tuple[int, ...] = (16,)
    """base widths"""
    multipliers: tuple[str, ...] = ("2x2x2x", "4x4x4x", "5x5x3x")
    """of the stages' widths, for each base width; the first three of four stages' are BaseCh, StageCh and a HybReNet"""
    methods: tuple[str, ...] = ("deepreshape",)
    """with their default options, or the training's; without a name, the networks are trained and not reduced"""
    budget: tuple[str, ...] = ()
    """ReLUs to keep, as numbers; a network that has fewer is left out there"""

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.sweep import save_sweep, sweep_text

        budgets = api.parse_budgets(self.budget)
        folder = self.folder("sweep")
        known = api.methods()
        for name in self.methods:
            if name not in known:
                raise UserError(f"unknown method {name!r}; known are {', '.join(known)}")
        chosen = [api.under(known[name](), self.training) for name in self.methods]
        base = self.experiment(tuple(map(api.Reduction, chosen)))
        swept = api.sweep(base, self.m, self.multipliers, chosen, budgets)
        folders = [folder / str(one.model).replace(" ", "-") for one in swept]
        runs = conduct_all(swept, folders, self.on)
        for ending in ("png", "svg"):
            save_sweep(runs, folder / f"sweep.{ending}")
        found = {record.metrics.relus_and_comparisons for run in runs for record in run.candidates()}
        shown = budgets or (sorted(found, reverse=True)[1::3] if chosen else [])
        print(sweep_text(runs, shown))
        say(f"picture: {folder / 'sweep.png'}")


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """From a small ResNet to its frontier, private inference and a report, on real images, in under ten minutes on
    two cores.

    parelu quickstart
    """

    run: Path = Path("runs/quickstart")

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.latency import gained_text

        has_colour = api.data.available("colour-fashion", download=True)
        (one,) = api.read_recipe("quickstart" if has_colour else "quickstart-digits").experiments
        if not has_colour:
            say("Fashion-MNIST is not on this machine and cannot be fetched: the bundled digits, in colour, stand in.")
        run = conduct(one, self.run)
        print_frontier([run])
        say("private inference of the networks on the frontier")
        dataset = measure_run(run, api.Asked(api.Options()))
        save_report([run], self.run / "report.html")
        print()
        print(gained_text(run.candidates(), int(dataset.test.labels[0])))


def conduct_all(experiments: Sequence[Experiment], folders: Sequence[Path], on: str | None = None) -> list[Run]:
    """Run after run, or on a cluster all at once; what one of the later ones cannot do is refused before the first
    trains."""
    from parelu import api

    for one in experiments:
        if one.seed == experiments[0].seed:
            api.outlook(one)
    if not on:
        return _of_first([_conduct(one, place, folders) for one, place in zip(experiments, folders, strict=True)])
    for one, place in zip(experiments, folders, strict=True):
        _say_what(one, place)
    with api.TerminalProgress() as progress:
        return api.run_at_once(experiments, folders, progress, _cluster(on))


def conduct(experiment: Experiment, folder: Path, on: str | None = None) -> Run:
    return _of_first([_conduct(experiment, folder, on=on)])[0]


def _cluster(on: str) -> OnRay:
    from parelu import api

    if api.ranks.size() > 1:
        raise UserError("--on gives trainings to a cluster, and torchrun's ranks do them together; leave one out")
    return api.OnRay.parse(on)


def _of_first(runs: list[Run]) -> list[Run]:
    """What a command shows of runs, the first of torchrun's ranks shows for all; the others end."""
    from parelu import api

    if api.ranks.number():
        api.ranks.leave()
        sys.exit(0)
    return runs


def _conduct(experiment: Experiment, folder: Path, lenders: Sequence[Path] = (), on: str | None = None) -> Run:
    """lenders: folders of other runs, whose networks with all ReLUs are taken where they are the same."""
    from parelu import api
    from parelu.report.inspection import notes_lines

    executor = _cluster(on) if on else None
    _say_what(experiment, folder)
    with api.TerminalProgress() as progress:
        run = api.run_experiment(experiment, folder, progress, executor, lenders)
    has_full = (run.folder("teacher") / "candidate.json").exists()
    notes = getattr(run.candidate("teacher").spec, "notes", "") if has_full else ""  # of a network that was read
    for line in notes_lines(notes.splitlines()):
        say(line)
    return run


def _say_what(experiment: Experiment, folder: Path) -> None:
    entries = ("-".join(filter(None, (one.method.name, one.label))) for one in experiment.reductions)
    methods = "".join(f", {entry}" for entry in entries)
    say(f"{experiment.model} on {experiment.data}, seed {experiment.seed}{methods} → {folder}")


COMMANDS: dict[str, type[Any]] = {
    "quickstart": Quickstart,
    "train": Train,
    "reduce": Reduce,
    "sweep": Sweep,
}
