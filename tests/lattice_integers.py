"""What the lattice computes, in Python's integers: residues and their values, negacyclic products; and both kernels."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from parelu.private.crypto import kernels
from parelu.private.crypto.lattice import residues, sampling, transforms
from parelu.private.crypto.lattice.parameters import PRIMES


@contextmanager
def using(name: str) -> Iterator[None]:
    """The lattice with these kernels."""
    if name == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba")
    with pytest.MonkeyPatch.context() as patch:
        for module, loops in ((residues, "residues_"), (sampling, "residues_"), (transforms, "transforms_")):
            patch.setattr(module, "kernels", kernels.load(name, loops))
        yield


def by_both(compute: Callable[[], Any]) -> Any:
    """What it gives, which is the same to the bit with both kernels."""
    found = []
    for name in kernels.NAMES:
        with using(name):
            found.append(compute())
    first, other = found
    assert first.dtype == other.dtype
    np.testing.assert_array_equal(first, other)
    return first


def random_residues(shape: tuple[int, ...], k: int, seed: int = 0) -> Any:
    """Balanced, in float64."""
    half = PRIMES[k] // 2
    return np.random.default_rng(seed).integers(-half, half + 1, shape).astype(np.float64)


def values(rows: Any, primes: Sequence[int]) -> list[int]:
    """(primes, count) residues → the integers in [0, ∏ primes)."""
    modulus = math.prod(primes)
    basis = [modulus // p * pow(modulus // p, -1, p) for p in primes]
    return [sum(int(x) * b for x, b in zip(column, basis, strict=True)) % modulus for column in np.transpose(rows)]


def signed(value: int, modulus: int) -> int:
    value %= modulus
    return value - modulus if value > modulus // 2 else value


def is_balanced(x: Any, k: int) -> bool:
    return bool((np.abs(x) <= PRIMES[k] // 2).all() and (x == np.rint(x)).all())


def agrees(x: Any, integers: Sequence[int] | Any, prime: int) -> bool:
    """Whether these are the same residues."""
    flat = np.asarray(integers, object).reshape(-1)
    return all((int(a) - int(b)) % prime == 0 for a, b in zip(np.asarray(x).reshape(-1), flat, strict=True))


def product(a: Sequence[Any], b: Sequence[Any]) -> list[int]:
    """Of two polynomials modulo Y^n + 1, by the definition."""
    n, out = len(a), [0] * len(a)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            sign, place = (1, i + j) if i + j < n else (-1, i + j - n)
            out[place] += sign * int(x) * int(y)
    return out
