"""From scores to masks within a budget, and the schedule of the share that is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from parelu.masks.charges import Charges

Granularity = Literal["pixel", "channel", "layer"]
LEVELS = 256  # of scores, between which the worth of a set of sites is interpolated


def project(
    scores: Mapping[str, Tensor],
    budget: int,
    granularity: Granularity = "pixel",
    charges: Charges | None = None,
    allowed: int | None = None,
) -> dict[str, Tensor]:
    """Site → bool mask of the highest scores; scores: site → (C, H, W), −inf where no ReLU may stand.

    "pixel" keeps exactly `budget` positions, of equal scores the first; smaller budgets lie inside larger ones.
    "channel" and "layer" take whole channels or sites, those with the highest mean first, as long as they fit.

    charges: what positions and sites take of a budget that is not counted in ReLUs, nor holds what is fixed; a score is
    then what a position is worth for each unit that it takes. "pixel" keeps the longest prefix that fits, of the sites
    that are worth their rounds (`worthwhile`), and goes on in others where these are full; without rounds smaller
    budgets lie inside larger ones here too.

    allowed: positions where a ReLU may stand, where that is known: else it is read off the device.

    Raises:
        ValueError: fewer positions than a budget of ReLUs may hold one.
    """
    if charges is None:
        return _pixels(scores, budget, allowed) if granularity == "pixel" else _groups(scores, budget, granularity)
    chosen = worthwhile(scores, budget, charges)
    open = {n: s if n in chosen else torch.full_like(s, -torch.inf) for n, s in scores.items()}
    if granularity != "pixel":
        return _groups(open, budget, granularity, charges)
    found = [_prefix(each, budget, charges) for each in (open, scores)]
    masks = max(found, key=lambda masks: worth(scores, masks, charges))
    closed = {name: score for name, score in scores.items() if not masks[name].any()}
    left = budget - charges.of({name: int(mask.count_nonzero()) for name, mask in masks.items()})
    is_full = all(torch.equal(masks[name], scores[name] > -torch.inf) for name in scores.keys() - closed.keys())
    more = project(closed, left, charges=charges) if closed and is_full and len(closed) < len(scores) else {}
    return masks | more


def _pixels(scores: Mapping[str, Tensor], budget: int, allowed: int | None) -> dict[str, Tensor]:
    flat = torch.cat([score.flatten() for score in scores.values()])
    allowed = int((flat > -torch.inf).count_nonzero()) if allowed is None else allowed
    if allowed < budget:
        raise ValueError(f"{budget} ReLUs do not fit into {allowed} positions")
    return _first(scores, torch.argsort(flat, descending=True, stable=True)[:budget])


def _first(scores: Mapping[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    """Masks of positions by their numbers, all sites in a row."""
    sizes = [score.numel() for score in scores.values()]
    mask = torch.zeros(sum(sizes), dtype=torch.bool, device=kept.device)
    mask[kept] = True
    return {name: part.view(scores[name].shape) for name, part in zip(scores, mask.split(sizes), strict=True)}


def _prefix(scores: Mapping[str, Tensor], budget: int, charges: Charges) -> dict[str, Tensor]:
    """The longest prefix by score that fits; the first position of a site takes its round too."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    order = torch.argsort(flat, descending=True, stable=True)[: int((flat > -torch.inf).count_nonzero())]
    sizes = torch.tensor([score.numel() for score in scores.values()], device=flat.device)
    sites = torch.arange(len(scores), device=flat.device).repeat_interleave(sizes)[order]
    taken = torch.tensor([charges.relu[name] for name in scores], device=flat.device)[sites]
    for number, name in enumerate(scores):
        opens = (sites == number).nonzero()[:1, 0]
        taken[opens] += charges.site[name]
    return _first(scores, order[: int((taken.cumsum(0) <= budget).count_nonzero())])


