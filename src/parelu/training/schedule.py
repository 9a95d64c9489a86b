"""How one network is trained: epochs, rates and their schedule."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from parelu.errors import UserError
from parelu.network.settings import younger

Schedule = Literal["step", "cosine", "one-cycle", "constant"]
Optimizer = Literal["sgd", "adam"]


@dataclasses.dataclass(frozen=True)
class Training:
    """How one network is trained.

    Attributes:
        schedule: "step" divides the rate by 10 at each of the milestones; "cosine" falls to 0; "one-cycle" rises over
            the first quarter and falls linearly to 0.
        momentum: of SGD; Adam has its own (0.9, 0.999).
        clip: largest norm of the weights' gradient; 0 for none.
        begin, end: the part of the schedule that the epochs go through, where one training is made of several.
        milestones: epochs of the whole schedule after which "step" divides; empty for each quarter.
    """

    epochs: int = 120  # DeepReDuce, section 4
    batch: int = 128  # DeepReDuce, section 4
    lr: float = 0.1  # DeepReDuce, section 4
    schedule: Schedule = "step"  # DeepReDuce, section 4: every 30 of 120 epochs
    momentum: float = 0.9  # DeepReDuce, section 4
    weight_decay: float = 4e-4  # DeepReDuce, section 4
    label_smoothing: float = 0.0
    optimizer: Optimizer = "sgd"
    clip: float = 0.0
    begin: float = 0.0
    end: float = 1.0
    milestones: tuple[int, ...] = younger(())

    def __post_init__(self) -> None:
        for name, (kinds, within, words) in _ALLOWED.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool) or not within(value):
                raise UserError(f"{name} is {value!r}; it should be {words}")
        if self.begin >= self.end:
            raise UserError(f"begin is {self.begin!r}; it should be below end, which is {self.end!r}")
        if self.milestones and self.schedule != "step":
            raise UserError(f"milestones are of the schedule step, and this one is {self.schedule}; leave them out")
        if self.milestones and self.milestones[-1] >= self.whole:
            raise UserError(
                f"milestones end at {self.milestones[-1]}, and there are {self.whole} epochs; give smaller ones, or "
                "more epochs"
            )

    @property
    def whole(self) -> int:
        """Epochs of the whole schedule, of which this training may be a part."""
        return round(self.epochs / (self.end - self.begin))

    def changed(self, **given: Any) -> Training:
        """With other values for some fields; milestones that are not given follow the number of epochs.

        They keep their shares of it, and go where the schedule becomes another one.
        """
        if self.milestones and "milestones" not in given:
            epochs = given.get("epochs", self.epochs)
            moved = {round(m * epochs / self.epochs) for m in self.milestones} if isinstance(epochs, int) else set()
            stepped = given.get("schedule", self.schedule) == "step"
            given["milestones"] = tuple(m for m in sorted(moved) if stepped and 1 <= m < epochs)
        elif "milestones" in given:  # a list, where it is read from a file
            given["milestones"] = tuple(given["milestones"])
        return dataclasses.replace(self, **given)

    def check_images(self, number: int) -> None:
        """Raises `UserError` where so many training images are not a batch."""
        if number < self.batch:
            raise UserError(
                f"{number:,} training images do not fill one batch of {self.batch}; give a smaller batch, or more "
                "images"
            )

    def shape(self, progress: float) -> float:
        """Learning rate as a share of `lr` where `progress`, in [0, 1), of all steps are done."""
        progress = self.begin + (self.end - self.begin) * progress
        if self.schedule == "step" and self.milestones:
            epoch = progress * self.whole + 1e-6  # a milestone's own first step is in
            return 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "step":
            return 0.1 ** int(progress * 4)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "one-cycle":
            return min(progress / 0.25, (1 - progress) / 0.75)
        return 1.0


def _are_milestones(values: Any) -> bool:
    whole = all(type(value) is int for value in values)
    return whole and all(0 < a < b for a, b in itertools.pairwise((*values, math.inf)))


# Of each field of Training: its types, the range, and both in words. NaN is in no range.
_ALLOWED: dict[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "epochs": ((int,), lambda n: n >= 1, "a whole number, 1 or more"),
    "batch": ((int,), lambda n: n >= 2, "a whole number, 2 or more"),
    "lr": ((int, float), lambda x: 0 < x < math.inf, "a number above 0"),
    "schedule": ((str,), lambda name: name in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
    "momentum": ((int, float), lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "weight_decay": ((int, float), lambda x: 0 <= x < math.inf, "a number, 0 or more"),
    "clip": ((int, float), lambda x: 0 <= x < math.inf, "a number, 0 or more"),
    "begin": ((int, float), lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "end": ((int, float), lambda x: 0 < x <= 1, "a number above 0, at most 1"),
    "optimizer": ((str,), lambda name: name in get_args(Optimizer), f"one of {', '.join(get_args(Optimizer))}"),
    "label_smoothing": ((int, float), lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "milestones": ((tuple,), _are_milestones, "whole numbers in rising order, such as (90, 140, 160)"),
}


# One-cycle training in a handful of epochs (Smith & Topin 2017), for small networks and quick answers.
SHORT = Training(epochs=5, batch=256, lr=0.3, schedule="one-cycle", weight_decay=5e-4, label_smoothing=0.1)
