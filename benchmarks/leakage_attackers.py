"""What attackers of benchmarks/leakage.py make of answers: regressions on what they know of the truncations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from leakage_simulation import Tail
from numpy.typing import NDArray

from parelu.private.protocol.reveal import Exact, Reveal

Real = NDArray[np.float64]


class Regression:
    """Least squares of answers on known numbers, in one pass, without their means; `simple` takes the numbers to be
    uncorrelated, which costs little where noise prevails."""

    def __init__(self, features: int, outputs: int, simple: bool) -> None:
        self.gram = np.zeros(features if simple else (features, features))
        self.cross, self.squares, self.count = np.zeros((features, outputs)), np.zeros(outputs), 0

    def add(self, x: NDArray[Any], y: Real) -> None:
        x, y = x - x.mean(0), y - y.mean(0)
        self.gram += (x * x).sum(0) if self.gram.ndim == 1 else x.T @ x
        self.cross += x.T @ y.astype(x.dtype)
        self.squares += (y * y).sum(0)
        self.count += len(x)

    def solution(self) -> Real:
        """(features, outputs), shrunk by noise over weights, whose sizes come from the numbers that moved the most."""
        if self.gram.ndim == 1:
            return self.cross / np.maximum(self.gram, 1e-9)[:, None]
        moved, eye = np.diag(self.gram), np.eye(len(self.gram))
        first = np.linalg.solve(self.gram + 1e-9 * moved.max() * eye, self.cross)
        noise = (self.squares - (first * self.cross).sum(0)).mean() / self.count
        ridge = max(noise, 0) / ((first[moved >= np.median(moved)] ** 2).mean() + 1e-30)
        return np.linalg.solve(self.gram + (ridge + 1e-9 * moved.max()) * eye, self.cross)

    def expected(self, truth: Real) -> Callable[[float], float]:
        """Queries → the cosine to expect; truth: (features, outputs), up to scale."""
        truth = truth * (truth * self.cross).sum() / (truth * (self.gram @ truth)).sum()
        noise = (self.squares - (truth * (2 * self.cross - self.gram @ truth)).sum(0)).mean() / self.count
        spread, vectors = np.linalg.eigh(self.gram / self.count)
        energy = ((vectors.T @ truth) ** 2).sum(1)
        ratio = noise / (truth**2).mean()
        return lambda n: math.sqrt(float((energy * n * spread / (n * spread + ratio)).sum() / energy.sum()))


def inverse(expected: Callable[[float], float], angle: float) -> float:
    """Queries for this cosine."""
    low, high = 1.0, 1e18
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if expected(middle) < angle else (low, middle)
    return high


class Told:
    """Knows what the last truncations changed of the last layer's inputs."""

    name = "told"

    def __init__(self, tails: Sequence[Tail], outputs: int, reveal: Reveal) -> None:
        self.regression = Regression(tails[0].inputs, outputs, simple=False)

    def see(self, image: int, tail: Tail, low: Any, moved: Real, y: Real) -> None:
        self.regression.add(moved, y)

    def weights(self) -> Real:
        return self.regression.solution()

    def expected(self, truth: Real) -> Callable[[float], float] | None:
        return self.regression.expected(truth)


class Shares:
    """Knows its shares' low bits: a regression an image, then the positions of a channel that answer are averaged."""

    name = "shares"

    def __init__(self, tails: Sequence[Tail], outputs: int, reveal: Reveal) -> None:
        simple = not isinstance(reveal, Exact)
        self.inputs, self.parts = tails[0].inputs, [Regression(tail.positions, outputs, simple) for tail in tails]
        self.channels = np.tile(tails[0].channels, len(tails))

    def see(self, image: int, tail: Tail, low: Any, moved: Real, y: Real) -> None:
        self.parts[image].add(-tail.fractions(low), y)

    def weights(self) -> Real:
        found = np.zeros((self.inputs, self.parts[0].cross.shape[1]))
        if self.parts[0].count < 1.2 * len(self.parts[0].gram):
            return found
        slopes = np.concatenate([part.solution() for part in self.parts])
        size = np.linalg.norm(slopes, axis=1)
        for channel in range(self.inputs):
            own = np.flatnonzero(self.channels == channel)
            found[channel] = slopes[own[size[own] >= size[own].max() / 2]].mean(0)
        return found

    def expected(self, truth: Real) -> Callable[[float], float] | None:
        return None


ATTACKERS: dict[str, Callable[..., Any]] = {attacker.name: attacker for attacker in (Shares, Told)}
