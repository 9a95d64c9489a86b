"""Seconds by kinds of work: least squares without negative coefficients, on relative errors.

Of each party and phase its CPU seconds are fitted on what it does. What the client waits for is fitted on these: on
what one party does after the other, on the longer of what both do at once, and on the shorter, as far as it is hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from parelu.private.offline.mode import Features

FLOOR = 1e-4  # seconds below which an error counts as if it were this long

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Fit:
    """coefficients, errors: kind of work → seconds of one, and its standard error."""

    coefficients: Mapping[str, float]
    errors: Mapping[str, float]

    def seconds(self, features: Features) -> float:
        """Raises KeyError for a kind of work that was not measured."""
        return sum(amount * self.coefficients[name] for name, amount in features.items() if amount)


def fitted(rows: Sequence[tuple[Features, float]], floor: float = FLOOR) -> Fit:
    """rows: what was done, and its seconds."""
    names = sorted({name for features, _ in rows for name, amount in features.items() if amount})
    amounts = np.array([[features.get(name, 0.0) for name in names] for features, _ in rows], np.float64)
    seconds = np.array([each for _, each in rows])
    weights = 1 / (np.abs(seconds) + floor)
    found = _non_negative(amounts * weights[:, None], seconds * weights)
    errors = _errors(amounts * weights[:, None], seconds * weights, found)
    return Fit(dict(zip(names, found.tolist(), strict=True)), dict(zip(names, errors.tolist(), strict=True)))


def _non_negative(left: Floats, right: Floats) -> Floats:
    """The x ≥ 0 with the least |left·x − right|; columns, of which none is 0, are made alike first."""
    from scipy.optimize import nnls  # takes a second to import

    scale = np.linalg.norm(left, axis=0)
    return nnls(left / scale, right)[0] / scale


def _errors(left: Floats, right: Floats, found: Floats) -> Floats:
    """Standard errors of the coefficients above zero; of the others 0."""
    free, errors = found > 0, np.zeros_like(found)
    spare = max(1, len(right) - int(free.sum()))
    variance = float(((left @ found - right) ** 2).sum()) / spare
    errors[free] = np.sqrt(variance * np.diag(np.linalg.pinv(left[:, free].T @ left[:, free])))
    return errors
