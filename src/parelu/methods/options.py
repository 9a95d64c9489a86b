"""What the options of methods may be, by their names, which mean the same in every method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from parelu.errors import UserError
from parelu.methods.base import Method

_Range = tuple[Callable[[float], bool], str]

POSITIVE: _Range = (lambda x: x > 0, "a number above 0")
NOT_NEGATIVE: _Range = (lambda x: x >= 0, "a number, 0 or more")
COUNT: _Range = (lambda x: x >= 1 and x == int(x), "a whole number, 1 or more")
SHARE: _Range = (lambda x: 0 <= x <= 1, "a number from 0 to 1")

# An option that is not here may be any finite number, such as one of another package's method.
RANGES: dict[str, _Range] = {
    "temperature": POSITIVE,
    "search_epochs": COUNT,
    "finetune_epochs": COUNT,
    "finetune_lr": POSITIVE,
    "weight_lr": POSITIVE,
    "slope_lr": POSITIVE,
    "indicator_lr": POSITIVE,
    "kd_weight": NOT_NEGATIVE,
    "ce_weight": NOT_NEGATIVE,
    "search_kd_weight": NOT_NEGATIVE,
    "alpha": NOT_NEGATIVE,
    "beta": NOT_NEGATIVE,
    "warmup": SHARE,
    "warmup_epochs": (lambda x: x >= 0 and x == int(x), "a whole number, 0 or more"),
    "w": NOT_NEGATIVE,
    "wide": POSITIVE,
    "tails": NOT_NEGATIVE,
    "clip": NOT_NEGATIVE,
    "lam": NOT_NEGATIVE,
    "mu": NOT_NEGATIVE,
    "threshold": NOT_NEGATIVE,
    "spread": NOT_NEGATIVE,
    "head_start": (lambda x: x >= 1, "a number, 1 or more"),
    "trials": COUNT,
    "saliency_images": COUNT,
    "density": (lambda x: 0 < x <= 1, "a number above 0, at most 1"),
    "pram": NOT_NEGATIVE,
    "d_th": NOT_NEGATIVE,
    "gate_epochs": COUNT,
    "widest": (lambda x: x >= 1, "a number, 1 or more"),
}


def check_options(method: Method) -> None:
    """Raises `UserError` for an option whose value means nothing; NaN and infinity never do."""
    hints = get_type_hints(type(method))
    for field in dataclasses.fields(method):
        value, hint = getattr(method, field.name), hints[field.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise _refusal(method, field.name, value, f"one of {', '.join(map(str, get_args(hint)))}")
        for number in value.values() if isinstance(value, Mapping) and field.name in RANGES else [value]:
            _check_number(method, field.name, number)
    _check_weights(method)


def _check_weights(method: Method) -> None:
    """Of the soft and the hard loss: ce_weight is what the soft one's leaves of 1 where it is left out."""
    soft = {name: getattr(method, name) for name in ("kd_weight", "search_kd_weight") if hasattr(method, name)}
    hard = getattr(method, "ce_weight", None)
    for name, value in soft.items():
        if hard is None and value > 1:
            remedy = ", or give ce_weight" if hasattr(method, "ce_weight") else ""
            raise _refusal(method, name, value, f"at most 1: the cross-entropy has what it leaves of 1{remedy}")
        if hard == value == 0:
            raise UserError(f"{method.name}: {name} and ce_weight are both 0; there is no loss to train by")


def _check_number(method: Method, name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    is_within, words = RANGES.get(name, (lambda _: True, "a finite number"))
    if not math.isfinite(value) or not is_within(value):
        raise _refusal(method, name, value, words)


def _refusal(method: Method, name: str, value: Any, words: str) -> UserError:
    return UserError(f"{method.name}: {name} is {value!r}; it should be {words}")
