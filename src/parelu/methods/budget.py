"""Budgets as people write them."""

from __future__ import annotations

import math

from parelu.errors import UserError


def parse_budget(text: str, relus: int) -> int:
    """A number of ReLUs from "50k", "12.9k", "1.2m", "50000" or a fraction of the network's such as "0.1".

    Args:
        relus: ReLUs of the network, the stem's included; a fraction is rounded to the nearest number of them.

    Raises:
        UserError: not a number, not positive, or more than the network has.
    """
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
        value = value * relus
    budget = round(value)
    if budget < 1:
        raise UserError(f"budget {text!r} is {value:g} ReLUs; the smallest is 1")
    if budget > relus:
        raise UserError(f"budget {text!r} is more than the network's {relus:,} ReLUs; give a smaller one")
    return budget
