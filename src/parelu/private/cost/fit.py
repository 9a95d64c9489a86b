"""Seconds by kinds of work: least squares without negative coefficients, on relative errors.

An error counts by its share of the geometric mean of what was measured and what is fitted, so that twice as long and
half as long weigh the same: by shares of the measured seconds alone a fit is pulled below them. Beyond `USUAL` an error
counts as it is, not squared (Huber's weights): what else a machine does makes some measurements far too long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from parelu.private.offline.mode import Features

FLOOR = 1e-4  # seconds below which an error counts as if it were this long
USUAL = 0.2  # of the seconds
TIMES = 20  # that the weights are made anew

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Fit:
    """coefficients, errors: kind of work → seconds of one, and its standard error."""

    coefficients: Mapping[str, float]
    errors: Mapping[str, float]

    def seconds(self, features: Features) -> float:
        """Raises KeyError for a kind of work that was not measured."""
        return sum(amount * self.coefficients[name] for name, amount in features.items() if amount)


def fitted(rows: Sequence[tuple[Features, float]], floor: float = FLOOR, known: str = "") -> Fit:
    """rows: what was done, and its seconds. known: a kind of work that is seconds already, and is not fitted."""
    names = sorted({name for features, _ in rows for name, amount in features.items() if amount} - {known})
    amounts = np.array([[features.get(name, 0.0) for name in names] for features, _ in rows], np.float64)
    given = np.array([features.get(known, 0.0) for features, _ in rows])
    measured = np.array([each for _, each in rows])
    weights = 1 / (measured + floor)
    found = np.zeros(len(names))
    for _ in range(TIMES if names else 0):
        found = _non_negative(amounts * weights[:, None], (measured - given) * weights)
        fit = given + amounts @ found
        weights = 1 / (np.sqrt(measured * fit) + floor)
        weights /= np.sqrt(np.maximum(1, weights * np.abs(fit - measured) / USUAL))
    errors = _errors(amounts * weights[:, None], (measured - given) * weights, found)
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
    scale = np.linalg.norm(left[:, free], axis=0)
    alike = left[:, free] / scale
    errors[free] = np.sqrt(variance * np.maximum(0.0, np.diag(np.linalg.pinv(alike.T @ alike)))) / scale
    return errors
