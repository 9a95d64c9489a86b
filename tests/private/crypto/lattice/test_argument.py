"""What the argument for hints says of an answer, on a model of the construction in integers.

h_j = Σ a_i·w_ji + M_g·u + e'_j is the hint of output j, c_j = Σ b_i·w_ji + ⟨β_g, u⟩ + f − round(q·mask/t) its answer,
with b_i = ⟨a_i, s⟩ + e_i + round(q·r_i/t) and β_g = M_gᵀ·s + ε_g: then c_j − ⟨h_j, s⟩ = round(q·y/t) + v + f for
y = W·r − mask.
"""

import copy
import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from negacyclic import T, balanced, inner, scaled

from parelu.private.crypto import noise
from parelu.private.crypto.lattice import accounting, parameters
from parelu.private.crypto.prg import Stream, fresh_seed

RANK, DEGREE = parameters.RANK, 256
Q, KEPT, DROPPED = parameters.Q, parameters.Q_KEPT, parameters.P
POLYNOMIALS, OUTPUTS = 2, parameters.MATRICES


def drop(x):
    return np.array([(2 * int(c) + DROPPED) // (2 * DROPPED) % KEPT for c in x], object)


def uniform(stream, modulus, *shape):
    """modulus: below 2^160, or a power of two."""
    words = stream.bytes(24 * math.prod(shape)).reshape(-1, 24)
    return np.array([int.from_bytes(word.tobytes(), "little") % modulus for word in words], object).reshape(shape)


def small(stream, sampler, *shape):
    return sampler(stream, math.prod(shape)).astype(object).reshape(shape)


class Model:
    """What all see of a model, and what the server keeps of it: weights, u, and the errors of the hints."""

    def __init__(self, weights):
        """weights: (OUTPUTS, POLYNOMIALS, DEGREE)."""
        stream = Stream(fresh_seed(), "model")
        self.a = uniform(stream, Q, POLYNOMIALS, RANK, DEGREE)
        self.matrices = uniform(stream, Q, OUTPUTS, RANK, RANK, DEGREE)
        self.u = small(stream, noise.ternary, RANK, DEGREE)
        self.errors = small(stream, noise.binomial, OUTPUTS, RANK, DEGREE)
        self.publish(weights)

    def publish(self, weights):
        self.weights = weights
        self.hints = (np.array([self.products(g) for g in range(OUTPUTS)]) + self.errors) % Q

    def products(self, g):
        """Σ a·w + M·u."""
        masks = [inner(row, self.u) for row in self.matrices[g]]
        return [inner(self.a[:, k], self.weights[g]) + mask for k, mask in enumerate(masks)]


class Query:
    """A client's coins and messages, all drawn."""

    def __init__(self, model):
        self.model, stream = model, Stream(fresh_seed(), "query")
        self.s = small(stream, noise.ternary, RANK, DEGREE)
        self.errors = small(stream, noise.binomial, POLYNOMIALS, DEGREE)
        self.epsilon = small(stream, noise.binomial, OUTPUTS, RANK, DEGREE)
        self.r = uniform(stream, T, POLYNOMIALS, DEGREE)
        self.y = uniform(stream, T, OUTPUTS, DEGREE)  # what it is to learn
        products = [inner(a, self.s) for a in model.a]
        self.b = np.array([x + e + scaled(r) for x, e, r in zip(products, self.errors, self.r, strict=True)]) % Q
        self.beta = self.under(model.matrices.swapaxes(1, 2))

    def under(self, transposed):
        return np.array([[inner(row, self.s) for row in matrix] for matrix in transposed]) + self.epsilon

    def share(self, model, g):
        return inner(self.r, model.weights[g], T)

    def product(self, model, g):
        """An answer before mask, flooding and drop."""
        return inner(self.b, model.weights[g]) + inner(self.beta[g], model.u)

    def noise(self, model, g):
        """v of an answer with the mask that makes it y."""
        answer = self.product(model, g) - scaled((self.share(model, g) - self.y[g]) % T)
        return balanced(answer - inner(model.hints[g], self.s) - scaled(self.y[g]))


@pytest.fixture(scope="module")
def model():
    return Model(np.random.default_rng(0).choice([-1, 1], (OUTPUTS, POLYNOMIALS, DEGREE)).astype(object))


@pytest.fixture(scope="module")
def query(model):
    return Query(model)


def test_the_noise_of_an_answer_is_what_the_argument_says(model, query):
    for g in range(0, OUTPUTS, 3):
        v, weight = query.noise(model, g), model.weights[g]
        norm = int(np.abs(weight).sum())
        assert np.abs(v).max() <= parameters.noise(norm)
        errors = inner(query.errors, weight) + inner(query.epsilon[g], model.u) - inner(model.errors[g], query.s)
        roundings = v - balanced(errors)
        assert 0 < np.abs(roundings).max() <= norm / 2 + 1


def test_a_dropped_answer_is_a_function_of_y_and_of_noise_and_flooding_alone(model, query):
    """As a simulator makes it; a mask that comes off after the drop leaves a rounding that depends on W·r."""
    stream = Stream(fresh_seed(), "server")
    width = 2 << parameters.FLOOD_BITS
    flood = sum(uniform(stream, width, DEGREE) - width // 2 for _ in range(3))
    y, product = query.y[0], query.product(model, 0)
    mask = (query.share(model, 0) - y) % T
    simulated = drop((inner(model.hints[0], query.s) + scaled(y) + query.noise(model, 0) + flood) % Q)
    assert (drop((product + flood - scaled(mask)) % Q) == simulated).all()
    late = (drop((product + flood) % Q) - scaled(mask, KEPT)) % KEPT
    assert (late != simulated).any()


@dataclasses.dataclass(frozen=True)
class Flooding:
    """The sum of so many uniforms on [−half, half)."""

    half: int
    terms: int = noise.TERMS

    def draw(self, rng, *shape):
        return rng.integers(-self.half, self.half, (self.terms, *shape)).sum(0)

    def log_density(self, x):
        """Of the sum of one or three continuous ones, but for a constant."""
        z = np.abs(x + self.terms / 2) / (2 * self.half)
        with np.errstate(divide="ignore"):
            if self.terms == 1:
                return np.log((z <= 0.5).astype(float))
            return np.log(np.where(z < 0.5, 0.75 - z**2, np.maximum(1.5 - z, 0) ** 2 / 2))

    def advantage(self, v, other, trials=1500):
        """Of the best test of whether v or the other noise is behind the flooding, measured."""
        rng = np.random.default_rng()
        won = 0.0
        for truth in (v, other):
            seen = truth + self.draw(rng, trials, len(v))
            with np.errstate(invalid="ignore"):
                ratio = (self.log_density(seen - v) - self.log_density(seen - other)).sum(1)
            assert not np.isnan(ratio).any()
            won += float((ratio > 0).mean()) * (1 if truth is v else -1)
        return won


@pytest.fixture(scope="module")
def noises(model, query):
    """v of all outputs under two sets of weights, for the same coins, u and e'."""
    other = copy.copy(model)
    other.publish(-model.weights)
    return [np.concatenate([query.noise(m, g) for g in range(OUTPUTS)]).astype(float) for m in (model, other)]


@pytest.mark.parametrize("predicted", [0.5, 0.2])
def test_two_sets_of_weights_are_told_apart_as_well_as_predicted_and_no_better(noises, predicted):
    v, other = noises
    squares = Fraction(int(((v - other) ** 2).sum()))
    half = round(2.0 ** accounting.distance(squares, 1, 0) / predicted)
    found = Flooding(half).advantage(v, other)
    error = 4 / math.sqrt(1500)
    assert predicted / 2 - error < found < predicted + error


def test_without_flooding_they_are_and_by_a_single_uniform_too(noises):
    v, other = noises
    assert (v != other).any()
    half = round(2.0 ** accounting.distance(Fraction(int(((v - other) ** 2).sum())), 1, 0) / 0.2)
    assert Flooding(half, terms=1).advantage(v, other) > 0.9


def test_a_client_with_a_malformed_beta_reads_u_behind_mask_and_flooding(model, query):
    """So phases are audited: a third of q/t in β puts u where neither the mask nor the flooding covers it."""
    deviating = copy.copy(query)
    deviating.beta = query.beta.copy()
    deviating.beta[0, 0, 0] += Q // (3 * T)
    stream = Stream(fresh_seed(), "server")
    width = 2 << parameters.FLOOD_BITS
    flood = sum(uniform(stream, width, DEGREE) - width // 2 for _ in range(3))
    answer = deviating.product(model, 0) + flood - scaled(uniform(stream, T, DEGREE))
    left = balanced(answer - inner(model.hints[0], query.s))
    y = [(2 * T * int(x) + Q) // (2 * Q) for x in left]
    read = [round(3 * T * int(below) / Q) for below in left - scaled(y)]
    assert np.mean(np.array(read) == model.u[0]) > 0.8
