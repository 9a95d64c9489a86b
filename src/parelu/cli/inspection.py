"""The commands that look: inspect, design, fuse, frontier, report."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from parelu.cli.output import say
from parelu.errors import UserError

if TYPE_CHECKING:
    from parelu.api import Axis, Queries, Run, Subject, WayOut


def resolve() -> None:
    """No option here is read off a registry."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicting:
    """How the queries run that are predicted."""

    link: str | None = None
    """that predicted queries go over, as bench has it; left out, several side by side"""
    relu: str | None = None
    """of predicted queries, as bench has it; sign if left out"""
    offline: str | None = None
    """likewise, their offline mode; hints if left out"""

    def queries(self, *shown: str) -> Queries:
        """shown: the links where none is given."""
        from parelu import api

        return api.Queries.of(self.link, self.relu, self.offline, shown or api.SHOWN)


@dataclasses.dataclass(frozen=True)
class _Network(Predicting):
    network: tyro.conf.Positional[str]
    """a candidate's folder, or a network's name, such as "resnet18 m=16 4x4x4x"; your.module:builder, net.py:builder,
    torchvision:NAME, timm:NAME; or net.onnx"""
    input: str | None = None
    """channels x height x width; left out, 3x32x32, or what a file's network reads"""
    classes: int | None = None
    """left out, 10, or what a file's network tells apart"""
    replace: str = ""
    """what is to stand in the place of ops: "silu=relu,maxpool=avgpool", or all"""
    output: str | None = None
    """of a network with several outputs: the index or name of the logits"""
    steps: str = "none"
    """reductions, such as "cull S1; thin S2+S3; channels 0.5; fmap 0.5", "only S2", "thin all", "stem linear" """
    json: bool = False
    """print JSON"""

    @property
    def title(self) -> str:
        return self.network + (f", {self.steps}" if self.steps != "none" else "")

    def subject(self, *, keeps_smooth: bool = False) -> Subject:
        from parelu import api

        shape = api.parse_input(self.input) if self.input else None
        options = self.steps, self.replace, self.output
        return api.subject(self.network, shape, self.classes, *options, keeps_smooth=keeps_smooth)


@dataclasses.dataclass(frozen=True)
class Inspect(_Network):
    """Count a network's ReLUs, MACs and depth, and print its fixed-point plan for private inference, and what a query
    will take.

    A network's name gets fresh weights: its ranges then come from noise, a candidate's from its training data.

    parelu inspect resnet18 --input 3x32x32 --classes 100 --steps "cull S1; thin S2+S3+S4; channels 0.5" --json

    parelu inspect runs/quickstart/candidates/teacher
    """

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.inspection import inspection

        subject, queries = self.subject(), self.queries("loopback", *api.SHOWN)
        lowered, unsupported = api.program_of(subject, queries.options.offline)
        is_named = subject.candidate is None and self.steps == "none"
        way = None
        if is_named and (unsupported or subject.has_cheaper):
            way = api.way_out(self.subject(keeps_smooth=True).spec, self.replace)
        told = (way, self.command(way, api.is_trained(self.network))) if way else None
        network = subject.spec, self.title, subject.plan
        print(inspection(*network, lowered, unsupported, told, queries, as_json=self.json))

    def command(self, way: WayOut, is_trained: bool) -> str:
        """What replaces, and finetunes and reduces this network where it is to be trained."""
        given = {"model": self.network, "input": self.input, "output": self.output, "replace": way.replace}
        options = [f"--{name} {shlex.quote(value)}" for name, value in given.items() if value]
        weights = [] if is_trained else ["--weights WEIGHTS"]
        return " ".join(["parelu reduce snl", *options, *weights, "--data DATA --budget 0.1"])


@dataclasses.dataclass(frozen=True)
class Design(Predicting):
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
        from parelu import api
        from parelu.report.designs import designs_text

        order = self.order
        if not order:
            if self.run is None:
                raise UserError('give --order "S3>S2>S4>S1", or --run with a run of deepreduce that measured it')
            order = api.measured_order(api.Run.open(self.run))
        specs = api.designs(self.base, order, self.m, self.by, api.parse_input(self.input), self.classes)
        print(designs_text(specs, self.queries(), as_json=self.json))


