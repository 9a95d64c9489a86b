"""The command that measures private inference: bench."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from parelu.cli.inspection import open_runs, run_folders
from parelu.cli.output import say
from parelu.cli.own import Taken
from parelu.errors import UserError

if TYPE_CHECKING:
    from parelu.api import Asked, Dataset, Options, PrivateInference, Run, Workload

    ReluName = OfflineName = TruncationName = str


def resolve() -> None:
    """Make the types that are read off a registry, which costs a second: what an option may be."""
    from parelu import api

    names = {"ReluName": api.relus(), "OfflineName": api.modes(), "TruncationName": api.TRUNCATIONS}
    globals().update({name: Literal[tuple(known)] for name, known in names.items()})


@dataclasses.dataclass(frozen=True)
class Bench(Taken):
    """Measure private inference between two processes: seconds, bytes and rounds, per layer and in total.

    parelu bench resnet20 --keep 0.1 --images 16 --batch 8

    parelu bench runs/quickstart/candidates/teacher --relu full --link wan --json

    parelu bench runs/quickstart --all --relu full --link 8Gb/s,0.3ms

    parelu bench net.py:build --weights net.safetensors --data digits --input 1x8x8

    parelu bench resnet20 --keep 0.1 --engine delphi,spu-semi2k,spu-cheetah
    """

    network_or_candidate: tyro.conf.Positional[str]
    """a network's name, which gets fresh weights and a random mask unless it has --weights; a candidate's folder; or a
    run's or recipe's folder: then the networks on its frontier, with their accuracy in the ring over the test set, kept
    there for the report; what was measured so before is not measured again"""
    all: bool = False
    """of a run's folder: every candidate, not the frontier's alone"""
    keep: float = 1.0
    """of a network's name: the fraction of its ReLUs that stays"""
    input: str | None = None
    """of a network's name: channels x height x width; left out, 3x32x32, or what a file's or a data set's is"""
    classes: int | None = None
    """of a network's name with fresh weights; left out, 10, or what a file's are"""
    engine: str = "delphi"
    """one or several, with commas; of a run's folder delphi is always one. SPU's engines make their environment at the
    first call, a download of 1 GB; --relu and --offline are not theirs"""
    relu: ReluName = "sign"
    """sign: a sign under one-time pads and two oblivious transfers; full: all of the ReLU garbled, as in papers; fss: a
    distributed comparison function, 16 bytes online; without a dealer up to m = 16 bits, in time that doubles a bit"""
    offline: OfflineName = "hints"
    """hints: no third party; what a client gets once makes each query's linear layers cheap; seal: the same trust, by
    homomorphic encryption, nothing once; dealer: a trusted dealer in the server's process, for development"""
    link: str = "loopback"
    """shaped on this machine: bandwidth each way and round trip, as 8Gb/s,0.3ms, in kb/s, Mb/s or Gb/s and us, ms or s;
    or lan, 1Gb/s,0.5ms; wan, 100Mb/s,40ms; loopback, not shaped"""
    truncation: TruncationName = "local"
    """local: each party divides its share by itself, and what is 1 off tells a client of the weights; exact: inside the
    ReLUs of sign and full that read a truncation, where nothing is off"""
    images: int = 5
    """inferences, after one that warms up; the medians are reported"""
    batch: int = 1
    """images a query: they share its rounds"""
    queries: int = 1000
    """that the client says it will ask for: with hints, for few of them fewer come once, and each query costs more"""
    seed: int = 0
    """of fresh weights and the mask"""
    json: bool = False
    """print JSON: a list of rows"""

    def __call__(self) -> None:
        from parelu import api

        if not 1 <= self.images <= 10_000:
            raise UserError(f"--images {self.images}: give 1 to 10000")
        if not 1 <= self.batch <= self.images or self.images % self.batch:
            raise UserError(f"--batch {self.batch}: give a number that divides --images {self.images}")
        if self.queries < 1:
            raise UserError(f"--queries {self.queries}: give 1 or more")
        names = list(dict.fromkeys(name.strip() for name in self.engine.split(",")))
        link = str(api.link_of(self.link))
        options = api.Options(self.relu, self.offline, link, self.batch, self.truncation, self.queries)
        api.chosen(names, options)
        if folders := run_folders(Path(self.network_or_candidate)):
            others = [name for name in names if name != "delphi"]
            self._measure_runs(open_runs(folders, "bench"), api.Asked(options, others, self.images))
        elif self.all:
            raise UserError(f"--all is of a run's folder; {self.network_or_candidate} is none")
        else:
            self._measure(options, names)

    def _measure_runs(self, runs: list[Run], asked: Asked) -> None:
        """Print what was measured before what could not be."""
        from parelu.report.engines import engines_text
        from parelu.report.latency import measured_text
        from parelu.report.tables import records_of

        problem = None
        try:
            for run in runs:
                measure_run(run, asked, every=self.all)
        except UserError as error:
            problem = error
        records = records_of(runs)
        rows = [row.to_json() for record in records if record.private for row in record.private.rows]
        if rows:
            print(json.dumps(rows, indent=1) if self.json else measured_text(records) + engines_text(records))
        if problem:
            raise problem

    def _measure(self, options: Options, names: list[str]) -> None:
        from parelu.report.private import bench_text, side_by_side_text

        bench = self._bench()
        rows = [bench.run(options, name) for name in names]
        if self.json:
            print(json.dumps([row.to_json() for row in rows], indent=1))
        elif len(rows) == 1:
            print(bench_text(rows[0]))
        else:
            print(side_by_side_text(rows, bench.difference(rows)))

    def _bench(self) -> Workload:
        from parelu import api

        folder = Path(self.network_or_candidate)
        if (folder / "candidate.json").exists():
            return api.trained_workload(folder, self.images, self.offline, self.calibrate)
        if taken := self.take(self.network_or_candidate, self.input):
            return api.trained_workload(taken, self.images, self.offline, self.calibrate)
        shape = api.parse_input(self.input) if self.input else None
        spec = api.named(self.network_or_candidate, shape, self.classes, self.replace, self.output)
        return api.untrained_workload(spec, self.keep, self.images, self.seed, self.offline)


def measure_run(run: Run, asked: Asked, *, every: bool = False) -> Dataset:
    """Measure the networks on a run's frontier and the full one, or all candidates, and say what came out."""
    from parelu import api
    from parelu.report.latency import names_to_measure
    from parelu.report.private import duration

    names = names_to_measure(run.candidates(), every=every)

    def done(name: str, value: PrivateInference) -> None:
        online = value.row.costs.online
        assert online, "of delphi"
        ring = f"ring {value.ring.accuracy:.1f} %, float {value.ring.float_accuracy:.1f} %"
        say(f"  {names.index(name) + 1}/{len(names)} {name}: {ring}, {duration(online.seconds)} online")

    return api.measure_run(run, names, asked, done)


COMMANDS: dict[str, type[Any]] = {"bench": Bench}
