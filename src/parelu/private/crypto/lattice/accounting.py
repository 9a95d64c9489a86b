"""How much the answers of many inferences tell of W: a bound on a statistical distance, from exact sums.

A client that knows its secret and its coins sees of an answer y, and v + f: a noise v that depends on W, u and e', and
the flooding f. Against answers without v, each costs a squared Hellinger distance of at most I·v²/8w², I of
`noise.INFORMATION` and w = 2B the width of a uniform. Affinities of independent floodings multiply, whatever was seen
before; so Q inferences are within

    ½·√(I·Q·Σ E v²)/2B

of answers that do not depend on W, the sum over an inference's outputs. E v² has three readings, by who draws what:

drawn   all coins of the client come from its seed. For uniform r each θ is uniform on [−½, ½), as q is odd; so v is a
        sum of independent terms of mean 0: 10½ for each square of a weight and 1/12 for its rounding, two inner
        products of an error with a ternary vector, 10½·⅔·6144 each, and θ of y and of the mask
chosen  r is chosen, with the errors and the secret in view: the roundings then add up to at most ½Σ|w| + 1, of a sign
        that suits the errors
worst   all that an audit lets pass is chosen: the largest |v|
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.lattice import parameters
from parelu.private.crypto.noise import ETA, INFORMATION

ERROR = Fraction(ETA, 2)  # the variance of a centred binomial
SECRET = Fraction(2, 3)  # of a uniform ternary number
ROUNDING = Fraction(1, 12)  # of a uniform number on [−½, ½)
PRODUCTS = 2 * parameters.RANK * parameters.DEGREE * ERROR * SECRET  # ⟨ε, u⟩ and ⟨e', s⟩


@dataclasses.dataclass(frozen=True)
class Shift:
    """Σ E v² over the outputs of an inference, in three readings."""

    drawn: Fraction = Fraction(0)
    chosen: Fraction = Fraction(0)
    worst: Fraction = Fraction(0)

    def __add__(self, other: Shift) -> Shift:
        return Shift(self.drawn + other.drawn, self.chosen + other.chosen, self.worst + other.worst)


def row(norm: int, squares: int, outputs: int) -> Shift:
    """Of so many outputs of a row of integer weights with Σ|w| = norm and Σw² = squares."""
    errors, roundings = ERROR * squares + PRODUCTS, Fraction(norm + 2, 2)
    root = math.isqrt(math.ceil(errors)) + 1
    return Shift(
        outputs * (errors + ROUNDING * squares + 4 * ROUNDING),  # θ of y and of the mask may depend on each other
        outputs * (errors + 2 * root * roundings + roundings**2),
        Fraction(outputs * parameters.noise(norm) ** 2),
    )


def layer(weight: NDArray[np.int64], outputs: int) -> Shift:
    """Of a convolution or a matrix. weight: (O, …), Σ|w| of a row below 2^31; outputs: of each row."""
    rows = np.abs(weight.reshape(len(weight), -1))
    norms, squares = rows.sum(1).tolist(), (rows * rows).sum(1).tolist()
    return sum((row(*one, outputs) for one in zip(norms, squares, strict=True)), Shift())


def distance(squares: Fraction, inferences: int, flood_bits: int = parameters.FLOOD_BITS) -> float:
    """log2 of the bound for so many inferences; squares: one of the sums of `Shift`."""
    squared = Fraction(INFORMATION, 100) * inferences * squares / 16
    if not squared:
        return -math.inf
    return (math.log2(squared.numerator) - math.log2(squared.denominator)) / 2 - flood_bits
