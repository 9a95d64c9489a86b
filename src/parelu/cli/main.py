"""The command line: each command is a dataclass whose fields are its options."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from parelu import data
from parelu.cli import private
from parelu.errors import ProtocolError, UserError
from parelu.methods.base import Method, methods
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.plan import Plan
from parelu.network.spec import Spec, spec_of
from parelu.network.steps import apply_steps
from parelu.runs import experiment, merging, recipes, sweep
from parelu.runs.experiment import Experiment, Reduction
from parelu.runs.folder import Run
from parelu.runs.progress import TerminalProgress, say


def _one_of(classes: Mapping[str, type[Any]]) -> Any:
    """The type that makes tyro offer a subcommand for each class."""
    return Union[tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in classes.items())]  # noqa: UP007


if TYPE_CHECKING:
    from parelu.report.tables import Axis

    AnyMethod = Method
else:
    AnyMethod = _one_of(methods())


@dataclasses.dataclass(frozen=True)
class _Network:
    network: tyro.conf.Positional[str]
    """a candidate's folder, or a network's name, such as "resnet18 m=16 4x4x4x" or your.module:function"""
    input: str = "3x32x32"
    """channels x height x width"""
    classes: int = 10
    steps: str = "none"
    """reductions, such as "cull S1; thin S2+S3; channels 0.5; fmap 0.5", "only S2", "thin all", "stem linear" """
    json: bool = False
    """print JSON"""

    @property
    def title(self) -> str:
        return self.network + (f", {self.steps}" if self.steps != "none" else "")

    def subject(self) -> tuple[Candidate | None, Spec, Plan]:
        """The candidate, where there is one, the architecture and its plan."""
        if (Path(self.network) / "candidate.json").exists():
            candidate = Candidate.load(Path(self.network))
            return candidate, candidate.spec, candidate.plan
        reduced = apply_steps(spec_of(self.network, experiment.parse_input(self.input), self.classes), self.steps)
        return None, reduced.spec, reduced.plan


@dataclasses.dataclass(frozen=True)
class Inspect(_Network):
    """Count a network's ReLUs, MACs and depth, and print its fixed-point plan for private inference.

    A network's name gets fresh weights: its ranges then come from noise, a candidate's from its training data.

    parelu inspect resnet18 --input 3x32x32 --classes 100 --steps "cull S1; thin S2+S3+S4; channels 0.5" --json

    parelu inspect runs/quickstart/candidates/teacher
    """

    def __call__(self) -> None:
        from parelu.private.fresh import sketch
        from parelu.private.lowering.lower import problems
        from parelu.report.inspection import inspection
        from parelu.runs import measurement

        candidate, spec, plan = self.subject()
        network = skeleton(spec)
        plan.apply(network)
        unsupported = problems(network)
        lowered = None
        if not unsupported:
            folder = Path(self.network)
            lowered = measurement.lowered(folder, candidate) if candidate else sketch(spec, plan)
        print(inspection(spec, self.title, plan, lowered, unsupported, as_json=self.json))
        if unsupported:
            raise UserError("\n".join(map(str, unsupported)))


@dataclasses.dataclass(frozen=True)
class Design:
    """Design networks whose stages have ReLUs by their criticality: ReLU equalisation, HybReNets.

    parelu design --base resnet34 --order "S3>S2>S4>S1"

    parelu design --base resnet18 --run runs/quickstart
    """

    base: str = "resnet18"
    """a ResNet: its depths stay, and its widths change"""
    order: str = ""
    """its stages, the most critical first: "S3>S2>S4>S1" (in quotes) or S3,S2,S4,S1"""
    run: Path | None = None
    """instead of an order: a run of deepreduce or deepreshape, which measured it"""
    m: int = 16
    """base width"""
    by: Literal["width", "depth"] = "width"
    """what is changed; depth keeps the base's widths instead"""
    input: str = "3x32x32"
    """channels x height x width"""
    classes: int = 100
    json: bool = False
    """print JSON"""

    def __call__(self) -> None:
        from parelu.methods.deepreshape import designs
        from parelu.report.designs import designs_text

        names = designs(self.base, self.order or self._measured(), self.m, self.by)
        shape = experiment.parse_input(self.input)
        print(designs_text([(name, spec_of(name, shape, self.classes)) for name in names], as_json=self.json))

    def _measured(self) -> str:
        if self.run is None:
            raise UserError('give --order "S3>S2>S4>S1", or --run with a run of deepreduce that measured it')
        record = Run.open(self.run).records().get("criticality")
        if record is None:
            raise UserError(f"{self.run} has no criticality; give a run of `parelu reduce deepreduce`, or --order")
        return ">".join(reversed(record["order"]))


