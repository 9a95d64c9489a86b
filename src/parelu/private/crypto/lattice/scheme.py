"""W·r − s on encrypted r, for a W that is fixed: module-LWE with public matrices, and hints published once.

    once     h_ρ = Σ_i a_i·w_ρi + M_g·u_τ + e'_ρ, rounded to q'        server → client, ρ = g + G·τ
    a query  b_i = ⟨a_i, s⟩ + e_i + (q/t)·r_i,  β_g = M_gᵀ·s + ε_g     client → server
             c_ρ = Σ_i b_i·w_ρi + ⟨β_g, u_τ⟩ + flood − (q/t)·mask, rounded to q'
    client   W·r − mask = t/q'·(c_ρ − ⟨h_ρ, s⟩)

a_i in R³ and M_g in R³ˣ³ are public, R = Z[X]/(X^2048 + 1); u, s ternary; e, e', ε binomial. Answers are of class 0: at
multiples of K = 2048/n, where products are of n points. Why it hides r and W stands in docs/threat-model.md.

Coefficients and transforms are float64 balanced residues, (points, …), one array for each prime.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.lattice.parameters import DEGREE, KEPT, MATRICES, PRIMES, RANK
from parelu.private.crypto.lattice.residues import drop, reduce
from parelu.private.crypto.lattice.sampling import binomial, ternary, uniform
from parelu.private.crypto.lattice.transforms import classes, dot, forward, inverse, partner
from parelu.private.crypto.prg import Stream

Residues = NDArray[np.float64]
Stored = NDArray[np.int32]

ALL, ANSWERED = range(len(PRIMES)), range(len(KEPT))  # numbers of the primes
AT_ONCE = 32  # rows whose hints are made together


def public_polynomials(seed: bytes, upload: int, count: int) -> list[Stored]:
    """a_i of an upload, transforms, (DEGREE, RANK, count): of nobody's choice, both parties derive them."""
    return [uniform(Stream(seed, "polynomials", upload, k), (DEGREE, RANK, count), k) for k in ALL]


@functools.lru_cache(maxsize=4)
def public_matrices(seed: bytes) -> tuple[Stored, ...]:
    """M_g, transforms, (DEGREE, RANK, MATRICES · RANK): row r of M_g's column r' at [:, r, g · RANK + r']."""
    return tuple(uniform(Stream(seed, "matrices", k), (DEGREE, RANK, MATRICES * RANK), k) for k in ALL)


def as_classes(polynomials: Residues, n: int, k: int) -> Stored:
    """(DEGREE, RANK, count) coefficients → (n, RANK · K, count) transforms, to be multiplied by `as_partner`'s."""
    return forward(_joined(classes(polynomials, n)), k).astype(np.int32)


def as_partner(polynomials: Residues, n: int, k: int) -> Residues:
    """The other factor: products summed over the second axis are class 0 of the products of polynomials."""
    return forward(_joined(partner(polynomials, n)), k)


def _joined(parts: Residues) -> Residues:
    """(n, K, RANK, count) → (n, K · RANK, count)."""
    return np.ascontiguousarray(parts.reshape(len(parts), -1, parts.shape[-1]))


class Secrets:
    """A client's secrets of one query: several, one for each tile of a map; the first for all else.

    seed: of this query alone. matrices: for each secret, how many M_g its β are for, the first ones.
    """

    def __init__(self, seed: bytes, public: bytes, matrices: tuple[int, ...]) -> None:
        self._seed, self._public, self._matrices = seed, public, matrices
        self.secrets = ternary(Stream(seed, "secret"), (DEGREE, RANK, len(matrices))).astype(np.float64)
        self._transforms = [forward(self.secrets, k) for k in ALL]
        self._partners: dict[int, list[Residues]] = {}

    def beta(self) -> list[Residues]:
        """M_gᵀ·s + ε, coefficients, (DEGREE, RANK, Σ matrices): of the first secret with each, of the second …"""
        shape = (DEGREE, len(self._matrices), MATRICES, RANK)
        errors = binomial(Stream(self._seed, "beta"), (DEGREE, sum(self._matrices), RANK))
        out = []
        for k, matrices in zip(ALL, public_matrices(self._public), strict=True):
            found = inverse(dot(matrices, self._transforms[k], k), k).reshape(shape)
            each = [found[:, secret, :count] for secret, count in enumerate(self._matrices)]
            out.append(np.ascontiguousarray(reduce(np.concatenate(each, 1) + errors, k).swapaxes(1, 2)))
        return out

    def masks(self, upload: int, polynomials: list[Stored], tiles: int) -> list[Residues]:
        """⟨a_i, s⟩ + e_i: what hides one message under each a_i and secret; (DEGREE, tiles, polynomials)."""
        count = polynomials[0].shape[-1]
        errors = binomial(Stream(self._seed, "errors", upload), (DEGREE, tiles, count))
        return [reduce(inverse(dot(polynomials[k], self._some(k, tiles), k), k) + errors, k) for k in ALL]

    def _some(self, k: int, tiles: int) -> Residues:
        return np.ascontiguousarray(self._transforms[k][:, :, :tiles])

    def partners(self, n: int) -> list[Residues]:
        """What the hints' classes are multiplied by, (n, RANK · K, secrets)."""
        if n not in self._partners:
            self._partners[n] = [as_partner(self.secrets, n, k) for k in ANSWERED]
        return self._partners[n]


