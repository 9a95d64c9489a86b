"""What of a network has no secure form, what may stand in its place, and what the network costs then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from parelu.network.canonical import replacements
from parelu.network.count import Counts, count
from parelu.network.instrument import instrument
from parelu.network.ops import Unsupported
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.private.lowering.refusals import problems


@dataclass(frozen=True)
class WayOut:
    """Replacements that a network needs.

    Attributes:
        replace: as `--replace` takes it.
        counts: with these in place.
        left: what has no secure form even then.
    """

    replace: str
    counts: Counts
    left: tuple[Unsupported, ...]


def way_out(spec: Spec, given: str = "") -> WayOut | None:
    """The replacements that the obstacles' remedies name, as many as help; None where none does.

    spec: as it was read with its smooth functions kept, for their replacements to be among the way's. given: those that
    were made already, which are among them too.
    """

    def named(network: Network) -> dict[str, str]:
        return dict(pair for problem in problems(network) for pair in problem.replacements)

    kinds: dict[str, str] = {}
    network = _replaced(spec, kinds)
    while more := {kind: other for kind, other in named(network).items() if kind not in kinds}:
        kinds |= more
        network = _replaced(spec, kinds)
    for kind in named(network).keys() & kinds:  # it is named, and did not help everywhere
        fewer = {other: instead for other, instead in kinds.items() if other != kind}
        without = _replaced(spec, fewer)
        if problems(without) == problems(network):
            kinds, network = fewer, without
    if not kinds:
        return None
    text = replacements.written(replacements.parsed(given) | kinds)
    return WayOut(text, count(network, skips=True), problems(network))


def grouped(unsupported: Sequence[Unsupported]) -> list[str]:
    """A line for each kind of obstacle: the first, and how many more there are."""
    kinds: dict[tuple[str, str], list[Unsupported]] = {}
    for problem in unsupported:
        kinds.setdefault((problem.op, problem.remedy), []).append(problem)
    return [f"{first}" + (f" ({len(more)} more like it)" if more else "") for first, *more in kinds.values()]


def _replaced(spec: Spec, kinds: Mapping[str, str]) -> Network:
    """Without numbers in its weights."""
    with torch.device("meta"):
        module = spec.module()
    return instrument(module, spec.input, kinds)
