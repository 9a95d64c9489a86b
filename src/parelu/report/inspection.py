"""What `parelu inspect` prints: a network's counts per stage, a bar per site, and its plan for private inference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from parelu.network.count import STEM, Counts, count, skeleton
from parelu.network.ops import Unsupported
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.private.lowering.lower import WEIGHT_BITS, Lowered
from parelu.report.predicted import predicted_json, predicted_lines
from parelu.runs.obstacles import WayOut, grouped
from parelu.runs.predictions import Queries

_BAR = 32


def inspection(
    spec: Spec,
    title: str,
    plan: Plan,
    lowered: Lowered | None,
    unsupported: Sequence[Unsupported],
    way: tuple[WayOut, str] | None = None,
    queries: Queries | None = None,
    *,
    as_json: bool,
) -> str:
    """The counts of a network that follows a plan and its fixed-point program, as JSON or as text.

    lowered: None where ops are without a secure lowering; unsupported: these, which count nothing; way: what may stand
    in their place, or costs less, and the command that does that; queries: that are predicted of the program.
    """
    network = skeleton(spec)
    plan.apply(network)
    counts = count(network, skips=True)
    found = queries.program(lowered.program, lowered) if queries and lowered else None
    if as_json:
        fixed = fixed_point(lowered) if lowered else None
        value = counts.to_json() | {
            "shares": counts.shares(),
            "private": fixed,
            "unsupported": [str(problem) for problem in unsupported],
            "predicted": predicted_json(found, queries) if queries and found else None,
        }
        return json.dumps(value | (_way_json(way[0]) if way else {}), indent=1)
    lines = [_text(title, spec, network, counts)]
    if lowered:
        lines += ["", *_fixed_point_text(lowered)]
    if queries and found:
        lines += ["", *predicted_lines(found, queries)]
    if unsupported:
        lines += ["", "  without a secure form, so that this network cannot be reduced or served as it is:"]
        lines += [f"  {line}" for line in grouped(unsupported)]
    if way:
        lines += ["", *_way_text(*way)]
    return "\n".join(lines)


def _way_json(way: WayOut) -> dict[str, Any]:
    left = [str(problem) for problem in way.left]
    return {"replace": way.replace, "replaced": way.counts.to_json(), "left": left}


def _way_text(way: WayOut, command: str) -> list[str]:
    counts = way.counts
    compared = f"{counts.comparisons:,} comparisons, " if counts.comparisons else ""
    cost = f"{counts.relus:,} ReLUs, {compared}{counts.squares:,} squares"
    if way.left:
        rest = [f"  {line}" for line in grouped(way.left)]
        return [f"  with --replace {way.replace} it counts {cost}, and this is left:", *rest]
    return ["  a way, from trained weights:", f"  {command}", f"  which starts with {cost}"]


def fixed_point(lowered: Lowered) -> dict[str, Any]:
    """The fixed-point plan as JSON values."""
    program = lowered.program
    return {
        "ring_bits": program.ring.bits,
        "fraction_bits": program.fraction,
        "weight_bits": WEIGHT_BITS,
        "wrap_bound": lowered.wrap_bound,
        "lsb": 2.0**-program.fraction,
        "digest": program.digest,
        "sites": [
            {"site": r.layer, "kind": r.kind, "positions": r.elements, "largest": r.largest, "bits": r.bits}
            for r in lowered.ranges
            if r.kind != "truncate"
        ],
    }


def _fixed_point_text(lowered: Lowered) -> list[str]:
    program = lowered.program
    ring = f"ring Z_2^{program.ring.bits}"
    lines = [
        f"  private inference: {ring}, {program.fraction} fraction bits, weights of {WEIGHT_BITS} bits",
        f"  a truncation is off by at most 1 LSB, {2.0**-program.fraction:.6f}; any wraps in an inference with "
        f"probability ≤ {lowered.wrap_bound:.1e}",
        f"  program {program.digest}",
        "",
    ]
    shown = [r for r in lowered.ranges if r.kind != "truncate"]
    wide = max((len(r.layer) for r in shown), default=4)
    lines.append(f"  {'site':<{wide}} {'positions':>14} {'largest |x|':>12} {'bits m':>7}")
    for r in shown:
        bits = f"{r.bits:>7}" if r.kind == "relu" else f"{'—':>7}"
        what = "ReLUs  " if r.kind == "relu" else "squares"
        lines.append(f"  {r.layer:<{wide}} {r.elements:>6,} {what} {r.largest:>12.3f} {bits}")
    return lines


def _text(title: str, spec: Spec, network: Network, counts: Counts) -> str:
    shape = "x".join(map(str, spec.input))
    heading = f"{title}, input {shape}, {spec.classes} classes"
    totals = [
        ("ReLUs", f"{counts.relus:,}   ({counts.relus_without_stem:,} without the stem)"),
        *([("max-pools", f"{counts.comparisons:,} comparisons, each as a ReLU")] if counts.comparisons else []),
        ("squares", f"{counts.squares:,}"),
        ("MACs", f"{counts.macs / 1e6:,.1f} M   (FLOPs with batch-norm {counts.flops / 1e6:,.1f} M)"),
        ("parameters", f"{counts.params:,}"),
        ("depth", f"{counts.depth} convolutions"),
    ]
    lines = [heading, ""] + [f"  {label:<11}{value}" for label, value in totals]
    joined = counts.shares() if STEM in counts.stages else {}
    heading = f"{'with stem':>11}" if joined else ""
    lines += ["", f"  {'stage':<8}{'ReLUs':>12}{'share':>9}{heading}{'MACs':>14}"]
    for stage, of_stage in counts.stages.items():
        share = of_stage.relus / counts.relus if counts.relus else 0
        beside = f"{f'{joined[stage]:.2f}%' if stage in joined else '':>11}" if joined else ""
        lines.append(f"  {stage:<8}{of_stage.relus:>12,}{share:>9.1%}{beside}{of_stage.macs / 1e6:>12,.1f} M")
    largest = max((site.mask.numel() for site in network.sites.values()), default=1)
    wide = max((len(site) for site in network.sites), default=0)
    lines += ["", "  kept █ of all ░ ReLUs of each site"]
    for name, site in network.sites.items():
        full, kept = (max(1, round(n / largest * _BAR)) if n else 0 for n in (site.mask.numel(), site.relus))
        bar = "█" * kept + "░" * (full - kept)
        lines.append(f"  {site.stage:<5} {name:<{wide}} {bar:<{_BAR}} {site.relus:>9,}")
    return "\n".join([*lines, *notes_lines(network.notes)])


def notes_lines(notes: Iterable[str]) -> list[str]:
    """What reading a network changed, a line for each kind of change, with the first path that it was made at."""
    paths: dict[str, list[str]] = {}
    for note in notes:
        path, _, what = note.partition(": ")
        paths.setdefault(what or note, []).append(path)
    more = {what: f" ({len(found) - 1} more like it)" if len(found) > 1 else "" for what, found in paths.items()}
    return [f"  note: {found[0]}{f': {what}' if what != found[0] else ''}{more[what]}" for what, found in paths.items()]
