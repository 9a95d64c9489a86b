"""What a query of a network will take, over one link or several: what commands and reports show before any is run."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from parelu.errors import UserError
from parelu.fusion.fuse import Cost
from parelu.fusion.packing import seconds
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.private.cost import calibration
from parelu.private.cost.calibration import Calibration, warning_of
from parelu.private.cost.predict import Predicted, Query, prediction, query
from parelu.private.engines.base import Options, chosen
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.outline import outline, planned
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import ring_for
from parelu.private.transport.link import link_of
from parelu.runs import measurement
from parelu.runs.foretold import Kept, identity

SHOWN = ("lan", "wan")  # links, where none is given


@dataclasses.dataclass(frozen=True)
class Queries:
    """How the queries run that are predicted. options: but for the link."""

    options: Options
    links: tuple[str, ...]
    calibration: Calibration = dataclasses.field(repr=False)

    @classmethod
    def of(
        cls,
        link: str | None = None,
        relu: str | None = None,
        offline: str | None = None,
        shown: Sequence[str] = SHOWN,
    ) -> Queries:
        """As `bench` runs them, unless something else is given; shown: the links where none is.

        Raises UserError for a link, ReLU protocol or offline mode that there is not.
        """
        given = {name: value for name, value in (("relu", relu), ("offline", offline)) if value is not None}
        options = dataclasses.replace(Options(), **given)  # pyright: ignore[reportArgumentType]
        chosen(["delphi"], options)
        links = tuple(shown) if link is None else (str(link_of(link)),)
        with warnings.catch_warnings(action="ignore"):  # `by` says it
            return cls(options, links, calibration.chosen())

    @property
    def how(self) -> str:
        return f"ReLU {self.options.relu}, offline {self.options.offline}"

    @property
    def by(self) -> str:
        """Whose seconds they are."""
        return warning_of(self.calibration) or f"seconds are this machine's, as measured {self.calibration.made}"

    def program(self, program: Program, lowered: Lowered | None = None) -> Predicted:
        """lowered: as `predict` takes it."""
        return self._over_links(lambda: query(program, self.options, lowered))

    def plan(self, spec: Spec, plan: Plan) -> Predicted:
        """Of a network with any weights."""
        return self._over_links(lambda: _of_plan(_Planned(spec, plan.digest(), plan), self.options))

    def network(self, network: Network, cost: Cost = seconds) -> Predicted:
        """Of one that follows its plan, on meta tensors. cost: what fusion weighs."""
        return self._over_links(lambda: _of_network(network, self.options, cost))

    def candidate(self, folder: Path) -> Predicted:
        """By its own program where that is kept beside it; else as `plan`. What is found is kept beside it too."""
        ring = ring_for(self.options.offline)
        program = measurement.program_folder(folder, ring) / f"{measurement.PROGRAM}.json"
        known = Kept.read(folder, identity(folder, program, self.options, self._calibration_digest))
        missing = [link for link in self.links if link not in known.by_link]
        if missing and not known.why:
            try:
                found = dataclasses.replace(self, links=tuple(missing))._candidate(folder)
            except UserError as error:  # of a damaged file
                return Predicted(why=str(error))
            known = known.adding(found)
            known.write(folder)
        return Predicted({link: known.by_link[link] for link in self.links if not known.why}, known.why)

    def _candidate(self, folder: Path) -> Predicted:
        if kept := measurement.kept(folder, ring_for(self.options.offline)):
            return self.program(kept.program, kept)
        candidate = Candidate.load(folder)
        return self.plan(candidate.spec, candidate.plan)

    @functools.cached_property
    def _calibration_digest(self) -> str:
        return str(self.calibration.to_json()["sha256"])

    def _over_links(self, ask: Callable[[], Query]) -> Predicted:
        try:
            asked = ask()
            links = {link: dataclasses.replace(asked, link=link_of(link)) for link in self.links}
            return Predicted({link: prediction(each, self.calibration) for link, each in links.items()})
        except UserError as error:
            first, *others = str(error).splitlines()
            return Predicted(why=first + (f" (and {len(others)} more)" if others else ""))


@dataclasses.dataclass(frozen=True)
class _Planned:
    spec: Spec
    digest: str
    plan: Plan = dataclasses.field(compare=False, repr=False)


@functools.lru_cache(512)
def _of_plan(asked: _Planned, options: Options) -> Query:
    return query(planned(asked.spec, asked.plan, ring=ring_for(options.offline)), options)


def _of_network(network: Network, options: Options, cost: Cost) -> Query:
    return query(outline(network, cost=cost, ring=ring_for(options.offline)), options)