def _groups(
    scores: Mapping[str, Tensor], budget: int, granularity: Granularity, charges: Charges | None = None
) -> dict[str, Tensor]:
    masks = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    groups = []
    for name, score in scores.items():
        pairs = zip(score, masks[name], strict=True) if granularity == "channel" else [(score, masks[name])]
        groups += [(name, *pair) for pair in pairs]
    means = [float(score[score > -torch.inf].mean().nan_to_num(-math.inf)) for _, score, _ in groups]
    for number in sorted(range(len(groups)), key=lambda number: -means[number]):
        name, score, mask = groups[number]
        may = score > -torch.inf
        taken = int(may.count_nonzero())
        if charges is not None and taken:
            taken = taken * charges.relu[name] + (0 if masks[name].any() else charges.site[name])
        if taken <= budget:
            mask.copy_(may)
            budget -= taken
    return masks


def worth(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], charges: Charges) -> float:
    """Sum over the kept positions of score × charge; a score below 0 is worth nothing."""
    return sum(
        charges.relu[name] * float(score[masks[name]].clamp(min=0).sum(dtype=torch.float64))
        for name, score in scores.items()
    )


def worthwhile(scores: Mapping[str, Tensor], budget: int, charges: Charges) -> set[str]:
    """The sites to keep ReLUs in: one after another the one that raises the worth of all most, while one does.

    The worth of some sites is that of their highest scores, as many as the budget holds beside the sites' rounds.
    """
    if not any(charges.site[name] for name in scores):
        return set(scores)
    if not any(bool((score > 0).any()) for score in scores.values()):  # nothing is known: all alike
        scores = {name: torch.where(score > -torch.inf, 1.0, score) for name, score in scores.items()}
    taken, worths = _levels(scores, charges)
    rounds = torch.tensor([charges.site[name] for name in scores], dtype=torch.float64)
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < len(scores):
        room = budget - rounds[chosen].sum() - rounds
        found = _within(taken[chosen].sum(0) + taken, worths[chosen].sum(0) + worths, room)
        found[chosen] = -1.0
        if float(found.max()) <= best:
            break
        best = float(found.max())
        chosen.append(int(found.argmax()))
    names = list(scores)
    return {names[number] for number in chosen}


def _levels(scores: Mapping[str, Tensor], charges: Charges) -> tuple[Tensor, Tensor]:
    """What the positions of each site above falling levels of score take, and are worth; both (sites, levels + 1)."""
    allowed = {name: score[score > -torch.inf].double().cpu() for name, score in scores.items()}
    every = torch.cat([each.clamp(min=0) for each in allowed.values()]).sort(descending=True).values
    at = torch.linspace(0, max(len(every) - 1, 0), min(LEVELS, len(every))).long()
    levels = every[at].unique().flip(0)
    taken, worths = [], []
    for name, each in allowed.items():
        falling = each.sort(descending=True).values
        sums = torch.cat([falling.new_zeros(1), falling.clamp(min=0).cumsum(0)])
        counts = torch.searchsorted(-falling, -levels, right=True)
        counts = torch.cat([counts.new_zeros(1), counts])
        taken.append(charges.relu[name] * counts.double())
        worths.append(charges.relu[name] * sums[counts])
    return torch.stack(taken), torch.stack(worths)


def _within(taken: Tensor, worths: Tensor, room: Tensor) -> Tensor:
    """(sites,): the worth at which each row's charge fills its room, −1 where there is none; rows rise."""
    last = (taken <= room[:, None]).sum(1, keepdim=True) - 1
    after = (last + 1).clamp(max=taken.shape[1] - 1)
    last = last.clamp(min=0)
    low, high, least, most = (x.gather(1, at) for x in (taken, worths) for at in (last, after))
    share = ((room[:, None] - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    found = least + share * (most - least)
    return torch.where(room > 0, found[:, 0], -1.0)


def kept_share(progress: float, target: float, reached: float = 0.6) -> float:
    """The share of a budget's charge kept where `progress`, in [0, 1], of all steps are done.

    It falls from 1 to `target` with the 1.5th power of a cosine and stays there from `reached` on (ReLUPruner).
    """
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress / reached)))
    return target + (1 - target) * left**1.5
