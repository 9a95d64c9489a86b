"""What the lattice parameters in use cost to break, by our own estimate, beside the published table.

    python benchmarks/lattice.py
    python benchmarks/lattice.py --dimension 6144 --log-q 151.5

A sample of ring-LWE or of module-LWE is taken as so many of plain LWE of its dimension, degree times rank: ternary
secret, centred binomial error. There are more samples than either attack wants (`Instance.samples`), so that it does
not matter how many an attacker sees: of the hints' u 24 of rank 3, of a query's s one for each polynomial and 24. Three
attacks, the smallest block size of each by the geometric series assumption:

primal  a unique shortest vector in the scaled lattice of Bai and Galbraith 2014, found where its projection is shorter
        than the last block's vectors (Alkim, Ducas, Pöppelmann, Schwabe 2016, section 6.3)
dual    short vectors of the scaled dual lattice tell samples from uniform ones (Albrecht 2017, section 2), as many as
        needed; a sieve gives 2^(0.2075 β) of them at once (Alkim et al. 2016, section 6.4)
hybrid  the dual one on all but ζ coordinates of the secret, which are guessed: all 3^ζ at once by a Fourier transform
        (Guo and Johansson 2021, without modulus switching), a step of which counts as one of the sieve's

and four costs of a block size β in dimension d (Albrecht, Player, Scott 2015, section 4; Alkim et al. 2016):

sieve        8 d 2^(0.292 β + 16.4), with which the table was made
core         2^(0.292 β), one call and no overhead: far below what an attack costs
quantum      2^(0.265 β)
enumeration  8 d 2^(0.187 β log2 β − 1.019 β + 16.1)

The table: Homomorphic Encryption Standard (Albrecht et al. 2018), table 1, ternary secrets, 128 bits classical; of the
first two attacks. `benchmarks/lattice_estimator.py` asks another's script of the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from parelu.private.crypto import he
from parelu.private.crypto.lattice import parameters

TABLE = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438}  # dimension → log2 q with 128 bits
BITS = 128
ERROR = math.sqrt(21 / 2)  # standard deviation of a centred binomial of 21 pairs, SEAL's
ROUNDED = math.sqrt(1 / 12)  # of rounding to an integer
SECRET = math.sqrt(2 / 3)  # of a uniform ternary one
GUESSED = 48  # coordinates at most, far above what pays
LEAST, MOST = 50, 20_000  # block sizes that are looked at; the estimate of δ holds from 50 on

Cost = Callable[[int, int], float]  # of a block size and a dimension, in log2


def sieve(block: int, dimension: int) -> float:
    return 0.292 * block + 16.4 + math.log2(8 * dimension)


def core(block: int, dimension: int) -> float:
    return 0.292 * block


def quantum(block: int, dimension: int) -> float:
    return 0.265 * block


def enumeration(block: int, dimension: int) -> float:
    return 0.187 * block * math.log2(block) - 1.019 * block + 16.1 + math.log2(8 * dimension)


COSTS: dict[str, Cost] = {"sieve": sieve, "core": core, "quantum": quantum, "enumeration": enumeration}


@dataclasses.dataclass(frozen=True)
class Instance:
    """LWE of this dimension modulo a q of log_q bits; error: its standard deviation."""

    dimension: int
    log_q: float
    error: float = ERROR

    @property
    def scale(self) -> float:
        """What makes the secret as long as the error."""
        return self.error / SECRET

    def samples(self) -> np.ndarray:
        """Numbers of samples that are tried: the best lies below the dimension, so that more of them are of no use."""
        return np.unique(np.linspace(self.dimension // 8, 2 * self.dimension, 600).astype(int))


@dataclasses.dataclass(frozen=True)
class Attack:
    """block: the smallest block size, in log2 the cost; dimension: of the lattice."""

    bits: float
    block: int
    dimension: int


def log_delta(block: int) -> float:
    """log2 of the root Hermite factor of BKZ (Chen 2013)."""
    return math.log2((math.pi * block) ** (1 / block) * block / (2 * math.pi * math.e)) / (2 * (block - 1))


def primal(instance: Instance, cost: Cost) -> Attack:
    """The cost of the smallest block size that finds the secret."""
    n, m = instance.dimension, instance.samples()
    d = n + m + 1
    volume = (m * instance.log_q + n * math.log2(instance.scale)) / d  # log2, of one dimension

    def found(block: int) -> np.ndarray:
        vector = math.log2(instance.error) + math.log2(block) / 2
        return vector <= (2 * block - d - 1) * log_delta(block) + volume

    low, high = LEAST, MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle).any() else (middle + 1, high)
    dimension = int(d[found(low)].min())
    return Attack(cost(low, dimension), low, dimension)


def dual(instance: Instance, cost: Cost) -> Attack:
    """The cost of telling samples apart, at the block size that makes it least."""
    return _guessing(instance, cost, 0)


def hybrid(instance: Instance, cost: Cost) -> Attack:
    """The dual attack's, where so many coordinates are guessed as make it least."""
    found = [_guessing(instance, cost, guessed) for guessed in range(0, GUESSED, 4)]
    return min(found, key=lambda attack: attack.bits)


