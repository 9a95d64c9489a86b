"""The language of stage-level reductions: "cull S1; thin S2+S3+S4; channels 0.5; fmap 0.5".

    none                    every ReLU stays
    cull S1+S4              the ReLUs of these stages go
    thin S2+S3              alternate ReLUs of these stages go; `thin all` for every stage
    thin S2+S3 one block    and only the first block of each keeps its own
    only S2                 the ReLUs of all other stages go; `only stem` too
    one block               only the first block of each stage keeps its ReLUs
    stem linear             the stem's ReLU goes
    without final ReLU      the last one goes (after the blocks of a pre-activation network)
    channels 0.5            half the channels everywhere (α)
    fmap 0.5                half the side of every feature map (ρ)
    reuse 4                 ReLU-reuse in the stages that the other steps leave their ReLUs: after the second
                            convolution of each block, which changes for it, only a quarter of the channels keeps
                            them; "reuse 4 in alternate layers" says the same

Any cull, thin or only step drops the stem's ReLU too, as the papers do (DeepReDuce, section 2.2). What stands in
parentheses is a remark.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network.count import shared_skeleton
from parelu.network.plan import Plan
from parelu.network.sites import Network, Site
from parelu.network.spec import Spec

KNOWN = (
    "none, cull S1, thin S2+S3, thin all, thin S2 one block, only S2, only stem, one block, stem linear, "
    "without final ReLU, channels 0.5, fmap 0.5, reuse 4"
)
_RELU_STEP = re.compile(r"(cull|thin|only) (\S+)( one block)?")
_SCALE_STEP = re.compile(r"(channels|fmap) (\d*\.?\d+)")
_REUSE_STEP = re.compile(r"reuse (\d+)( in alternate layers)?")


@dataclasses.dataclass(frozen=True)
class Reduced:
    """The outcome of steps: the architecture, possibly scaled, and which sites keep their ReLUs."""

    spec: Spec
    plan: Plan


def stages_of(network: Network) -> tuple[str, ...]:
    """The stages of a network without its stem, in order."""
    return tuple(dict.fromkeys(site.stage for site in network.sites.values() if site.stage != "stem"))


def apply_steps(spec: Spec, text: str) -> Reduced:
    """Apply steps, separated by ";", in order; raises `UserError` for an unknown step or stage."""
    steps = parsed(text)
    for step in steps:
        match = _SCALE_STEP.fullmatch(step)
        if match:
            factor = float(match[2])
            spec = spec.scale_channels(factor) if match[1] == "channels" else spec.scale_fmap(factor)
    network = shared_skeleton(spec)
    kept = list(network.sites.values())
    for step in steps:
        kept = _keeper(step, network)(kept)
    names = {site.name for site in kept}
    masks = {n: torch.full(s.shape, n in names, dtype=torch.bool) for n, s in network.sites.items()}
    factors = [int(match[1]) for match in map(_REUSE_STEP.fullmatch, steps) if match]
    if factors:
        spec = _reuse(spec, factors, [site for site in kept if site.after_addition], masks)
    return Reduced(spec, Plan.from_masks(masks))


def parsed(text: str) -> list[str]:
    """The steps of a text, without remarks."""
    return [" ".join(step.split()) for step in re.sub(r"\([^()]*\)", "", text).split(";") if step.strip()]


def stage_order(text: str, stages: Sequence[str]) -> list[str]:
    """Stages from "S3>S2>S4>S1" or "S3,S2,S4,S1", most critical first; raises `UserError` unless each is there once."""
    names = [name.strip() for name in text.replace(",", ">").split(">")]
    if sorted(names) != sorted(stages):
        raise UserError(
            f"order {text!r} does not have each stage once; write all of {', '.join(stages)}, the most "
            f'critical first: "{">".join(reversed(stages))}"'
        )
    return names


def _reuse(spec: Spec, factors: Sequence[int], sites: Sequence[Site], masks: Mapping[str, Tensor]) -> Spec:
    """The architecture with ReLU-reuse where these sites are, of whose masks the last channels stay."""
    if len(factors) > 1:
        raise UserError("ReLU-reuse cannot be applied more than once; leave the step out")
    spec = spec.with_reuse(factors[0], {site.stage for site in sites})
    for site in sites:
        masks[site.name][: site.shape[0] - site.shape[0] // factors[0]] = False
    return spec


def _keeper(step: str, network: Network) -> Callable[[list[Site]], list[Site]]:
    """What a step does to the sites that keep their ReLUs."""
    if step == "none" or _SCALE_STEP.fullmatch(step) or _REUSE_STEP.fullmatch(step):
        return lambda kept: kept
    if step == "stem linear":
        return lambda kept: [site for site in kept if site.stage != "stem"]
    if step == "without final ReLU":
        last = list(network.sites.values())[-1].activation
        return lambda kept: [site for site in kept if site.activation != last]
    if step == "one block":
        return lambda kept: _first_blocks(kept, stages_of(network))
    match = _RELU_STEP.fullmatch(step)
    if match is None or (match[3] and match[1] != "thin"):
        raise UserError(f"unknown step {step!r}; known are {KNOWN}")
    verb, stages = match[1], _stages(match[2], network, stem=match[1] == "only")
    if verb == "cull":
        return lambda kept: [site for site in kept if site.stage not in ("stem", *stages)]
    if verb == "only":
        return lambda kept: [site for site in kept if site.stage in stages]

    def thin(kept: list[Site]) -> list[Site]:
        dropped = set(_alternate(site for site in network.sites.values() if site.stage in stages))
        kept = [site for site in kept if site.stage != "stem" and site.name not in dropped]
        return _first_blocks(kept, stages) if match[3] else kept

    return thin


def _stages(text: str, network: Network, *, stem: bool) -> tuple[str, ...]:
    known = stages_of(network)
    if text == "all":
        return known
    allowed = ("stem", *known) if stem else known
    for stage in text.split("+"):
        if stage not in allowed:
            raise UserError(f"unknown stage {stage!r}; the network has {', '.join(allowed)}, or all")
    return tuple(text.split("+"))


def _alternate(sites: Iterable[Site]) -> list[str]:
    """Names of the sites that thinning drops.

    In a residual stage the sites inside the blocks go and those after the additions stay, so that the
    convolutions of a block become neighbours; of a block without an addition before a site (the first of a
    pre-activation network) the first site stays. Elsewhere every other site goes, from the first on. The two sites of
    a ReLU6 stay or go together.
    """
    by_stage: dict[str, list[Site]] = {}
    for site in sites:
        by_stage.setdefault(site.stage, []).append(site)
    dropped = []
    for stage in by_stage.values():
        if not any(site.after_addition for site in stage):
            gone = list(dict.fromkeys(site.activation for site in stage))[::2]
            dropped += [site for site in stage if site.activation in gone]
            continue
        for _, sites_of_block in itertools.groupby(stage, lambda site: site.block):
            block = list(sites_of_block)
            staying = [site for site in block if site.after_addition]
            staying = staying or [site for site in block if site.activation == block[0].activation]
            dropped += [site for site in block if site not in staying]
    return [site.name for site in dropped]


def _first_blocks(kept: list[Site], stages: tuple[str, ...]) -> list[Site]:
    first = {stage: min((s.block for s in kept if s.stage == stage), default=0) for stage in stages}
    return [site for site in kept if site.stage not in stages or site.block == first[site.stage]]