@dataclasses.dataclass(frozen=True)
class Fuse(_Network):
    """Say what merging linear layers makes of a network: layers, depth, MACs, homomorphic products, rounds.

    bench and serve merge by themselves what can be merged exactly. The rest needs --finetune.

    parelu fuse resnet18 --steps "cull S1+S4; thin S2+S3"

    parelu fuse runs/quickstart/candidates/cull-S1S4_thin-S2S3 --finetune 3
    """

    finetune: int | None = None
    """epochs: merge layers that pad too, and train what comes out, as CANDIDATE-merged in the candidate's run"""

    def __call__(self) -> None:
        from parelu.report.fusion import fusion

        _, spec, plan = self.subject()
        print(fusion(spec, self.title, plan, as_json=self.json))
        if self.finetune is not None:
            folder = Path(self.network)
            if folder.parent.name != "candidates":
                raise UserError(f"--finetune trains in a run; {self.network} is not RUN/candidates/NAME")
            run = Run.open(folder.parent.parent)
            with TerminalProgress() as progress:
                found = merging.merge(run, folder.name, self.finetune, progress)
            say(
                f"validation accuracy {run.candidate(folder.name).trained.validation_accuracy:.1f} % before, "
                f"{found.trained.validation_accuracy:.1f} % merged → {folder}-merged"
            )


@dataclasses.dataclass(frozen=True)
class _Common:
    model: str
    """a network's name, such as "resnet10 m=8", or your.module:function"""
    data: str = "digits"
    """digits, fashion-mnist, colour-fashion, cifar10, cifar100, tiny-imagenet, or folder for a folder of images"""
    data_folder: Path | None = None
    """where the data set's files are"""
    images: int | None = None
    """keep so many training images"""
    input: str | None = None
    """channels x height x width, such as 3x32x32; the data set's own if left out"""
    training: Literal["paper", "short"] = "paper"
    """the paper's schedule, or one-cycle training in a few epochs"""
    epochs: int | None = None
    """instead of the training's own number"""
    lr: float | None = None
    """instead of the training's own learning rate"""
    seed: int = 0
    """of fresh weights, of the order of the images and of random masks"""
    run: Path | None = None
    """the run folder; a run that is there is continued"""

    def study(self, reductions: tuple[Reduction, ...], weights: Path | None = None) -> Experiment:
        instead = {"epochs": self.epochs, "lr": self.lr}
        given: dict[str, Any] = {name: value for name, value in instead.items() if value is not None}
        training = dataclasses.replace(experiment.TRAININGS[self.training], **given)
        shape = experiment.parse_input(self.input) if self.input else None
        return Experiment(
            self.model, self.data, reductions, training, self.seed, shape, self.images, self.data_folder, weights
        )

    def folder(self, name: str) -> Path:
        default = f"{name}-{self.model}-{self.data}-seed{self.seed}".replace(" ", "-").replace(":", "-")
        return self.run or Path("runs") / default


@dataclasses.dataclass(frozen=True)
class Train(_Common):
    """Train a full-ReLU network.

    parelu train --model "resnet10 m=8" --data fashion-mnist --training short
    """

    def __call__(self) -> None:
        _conduct(self.study(()), self.folder("train"))


