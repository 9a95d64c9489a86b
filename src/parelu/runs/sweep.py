"""Sweeps: one experiment each for networks of several widths, compared at equal ReLUs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from parelu.errors import UserError
from parelu.methods.base import Method
from parelu.methods.budget import parse_budget
from parelu.network.count import counts
from parelu.runs.experiment import Experiment, Reduction, prepare


def sweep(
    base: Experiment, m: Sequence[int], multipliers: Sequence[str], chosen: Sequence[Method], budgets: Sequence[int]
) -> list[Experiment]:
    """An experiment a network, each with the budgets that are at most its ReLUs; without methods, the networks alone.

    Args:
        base: all but the network and the methods; its model is the name of a ResNet without a width.
        m: base widths; multipliers: of the stages' widths, such as "4x4x4x", for each base width.

    Raises:
        UserError: a network is unknown.
    """
    networks = [f"{base.model} {multiplier} m={width}" for width in m for multiplier in multipliers]
    return [_reduced(dataclasses.replace(base, model=network), chosen, budgets) for network in networks]


def _reduced(one: Experiment, chosen: Sequence[Method], budgets: Sequence[int]) -> Experiment:
    full = counts(prepare(one).spec)
    within = tuple(str(b) for b in budgets if full.comparisons < b <= full.relus + full.comparisons)
    reductions = [Reduction(method, within if method.needs_budget else ()) for method in chosen]
    kept = tuple(r for r in reductions if r.budgets or not r.method.needs_budget)
    return dataclasses.replace(one, reductions=kept)


def parse_budgets(texts: Sequence[str]) -> list[int]:
    """Numbers of ReLUs; raises `UserError` for a fraction, which is another number in each network."""
    if any(0 < float(text) < 1 for text in texts if text.replace(".", "").isdigit()):
        raise UserError("--budget of a sweep is a number of ReLUs, not a fraction: it compares at equal ReLUs")
    return [parse_budget(text, sys.maxsize) for text in texts]
