"""What is looked at without training: a network or a candidate, its program, and designs from a run's measurements."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from parelu.errors import UserError
from parelu.fusion.fuse import fuse
from parelu.methods import deepreshape
from parelu.models import external
from parelu.network.candidate import Candidate
from parelu.network.canonical import replacements
from parelu.network.count import skeleton
from parelu.network.ops import Unsupported
from parelu.network.plan import Plan
from parelu.network.shapes import ShapesAlone
from parelu.network.spec import Spec, spec_of
from parelu.network.steps import apply_steps
from parelu.private.fresh import sketch
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.refusals import problems, too_large
from parelu.private.offline.mode import DEFAULT, ring_for
from parelu.runs import measurement
from parelu.runs.folder import Run

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network that a command looks at. folder, candidate: where it is a trained one."""

    spec: Spec
    plan: Plan
    candidate: Candidate | None = None
    folder: Path | None = None

    @property
    def has_cheaper(self) -> bool:
        """Whether reading it noted a replacement that costs less."""
        return "--replace" in getattr(self.spec, "notes", "")


def named(
    name: str,
    input: Shape | None,
    classes: int | None,
    replace: str = "",
    output: int | str | None = None,
    *,
    keeps_smooth: bool = False,
) -> Spec:
    """The network of a name; input and classes that are left out are a file's own, else 3×32×32 and 10."""
    shape = input or external.input_of(name, output) or (3, 32, 32)
    number = classes or external.classes_of(name, shape, output) or 10
    instead = replacements.parsed(replace)
    if external.is_external(name):
        found = external.read_name(name, shape, number, None, output, instead, keeps_smooth=keeps_smooth)
        return found.spec
    spec = spec_of(name, shape, number)
    return external.read(spec.module(), shape, number, name, replace=instead).spec if instead else spec


def subject(
    network: str,
    input: Shape | None,
    classes: int | None,
    steps: str = "none",
    replace: str = "",
    output: int | str | None = None,
    *,
    keeps_smooth: bool = False,
) -> Subject:
    """A candidate's folder, or a network's name with steps, such as "cull S1; thin S2+S3".

    keeps_smooth: whether its smooth functions stay as they are (`instrument`).
    """
    folder = Path(network)
    if (folder / "candidate.json").exists():
        candidate = Candidate.load(folder)
        return Subject(candidate.spec, candidate.plan, candidate, folder)
    spec = named(network, input, classes, replace, output, keeps_smooth=keeps_smooth)
    reduced = apply_steps(spec, steps)
    return Subject(reduced.spec, reduced.plan)


def program_of(subject: Subject, offline: str = DEFAULT) -> tuple[Lowered | None, tuple[Unsupported, ...]]:
    """The fixed-point program of a network, for an offline mode, or the ops that have no secure lowering.

    An untrained one gets fresh weights and ranges from noise.
    """
    network = skeleton(subject.spec)
    subject.plan.apply(network)
    if unsupported := problems(network):
        return None, unsupported
    with ShapesAlone():
        large = too_large(fuse(network))
    if large:
        return None, (large,)
    if subject.candidate and subject.folder:
        return measurement.lowered(subject.folder, subject.candidate, ring_for(offline)), ()
    return sketch(subject.spec, subject.plan, ring_for(offline)), ()


def designs(
    base: str, order: str, m: int, by: Literal["width", "depth"], input_shape: Shape, classes: int
) -> list[tuple[str, Spec]]:
    """Name → spec of the networks that ReLU equalisation makes of a base ResNet (DeepReShape, Algorithm 1)."""
    names = deepreshape.designs(base, order, m, by)
    return [(name, spec_of(name, input_shape, classes)) for name in names]


def measured_order(run: Run) -> str:
    """The order of criticality that a run of deepreduce or deepreshape measured, the most critical stage first."""
    record = run.records().get("criticality")
    if record is None:
        raise UserError(f"{run.path} has no criticality; give a run of `parelu reduce deepreduce`, or --order")
    return ">".join(reversed(record["order"]))
