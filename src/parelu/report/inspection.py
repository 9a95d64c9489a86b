"""What `parelu inspect` prints: a network's counts per stage, and a bar per site."""

from __future__ import annotations

import json

from parelu.count import Counts, count, skeleton
from parelu.models import Spec, spec_of
from parelu.sites import Network
from parelu.steps import reduce

_BAR = 32


def inspection(name: str, input: tuple[int, int, int], classes: int, steps: str, *, as_json: bool) -> str:
    """The counts of a network after steps, as JSON or as text.

    Raises:
        UserError: unknown network, step or stage, or an op without a place in a private network.
    """
    reduced = reduce(spec_of(name, input, classes), steps)
    network = skeleton(reduced.spec)
    reduced.plan.apply(network)
    counts = count(network)
    return json.dumps(counts.to_json(), indent=1) if as_json else _text(name, reduced.spec, steps, network, counts)


def _text(name: str, spec: Spec, steps: str, network: Network, counts: Counts) -> str:
    shape = "x".join(map(str, spec.input))
    title = f"{name}, input {shape}, {spec.classes} classes" + (f", {steps}" if steps != "none" else "")
    totals = [
        ("ReLUs", f"{counts.relus:,}   ({counts.relus_without_stem:,} without the stem)"),
        ("squares", f"{counts.squares:,}"),
        ("MACs", f"{counts.macs / 1e6:,.1f} M   (FLOPs with batch-norm {counts.flops / 1e6:,.1f} M)"),
        ("parameters", f"{counts.params:,}"),
        ("depth", f"{counts.depth} convolutions"),
    ]
    lines = [title, ""] + [f"  {label:<11}{value}" for label, value in totals]
    lines += ["", f"  {'stage':<8}{'ReLUs':>12}{'share':>9}{'MACs':>14}"]
    for stage, of_stage in counts.stages.items():
        share = of_stage.relus / counts.relus if counts.relus else 0
        lines.append(f"  {stage:<8}{of_stage.relus:>12,}{share:>8.1%}{of_stage.macs / 1e6:>12,.1f} M")
    largest = max((site.mask.numel() for site in network.sites.values()), default=1)
    wide = max((len(site) for site in network.sites), default=0)
    lines += ["", "  kept █ of all ░ ReLUs of each site"]
    for name, site in network.sites.items():
        full, kept = (max(1, round(n / largest * _BAR)) if n else 0 for n in (site.mask.numel(), site.relus))
        bar = "█" * kept + "░" * (full - kept)
        lines.append(f"  {site.stage:<5} {name:<{wide}} {bar:<{_BAR}} {site.relus:>9,}")
    return "\n".join(lines + [f"  note: {note}" for note in network.notes])