@dataclasses.dataclass(frozen=True)
class Reduce(_Common):
    """Reduce a network's ReLUs with a method; trains the full-ReLU network first unless --weights has it.

    parelu reduce deepreduce --model "resnet10 m=8" --data colour-fashion --training short

    parelu reduce random --model resnet18 --data cifar100 --budget 50k 0.02
    """

    method: AnyMethod = dataclasses.field(kw_only=True)
    budget: tuple[str, ...] = ()
    """ReLUs to keep: 50k, 12.9k, 50000, or a fraction such as 0.1; several for several candidates"""
    weights: Path | None = None
    """the trained full-ReLU network: a candidate's folder or a .safetensors state dict"""

    def __call__(self) -> None:
        reductions = (Reduction(self.method, self.budget),)
        run = _conduct(self.study(reductions, self.weights), self.folder(self.method.name))
        _print_frontier([run])


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
    """with their default options"""
    budget: tuple[str, ...] = ()
    """ReLUs to keep, as numbers; a network that has fewer is left out there"""

    def __call__(self) -> None:
        from parelu.report.sweep import save_sweep, sweep_text

        budgets, folder = sweep.parse_budgets(self.budget), self.folder("sweep")
        networks = sweep.sweep(self.study(()), self.m, self.multipliers, self.methods, budgets)
        runs = [_conduct(one, folder / str(one.model).replace(" ", "-")) for one in networks]
        for ending in ("png", "svg"):
            save_sweep(runs, folder / f"sweep.{ending}")
        shown = budgets or sorted({r.metrics.relus for run in runs for r in run.candidates()}, reverse=True)[1::3]
        print(sweep_text(runs, shown))
        say(f"picture: {folder / 'sweep.png'}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Run a recipe: a YAML file with a network, a data set, methods and seeds; a run folder a seed.

    parelu recipe colour-fashion
    """

    recipe: tyro.conf.Positional[str]
    """a file, or the name of a recipe that comes with parelu"""
    run: Path | None = None
    """folder of the run folders; runs/NAME if left out"""
    data_folder: Path | None = None
    """where the data set's files are"""
    dry_run: bool = False
    """say what would be trained, and whether the data is there"""

    def __call__(self) -> None:
        title, studies = recipes.read_recipe(self.recipe)
        studies = [dataclasses.replace(one, data_folder=self.data_folder) for one in studies]
        say(title)
        folder = self.run or Path("runs") / Path(self.recipe).stem
        if self.dry_run:
            for one in studies:
                print(json.dumps(one.config(), indent=1))
                source, spec = experiment.prepare(one)
                say(f"seed {one.seed}: {count(skeleton(spec)).relus:,} ReLUs, input {'x'.join(map(str, source.input))}")
            return
        runs = [_conduct(one, folder / f"seed{one.seed}") for one in studies]
        _print_frontier(runs)
        _write_report(runs, folder / "report.html")


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Print the frontier of one or more runs: accuracy against ReLUs, or against another cost.

    parelu frontier runs/quickstart/seed0

    parelu frontier runs/quickstart/seed0 --x latency
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    x: Literal["relus", "macs", "depth", "latency", "bytes"] = "relus"
    """the cost; latency and bytes are online, of the networks that parelu bench measured"""
    json: bool = False
    """print JSON"""

    def __call__(self) -> None:
        from parelu.report import tables

        runs = _open(self.runs, "frontier")
        if self.json:
            records = [record for run in runs for record in run.candidates()]
            print(json.dumps([row.to_json() for row in tables.frontier_rows(records, self.x)], indent=1))
        else:
            _print_frontier(runs, self.x)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one HTML page about one or more runs: frontier, candidates, stages, curves, configuration.

    parelu report runs/quickstart/seed0
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    """the page; report.html in the first run's folder if left out"""

    def __call__(self) -> None:
        runs = _open(self.runs, "report")
        _write_report(runs, self.out or self.runs[0] / "report.html")


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """From a small ResNet to its frontier, private inference and a report, on real images, in under ten minutes on
    two cores.

    parelu quickstart
    """

    run: Path = Path("runs/quickstart")

    def __call__(self) -> None:
        has_colour = data.available("colour-fashion", download=True)
        _, (one,) = recipes.read_recipe("quickstart" if has_colour else "quickstart-digits")
        if not has_colour:
            say("Fashion-MNIST is neither on this machine nor can it be fetched: the bundled digits stand in.")
        run = _conduct(one, self.run)
        _print_frontier([run])
        say("private inference of the networks on the frontier")
        dataset = private.measure_run(run)
        _write_report([run], self.run / "report.html")
        print()
        print(private.side_by_side(run, dataset))


def _conduct(one: Experiment, folder: Path) -> Run:
    budgets = "".join(f", {r.method.name}" for r in one.reductions)
    say(f"{one.model} on {one.data}, seed {one.seed}{budgets} → {folder}")
    with TerminalProgress() as progress:
        return experiment.run_experiment(one, folder, progress)


def _open(paths: tuple[Path, ...], command: str) -> list[Run]:
    if not paths:
        raise UserError(f"no run folder given; name one or more, for example parelu {command} runs/quickstart")
    return [Run.open(path) for path in paths]


def _print_frontier(runs: list[Run], x: Axis = "relus") -> None:
    from parelu.report import tables

    print(tables.frontier_text([record for run in runs for record in run.candidates()], x))


def _write_report(runs: list[Run], path: Path) -> None:
    from parelu.report.page import write_report

    say(f"report: {write_report(runs, path)}")


COMMANDS: dict[str, type[Any]] = {
    "quickstart": Quickstart,
    "inspect": Inspect,
    "design": Design,
    "fuse": Fuse,
    "train": Train,
    "reduce": Reduce,
    "sweep": Sweep,
    "recipe": Recipe,
    "frontier": Frontier,
    "report": Report,
    **private.COMMANDS,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `parelu`; exits with 2 and one line for what a user can mend, 130 when interrupted."""
    try:
        commands = _one_of(COMMANDS)
        config = (
            tyro.conf.CascadeSubcommandArgs,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
        )
        command: Any = tyro.cli(commands, prog="parelu", args=arguments, description=__doc__, config=config)  # pyright: ignore
        command()
        sys.stdout.flush()
    except (UserError, ProtocolError) as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give another --run"
        what = f"{error.filename or 'a file'}: {os.strerror(error.errno)}"
        sys.exit(_fail(f"{what}; {remedy} and run the same command again: finished networks are kept"))
    except KeyboardInterrupt:
        say("parelu: interrupted; run the same command again to go on from the last finished epoch")
        sys.exit(130)


def _fail(message: str) -> int:
    for line in message.splitlines():
        say(f"parelu: {line}")
    return 2
