"""From scores to masks of exactly a budget, and the schedule of the share that is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["pixel", "channel", "layer"]


def project(scores: Mapping[str, Tensor], budget: int, granularity: Granularity = "pixel") -> dict[str, Tensor]:
    """Site → bool mask of the highest scores; scores: site → (C, H, W), −inf where no ReLU may stand.

    "pixel" keeps exactly `budget` positions, of equal scores the first; smaller budgets lie inside larger ones.
    "channel" and "layer" take whole channels or sites, those with the highest mean first, as long as they fit.

    Raises:
        ValueError: fewer positions than the budget may hold a ReLU.
    """
    if granularity == "pixel":
        flat = torch.cat([score.flatten() for score in scores.values()])
        if int((flat > -torch.inf).count_nonzero()) < budget:
            raise ValueError(f"{budget} ReLUs do not fit into {int((flat > -torch.inf).count_nonzero())} positions")
        kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        kept[torch.argsort(flat, descending=True, stable=True)[:budget]] = True
        parts = kept.split([score.numel() for score in scores.values()])
        return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
    masks = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    groups = []
    for name, score in scores.items():
        groups += zip(score, masks[name], strict=True) if granularity == "channel" else [(score, masks[name])]
    means = [float(score[score > -torch.inf].mean().nan_to_num(-math.inf)) for score, _ in groups]
    for number in sorted(range(len(groups)), key=lambda number: -means[number]):
        score, mask = groups[number]
        may = score > -torch.inf
        if int(may.count_nonzero()) <= budget:
            mask.copy_(may)
            budget -= int(may.count_nonzero())
    return masks


def kept_share(progress: float, target: float, reached: float = 0.6) -> float:
    """The share of ReLUs kept where `progress`, in [0, 1], of all steps are done.

    It falls from 1 to `target` with the 1.5th power of a cosine and stays there from `reached` on (ReLUPruner).
    """
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress / reached)))
    return target + (1 - target) * left**1.5
