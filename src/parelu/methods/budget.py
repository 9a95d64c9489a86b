"""Budgets as people write them."""

from __future__ import annotations

import math

from parelu.errors import UserError
from parelu.network.count import counts
from parelu.network.plan import Plan
from parelu.network.spec import Spec


def parse_budget(text: str, relus: int, comparisons: int = 0) -> int:
    """ReLUs that masks may keep, from "50k", "12.9k", "1.2m", "50000" or a fraction of the network's such as "0.1".

    What is written is the sum of ReLUs and comparisons, which cost alike; max-pools take theirs first.

    Args:
        relus: ReLUs of the network, the stem's included.
        comparisons: of its max-pools; a fraction is of both, rounded to the nearest number.

    Raises:
        UserError: not a number, not positive, more than the network has, or nothing for masks beside the max-pools.
    """
    whole = relus + comparisons
    number = text.strip().lower()
    unit = {"k": 1e3, "m": 1e6}.get(number[-1:], 1.0)
    try:
        value = float(number[:-1] if unit > 1 else number) * unit
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"budget {text!r} is not a number of ReLUs; write 50k, 50000, or a fraction such as 0.1")
    if unit == 1 and value == 1 and "." in number:
        raise UserError(f"budget {text!r} is one ReLU, or all of them? write 1, or a fraction below 1 such as 0.9")
    if unit == 1 and 0 < value < 1:
        value = value * whole
    budget = round(value)
    if budget < 1:
        raise UserError(f"budget {text!r} is {value:g} ReLUs; the smallest is 1")
    if budget > whole:
        also = f", {comparisons:,} of them in max-pools" if comparisons else ""
        raise UserError(f"budget {text!r} is more than the network's {whole:,} ReLUs{also}; give a smaller one")
    if budget <= comparisons:
        raise UserError(
            f"budget {text!r} is {budget:,} ReLUs, and the network's max-pools alone compare {comparisons:,} times; "
            f"give {comparisons + 1:,} or more, or --replace maxpool=avgpool"
        )
    return budget - comparisons


def charged(spec: Spec, plan: Plan, teacher: Spec) -> int:
    """What a network takes of a budget of masks that was made for the teacher's max-pools.

    Its ReLUs, less the comparisons that it makes fewer than the teacher, as narrower networks do.
    """
    of_teacher = counts(teacher).comparisons
    return plan.relus + (counts(spec).comparisons - of_teacher if of_teacher else 0)
