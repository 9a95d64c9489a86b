"""The losses of an epoch, which stay on the device until somebody looks: a look waits for all that is queued there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

EVERY = 1.0  # seconds between two looks at a device; what a CPU has is read at each step


class Meter:
    """Means over the steps of an epoch.

    A loss that is not finite makes its mean so, for good: it is found at the next look, whenever it was.

    Attributes:
        shown: the loss that was read last.
    """

    def __init__(self) -> None:
        self.shown = math.nan
        self.blown_up: Callable[[float], Exception] = lambda loss: ArithmeticError(f"the loss is {loss}")
        self._start()

    def _start(self) -> None:
        self._names: list[str] = []
        self._means, self._latest = torch.zeros(0), torch.zeros(0)
        self._steps, self._looked = 0, -math.inf

    def begin(self, blown_up: Callable[[float], Exception]) -> None:
        """At the start of an epoch; blown_up: of a loss that is not finite, what to raise."""
        self.blown_up = blown_up
        self._start()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """A step's loss, as "loss", and its terms, numbers; raises where it looks and one was not finite."""
        self._latest = torch.stack(list(terms.values())).detach().double()
        if not self._steps:
            self._names, self._means = list(terms), torch.zeros_like(self._latest)
        self._steps += 1
        self._means = self._means + (self._latest - self._means) / self._steps
        if self._latest.device.type == "cpu" or time.monotonic() - self._looked > EVERY:
            self.check()

    def check(self) -> None:
        """Raises where the loss of a step was not finite: nothing is to be kept then."""
        if not self._steps:
            return
        latest, mean = torch.stack([self._latest[0], self._means[0]]).tolist()
        if not (math.isfinite(latest) and math.isfinite(mean)):
            raise self.blown_up(mean if math.isfinite(latest) else latest)
        self.shown, self._looked = latest, time.monotonic()

    def means(self) -> dict[str, float]:
        """Name → mean over the epoch's steps; raises as `check` does."""
        self.check()
        return dict(zip(self._names, self._means.tolist(), strict=True))