def times_hints(hints: list[Stored], partners: list[Residues], tiles: int) -> list[Residues]:
    """⟨h_ρ, s⟩ at class 0; hints: (n, RANK · K, rows) of `as_classes`; returns (n, tiles, rows) coefficients."""
    return [inverse(dot(hints[k], np.ascontiguousarray(partners[k][:, :, :tiles]), k), k) for k in ANSWERED]


class Betas:
    """A query's β, as the server has it: coefficients (DEGREE, RANK, secrets and their matrices)."""

    def __init__(self, beta: list[Residues]) -> None:
        self._beta = beta
        self._partners: dict[int, list[Residues]] = {}

    def partners(self, n: int) -> list[Residues]:
        """What u's classes are multiplied by, (n, RANK · K, secrets and their matrices)."""
        if n not in self._partners:
            self._partners[n] = [as_partner(self._beta[k], n, k) for k in ALL]
        return self._partners[n]


class Hiding:
    """What hides an op's weights: u, one for each `matrices` rows, and the errors of its hints.

    seed: of a secret, under these weights, this layout, these public polynomials and this op alone.
    """

    def __init__(self, seed: bytes, public: bytes, rows: int, matrices: int) -> None:
        self._seed, self._public, self.rows, self.matrices = seed, public, rows, matrices

    def u(self) -> Residues:
        """Ternary, coefficients, (DEGREE, RANK, ⌈rows / matrices⌉)."""
        shape = (DEGREE, RANK, -(-self.rows // self.matrices))
        return ternary(Stream(self._seed, "u"), shape).astype(np.float64)

    def hints(self, polynomials: list[Stored], weights: Callable[[slice], NDArray[Any]]) -> Iterator[Residues]:
        """h_ρ modulo the kept primes, (kept primes, DEGREE, RANK, rows), of `AT_ONCE` rows after another.

        weights: the polynomials w_ρi of a slice of rows, coefficients, (DEGREE, polynomials, rows).
        """
        u = self.u()
        inputs = [np.ascontiguousarray(of_prime.swapaxes(1, 2), np.float64) for of_prime in polynomials]
        for first in range(0, self.rows, AT_ONCE):
            part = slice(first, min(first + AT_ONCE, self.rows))
            of_rows = weights(part).astype(np.float64)
            own = u[:, :, part.start // self.matrices : -(-part.stop // self.matrices)]
            errors = binomial(Stream(self._seed, "errors", first), (DEGREE, RANK, part.stop - part.start))
            found = [self._hints(k, of_rows, inputs[k], own, errors) for k in ALL]
            yield drop(np.stack(found).reshape(len(PRIMES), -1)).reshape(len(KEPT), *errors.shape)

    def _hints(self, k: int, weights: Residues, inputs: Residues, u: Residues, errors: NDArray[Any]) -> Residues:
        """Modulo one prime; u: of these rows."""
        rows = weights.shape[-1]
        total = dot(forward(reduce(weights, k), k).astype(np.int32), inputs, k)
        total += self._times_matrices(k, u)[:, :, :rows]
        return reduce(inverse(reduce(total, k), k) + errors, k)

    def _times_matrices(self, k: int, u: Residues) -> Residues:
        """M_g·u_τ, transforms, (DEGREE, RANK, rows) with row g + matrices·τ."""
        stored = public_matrices(self._public)[k].reshape(DEGREE, RANK, MATRICES, RANK)[:, :, : self.matrices]
        factors = np.ascontiguousarray(stored.transpose(0, 3, 2, 1).reshape(DEGREE, RANK, -1), np.float64)
        found = dot(forward(np.ascontiguousarray(u), k).astype(np.int32), factors, k)
        return found.reshape(DEGREE, self.matrices, RANK, -1).transpose(0, 2, 3, 1).reshape(DEGREE, RANK, -1)


def times_u(u: list[Stored], betas: Betas, n: int, parts: list[int], matrices: int) -> list[Residues]:
    """⟨β_g, u_τ⟩ at class 0; u: `as_classes` modulo each prime; parts: numbers of β, for
    each tile's secret its matrices.

    Returns (n, tiles, rows) coefficients, the rows as many as there are u times matrices.
    """
    out = []
    for k in ALL:
        partners = np.ascontiguousarray(betas.partners(n)[k][:, :, parts])
        found = inverse(dot(u[k], partners, k), k).reshape(n, -1, matrices, u[k].shape[-1])
        out.append(found.swapaxes(2, 3).reshape(n, found.shape[1], -1))
    return out