def _guessing(instance: Instance, cost: Cost, guessed: int) -> Attack:
    n, m = instance.dimension - guessed, instance.samples()
    d = n + m
    volume = n * (instance.log_q - math.log2(instance.scale)) / d
    transform = guessed * math.log2(3) + math.log2(max(1.0, guessed * math.log2(3)))
    candidates = math.log2(1 + 2 * guessed * math.log(3))  # the best of 3^ζ is to stand out

    def at(block: int) -> Attack:
        lengths = d * log_delta(block) + volume
        best = int(lengths.argmin())
        # An inner product of a short vector and a sample is off by a Gaussian: 2^−advantage from uniform.
        noise = 2.0 ** min(float(lengths[best]) - instance.log_q, 20.0) * instance.error
        advantage = 2 * math.pi**2 * noise**2 * math.log2(math.e)
        again = max(0.0, 2 * advantage + candidates - 0.2075 * block)
        bits = cost(block, int(d[best])) + again
        return Attack(float(np.logaddexp2(bits, transform)) if guessed else bits, block, int(d[best]))

    low, high = LEAST, MOST
    while high - low > 3:  # the cost falls, then rises
        third = (high - low) // 3
        one, other = at(low + third), at(high - third)
        low, high = (low, high - third) if one.bits <= other.bits else (low + third, high)
    return min((at(block) for block in range(low, high + 1)), key=lambda attack: attack.bits)


ATTACKS = (primal, dual, hybrid)


def security(instance: Instance, cost: Cost = sieve) -> float:
    """The cheaper of the attacks that the table was made with, in bits."""
    return min(attack(instance, cost).bits for attack in (primal, dual))


def largest_log_q(dimension: int, bits: float = BITS) -> int:
    """The largest modulus with so much security by the table's costs, in whole bits."""
    low, high = 10, dimension // 8
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if security(Instance(dimension, middle)) >= bits else (low, middle - 1)
    return low


def in_use() -> dict[str, Instance]:
    """What the offline modes encrypt with: SEAL's sets, with its prime for keys, under which nothing is; the hints'.

    What the hints' clients see of u is rounded from q to q': the proof rests on the former, an attack meets the latter,
    whose error is that of rounding alone.
    """
    found = {}
    for set_ in he.CHOICES:
        log_q = he.context(set_).seal.key_context_data().total_coeff_modulus_bit_count()
        found[f"offline mode seal, {' + '.join(map(str, set_.bits))} bits"] = Instance(he.DEGREE, log_q)
    dimension = parameters.RANK * parameters.DEGREE
    found["offline mode hints"] = Instance(dimension, math.log2(parameters.Q))
    found["… its hints as published, modulo q'"] = Instance(dimension, math.log2(parameters.Q_KEPT), ROUNDED)
    return found


def row(name: str, instance: Instance) -> str:
    attacks = {(kind.__name__, cost): kind(instance, COSTS[cost]) for kind in ATTACKS for cost in COSTS}
    costs = "".join(f"{attacks[kind.__name__, cost].bits:>8.1f}" for cost in COSTS for kind in ATTACKS)
    block = attacks["primal", "sieve"].block
    return f"{name:<36}{instance.dimension:>6}{instance.log_q:>7.1f}{block:>7}{costs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimension", type=int)
    parser.add_argument("--log-q", type=float)
    options = parser.parse_args()
    print(f"{'':<36}{'N':>6}{'log2 q':>7}{'β':>7}" + "".join(f"{cost:>24}" for cost in COSTS))
    print(f"{'':<56}" + "".join(f"{attack.__name__:>8}" for attack in ATTACKS) * len(COSTS))
    if options.dimension:
        print(row("", Instance(options.dimension, options.log_q)))
        return
    for dimension, log_q in TABLE.items():
        print(row("the standard's table at 128 bits", Instance(dimension, log_q)))
    for name, instance in in_use().items():
        print(row(name, instance))
    print("\nlargest log2 q with 128 bits by sieving, beside the table's")
    for dimension in sorted({*TABLE, *(instance.dimension for instance in in_use().values())}):
        found = largest_log_q(dimension)
        print(f"N = {dimension:<6}{found:>5}" + (f"  the table has {TABLE[dimension]}" if dimension in TABLE else ""))


if __name__ == "__main__":
    main()
