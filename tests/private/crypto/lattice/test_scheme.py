"""The scheme's objects against its equations, in Python's integers: what is left of each is an error of its size."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from lattice_integers import by_both, signed, values

from parelu.private.crypto.lattice import scheme
from parelu.private.crypto.lattice.parameters import DEGREE, KEPT, MATRICES, PRIMES, Q_KEPT, RANK, P, Q
from parelu.private.crypto.lattice.scheme import (
    ALL,
    Betas,
    Hiding,
    Secrets,
    as_classes,
    public_matrices,
    public_polynomials,
    times_hints,
    times_u,
)
from parelu.private.crypto.lattice.transforms import inverse
from parelu.private.crypto.prg import Stream, fresh_seed

POLYNOMIALS, ROWS = 2, 19
SLOT = 200  # bits of a coefficient in a product of integers


def product(a: Any, b: Any) -> list[int]:
    """Of two polynomials modulo X^2048 + 1, by one product of integers; its coefficients are below 2^199."""
    packed = [sum_of(x) for x in (a, b)]
    whole, half = packed[0] * packed[1], 1 << SLOT - 1
    whole += half * (((1 << SLOT * 2 * DEGREE) - 1) // ((1 << SLOT) - 1))  # each coefficient is shifted from 0 on
    body = whole.to_bytes(SLOT // 8 * (2 * DEGREE + 1), "little", signed=False)
    found = [int.from_bytes(body[i * SLOT // 8 : (i + 1) * SLOT // 8], "little") - half for i in range(2 * DEGREE)]
    return [low - high for low, high in zip(found[:DEGREE], found[DEGREE:], strict=True)]


def sum_of(x: Any) -> int:
    """Its value at 2^SLOT."""
    plus, minus = ([max(0, sign * int(c)) for c in x] for sign in (1, -1))
    return of_bytes(plus) - of_bytes(minus)


def of_bytes(x: list[int]) -> int:
    return int.from_bytes(b"".join(c.to_bytes(SLOT // 8, "little") for c in x), "little")


def test_products_of_large_integers_are_those_of_polynomials():
    one, last = [1] + [0] * (DEGREE - 1), [0] * (DEGREE - 1) + [1]
    x = [(-1) ** i * i * 3**40 for i in range(DEGREE)]
    assert product(x, one) == x and product(x, last) == [-c for c in x[1:]] + [x[0]]


def whole(rows: Any) -> list[int]:
    """Coefficients modulo q of one polynomial, transforms modulo each prime, signed."""
    coefficients = [inverse(np.ascontiguousarray(row[:, None], np.float64), k)[:, 0] for k, row in enumerate(rows)]
    return [signed(v, Q) for v in values(np.stack(coefficients), PRIMES)]


def total(*polynomials: list[int]) -> Any:
    return np.array([sum(of_place) for of_place in zip(*polynomials, strict=True)], object)


class Fixed:
    """What is drawn for a query and a layer of random weights, and what the equations give without errors."""

    def __init__(self) -> None:
        self.public, rng = fresh_seed(), np.random.default_rng(0)
        self.a = public_polynomials(self.public, 3, POLYNOMIALS)
        self.m = [of_prime.reshape(DEGREE, RANK, MATRICES, RANK) for of_prime in public_matrices(self.public)]
        self.weights = rng.integers(-300, 301, (DEGREE, POLYNOMIALS, ROWS)) * (rng.random((DEGREE, 1, 1)) < 0.01)

    def of_a(self, r: int, i: int) -> list[int]:
        return whole([of_prime[:, r, i] for of_prime in self.a])

    def of_m(self, r: int, g: int, column: int) -> list[int]:
        return whole([of_prime[:, r, g, column] for of_prime in self.m])


@pytest.fixture(scope="module")
def fixed() -> Fixed:
    return Fixed()


def errors_of(found: list[int], exact: Any) -> Any:
    """The difference modulo q, which is small."""
    return np.array([float(signed(int(v - e), Q)) for v, e in zip(found, exact, strict=True)])


def is_binomial(errors: Any) -> bool:
    """Of 21 pairs: within ±21, of variance 21/2, of mean 0, and of the shares of its distribution."""
    shares = [(errors == x).mean() for x in (0, 1, -1, 3, -5)]
    expected = [math.comb(42, 21 + x) / 2**42 for x in (0, 1, -1, 3, -5)]
    count = len(errors)
    return bool(
        np.abs(errors).max() <= 21
        and abs(errors.mean()) < 6 * math.sqrt(10.5 / count)
        and abs((errors**2).mean() - 10.5) < 6 * math.sqrt(2) * 10.5 / math.sqrt(count)
        and all(abs(s - e) < 6 * math.sqrt(e / count) for s, e in zip(shares, expected, strict=True))
    )


@pytest.mark.parametrize(("rows", "matrices"), [(ROWS, MATRICES), (3, 1), (3, 3)])
def test_a_hint_less_its_products_is_binomial(rows, matrices, fixed, monkeypatch):
    """h_ρ − Σ_i a_i·w_ρi − M_g·u_τ, ρ = g + matrices·τ, before the drop; and after it what is left is rounded."""
    before: list[Any] = []
    drop = scheme.drop
    monkeypatch.setattr(scheme, "drop", lambda x: (before.append(x), drop(x))[1])
    monkeypatch.setattr(scheme, "AT_ONCE", 8)
    hiding = Hiding(fresh_seed(), fixed.public, rows, matrices)
    published = np.concatenate([*hiding.hints(fixed.a, lambda part: fixed.weights[:, :, :rows][:, :, part])], 3)
    hints = np.concatenate([x.reshape(len(PRIMES), DEGREE, RANK, -1) for x in before], 3)
    assert published.shape == (len(KEPT), DEGREE, RANK, rows) and hints.shape[3] == rows
    u, errors = hiding.u().astype(int), []
    for row in {0, min(8, rows - 2), rows - 1}:  # the first of two parts that are drawn alike
        tau, g = divmod(row, matrices)
        for r in {0, 2}:
            parts = [product(fixed.of_a(r, i), fixed.weights[:, i, row]) for i in range(POLYNOMIALS)]
            parts += [product(fixed.of_m(r, g, column), u[:, column, tau]) for column in range(RANK)]
            found = values(hints[:, :, r, row], PRIMES)
            errors.append(errors_of(found, total(*parts)))
            rounded = [signed((2 * v + P) // (2 * P), Q_KEPT) for v in found]
            assert rounded == [signed(v, Q_KEPT) for v in values(published[:, :, r, row], KEPT)]
    assert is_binomial(np.concatenate(errors))
    assert all((one != other).any() for one, other in itertools.combinations(errors, 2))


def test_betas_less_their_products_are_binomial(fixed):
    """(M_gᵀ·s + ε)_r, of two secrets, the second with fewer matrices."""
    secrets = Secrets(fresh_seed(), fixed.public, (3, 1))
    beta, errors = secrets.beta(), []
    assert beta[0].shape == (DEGREE, RANK, 4)
    for place, (secret, g) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0)]):
        for r in range(RANK):
            parts = [product(fixed.of_m(row, g, r), secrets.secrets[:, row, secret]) for row in range(RANK)]
            found = values(np.stack([beta[k][:, r, place] for k in ALL]), PRIMES)
            errors.append(errors_of(found, total(*parts)))
    assert is_binomial(np.concatenate(errors))
    assert all((one != other).any() for one, other in itertools.combinations(errors, 2))


def test_masks_of_messages_less_their_products_are_binomial(fixed):
    """⟨a_i, s⟩ + e_i, under two secrets; other errors under each, and in each upload."""
    seed = fresh_seed()
    secrets, errors = Secrets(seed, fixed.public, (2, 2, 1)), []
    for upload in (3, 4):
        masks = secrets.masks(upload, fixed.a, 2)
        assert masks[0].shape == (DEGREE, 2, POLYNOMIALS)
        for tile, i in np.ndindex(2, POLYNOMIALS):
            parts = [product(fixed.of_a(r, i), secrets.secrets[:, r, tile]) for r in range(RANK)]
            found = values(np.stack([masks[k][:, tile, i] for k in ALL]), PRIMES)
            errors.append(errors_of(found, total(*parts)))
    assert is_binomial(np.concatenate(errors))
    assert all((one != other).any() for one, other in itertools.combinations(errors, 2))
    again = Secrets(seed, fixed.public, (2, 2, 1))
    assert all(np.array_equal(x, y) for x, y in zip(again.masks(4, fixed.a, 2), masks, strict=True))


def test_secrets_are_ternary_and_of_their_seed_alone(fixed):
    one, other = (Secrets(fresh_seed(), fixed.public, (8, 8)) for _ in range(2))
    for secrets in (one.secrets, Hiding(fresh_seed(), fixed.public, 8 * 2, 8).u()):
        assert set(np.unique(secrets)) == {-1, 0, 1}
        counts = [(secrets == x).mean() for x in (-1, 0, 1)]
        assert all(abs(share - 1 / 3) < 6 / math.sqrt(4.5 * secrets.size) for share in counts)
    assert (one.secrets != other.secrets).mean() > 0.6
    assert (one.secrets[:, :, 0] != one.secrets[:, :, 1]).mean() > 0.6


@pytest.mark.parametrize("n", [1, 8, 512, DEGREE])
def test_inner_products_are_class_0_of_those_of_polynomials(n, fixed):
    """⟨h_ρ, s⟩ modulo q', and ⟨β_g, u_τ⟩ modulo q, of both tiles' secrets, row g + matrices·τ; with both kernels."""
    secrets = Secrets(fresh_seed(), fixed.public, (2, 2))
    beta = secrets.beta()
    u = Hiding(fresh_seed(), fixed.public, 4, 2).u()
    stored = [as_classes(u, n, k) for k in ALL]
    hidden = by_both(lambda: np.stack(times_hints(stored[: len(KEPT)], secrets.partners(n), 2)))
    masked = by_both(lambda: np.stack(times_u(stored, Betas(beta), n, [0, 1, 2, 3], 2)))
    assert hidden.shape == (len(KEPT), n, 2, 2) and masked.shape == (len(PRIMES), n, 2, 4)
    betas = [[values(np.stack([b[:, r, part] for b in beta]), PRIMES) for r in range(RANK)] for part in range(4)]
    of_q = [[[signed(v, Q) for v in x] for x in of_part] for of_part in betas]
    for tile, tau in np.ndindex(2, 2):
        by_s = total(*(product(u[:, r, tau], secrets.secrets[:, r, tile]) for r in range(RANK)))[:: DEGREE // n]
        assert all((int(v) - w) % Q_KEPT == 0 for v, w in zip(values(hidden[:, :, tile, tau], KEPT), by_s, strict=True))
        for g in range(2):
            by_u = total(*(product(of_q[2 * tile + g][r], u[:, r, tau]) for r in range(RANK)))[:: DEGREE // n]
            found = values(masked[:, :, tile, g + 2 * tau], PRIMES)
            assert all((v - int(w)) % Q == 0 for v, w in zip(found, by_u, strict=True))


def test_no_two_draws_share_a_stream(fixed, monkeypatch):
    drawn: list[Any] = []

    class Noted(Stream):
        def __init__(self, seed: bytes, *labels: str | int) -> None:
            drawn.append((seed, labels))
            super().__init__(seed, *labels)

    monkeypatch.setattr(scheme, "Stream", Noted)
    monkeypatch.setattr(scheme, "AT_ONCE", 8)
    public, of_query, of_op = (fresh_seed() for _ in range(3))
    polynomials = [public_polynomials(public, upload, 2) for upload in range(3)]
    secrets = Secrets(of_query, public, (2, 1))
    secrets.beta()
    for upload, of_upload in enumerate(polynomials):
        secrets.masks(upload, of_upload, 2)
    list(Hiding(of_op, public, ROWS, MATRICES).hints(polynomials[0], lambda part: fixed.weights[:, :, part]))
    assert len(drawn) == len(set(drawn)) == 3 * 6 + 6 + (1 + 1 + 3) + (1 + 3)


def test_hints_are_the_same_with_both_kernels(fixed):
    hiding = Hiding(bytes(16), fixed.public, 3, 3)
    by_both(lambda: np.concatenate([*hiding.hints(fixed.a, lambda part: fixed.weights[:, :, :3][:, :, part])], 3))