@dataclasses.dataclass(frozen=True)
class Fuse(_Network):
    """Say what merging linear layers makes of a network: layers, depth, MACs, homomorphic products, rounds, seconds.

    bench and serve merge by themselves what can be merged exactly. The rest needs --finetune.

    parelu fuse resnet18 --steps "cull S1+S4; thin S2+S3"

    parelu fuse runs/quickstart/candidates/cull-S1S4_thin-S2S3 --finetune 3
    """

    finetune: int | None = None
    """epochs: merge layers that pad too, and train what comes out, as CANDIDATE-merged in the candidate's run"""

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.fusion import fusion

        subject = self.subject()
        print(fusion(subject.spec, self.title, subject.plan, self.queries(), as_json=self.json))
        if self.finetune is not None:
            folder = Path(self.network)
            if folder.parent.name != "candidates":
                raise UserError(f"--finetune trains in a run; {self.network} is not RUN/candidates/NAME")
            run = api.Run.open(folder.parent.parent)
            with api.TerminalProgress() as progress:
                found = api.merge(run, folder.name, self.finetune, progress)
            before = run.candidate(folder.name).trained.validation_accuracy
            say(
                f"validation accuracy {before:.1f} % before, {found.trained.validation_accuracy:.1f} % merged "
                f"→ {folder}-merged"
            )


@dataclasses.dataclass(frozen=True)
class Frontier(Predicting):
    """Print the frontier of one or more runs: accuracy against ReLUs, or against another cost, and what queries take.

    parelu frontier runs/quickstart/seed0

    parelu frontier runs/quickstart/seed0 --x latency
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    x: Literal["relus", "macs", "depth", "latency", "bytes", "predicted"] = "relus"
    """the cost; latency and bytes are online, of the networks that parelu bench measured; predicted is online too, over
    the link, lan if that is left out"""
    json: bool = False
    """print JSON"""

    def __call__(self) -> None:
        from parelu.report import tables

        runs, queries = open_runs(self.runs, "frontier"), self.queries()
        if self.json:
            rows = tables.frontier_rows(tables.records_of(runs, queries), self.x)
            print(json.dumps([row.to_json() for row in rows], indent=1))
        else:
            print_frontier(runs, self.x, queries)


@dataclasses.dataclass(frozen=True)
class Report(Predicting):
    """Write one HTML page about one or more runs: frontier, candidates, seconds, stages, curves, configuration.

    parelu report runs/quickstart/seed0
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    """the page; report.html in the first run's folder if left out"""

    def __call__(self) -> None:
        runs = open_runs(self.runs, "report")
        save_report(runs, self.out or self.runs[0] / "report.html", self.queries())


def open_runs(paths: tuple[Path, ...], command: str) -> list[Run]:
    """The runs that a command was given, each once; of a recipe's folder, all that are in it."""
    from parelu import api

    if not paths:
        raise UserError(f"no run folder given; name one or more, for example parelu {command} runs/quickstart")
    folders = [folder for path in paths for folder in run_folders(path) or (path,)]
    return [api.Run.open(path) for path in {folder.resolve(): folder for folder in folders}.values()]


def run_folders(path: Path) -> tuple[Path, ...]:
    """The folder itself, or those below it of a recipe's seeds, and of its networks' seeds; none where it has none."""
    if (path / "config.json").exists():
        return (path,)
    return tuple(sorted(config.parent for depth in ("*", "*/*") for config in path.glob(f"{depth}/config.json")))


def print_frontier(runs: list[Run], x: Axis = "relus", queries: Queries | None = None) -> None:
    """The table of a frontier, on standard output. queries: that are predicted; left out, as `bench` runs them."""
    from parelu import api
    from parelu.report import tables

    queries = queries or api.Queries.of()
    print(tables.frontier_text(tables.records_of(runs, queries), x, queries))


def save_report(runs: list[Run], path: Path, queries: Queries | None = None) -> None:
    """Write the page of some runs, and say where it is."""
    from parelu.report.page import write_report

    say(f"report: {write_report(runs, path, queries)}")


COMMANDS: dict[str, type[Any]] = {
    "inspect": Inspect,
    "design": Design,
    "fuse": Fuse,
    "frontier": Frontier,
    "report": Report,
}
