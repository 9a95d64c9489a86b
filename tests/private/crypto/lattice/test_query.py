"""One query of a convolution with hints, whole: right at the worst case, wrong just beyond, with the noise foretold.

Written from the construction, on the lattice's functions: hint h_j = Σ a_i·w_ji + M_g·u_τ + e'_j; ciphertext
b_i = ⟨a_i, s⟩ + e_i + message(r_i); β_g = M_gᵀ·s + ε_g; answer round(Σ b_i·w_ji + ⟨β_g, u_τ⟩ + flood − message(mask)).
"""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from lattice_integers import signed, using, values

from parelu.private.crypto import kernels
from parelu.private.crypto.lattice import parameters, residues, sampling
from parelu.private.crypto.lattice.parameters import DEGREE, LARGEST_NORM, MATRICES, PRIMES, Q_KEPT, RANK, P, Q
from parelu.private.crypto.lattice.transforms import classes, dot, forward, inverse, partner
from parelu.private.crypto.prg import Stream, fresh_seed

SIDE, ROW = 4, 5  # of the map; of the sequence, in which a row ends with a zero
LEAD, SENT = ROW + 1, 32  # entries before index 0, and all
N = 32  # points of the sequences' transforms
CLASSES = DEGREE // N  # channels in one polynomial
TAPS = np.array([ROW * i + j for i in (-1, 0, 1) for j in (-1, 0, 1)])
SLOTS = np.array([ROW * i + j for i in range(SIDE) for j in range(SIDE)])
INDEX = (SLOTS[None] + TAPS[:, None] + LEAD).astype(np.int32)
PLACES, SIGNS = np.arange(-LEAD, SENT - LEAD) % N, np.where(np.arange(-LEAD, SENT - LEAD) < 0, -1.0, 1.0)


@dataclasses.dataclass
class Drawn:
    """All that is drawn for a layer of weights (O, C, 3, 3), in float64; polynomials first on the degree."""

    a: Any  # (6, DEGREE, uploads, RANK), transforms
    m: Any  # (6, DEGREE, MATRICES, RANK, RANK), transforms
    s: Any  # (DEGREE, RANK)
    u: Any  # (DEGREE, RANK, taus)
    hint_errors: Any  # (DEGREE, RANK, O)
    errors: Any  # (DEGREE, uploads)
    beta_errors: Any  # (DEGREE, MATRICES, RANK)
    flood: Any  # (6, O, slots)
    mask: Any  # uint64 (O, slots)

    @classmethod
    def fresh(cls, weight: Any) -> "Drawn":
        stream, outputs, uploads = Stream(fresh_seed(), "test"), len(weight), -(-weight.shape[1] // CLASSES)
        return cls(
            np.stack([sampling.uniform(stream, (DEGREE, uploads, RANK), k) for k in range(6)]).astype(float),
            np.stack([sampling.uniform(stream, (DEGREE, MATRICES, RANK, RANK), k) for k in range(6)]).astype(float),
            sampling.ternary(stream, (DEGREE, RANK)),
            sampling.ternary(stream, (DEGREE, RANK, -(-outputs // MATRICES))),
            sampling.binomial(stream, (DEGREE, RANK, outputs)),
            sampling.binomial(stream, (DEGREE, uploads)),
            sampling.binomial(stream, (DEGREE, MATRICES, RANK)),
            sampling.flood(stream, outputs * len(SLOTS)).reshape(6, outputs, -1),
            stream.bytes(8 * outputs * len(SLOTS)).view(np.uint64).reshape(outputs, -1),
        )


def times(a: Any, b: Any, k: int) -> Any:
    return residues.reduce(a * b, k)


def polynomials(weight: Any) -> Any:
    """(DEGREE, O, uploads): w_ji, so that class 0 of b_i·w_ji is the convolution: X^−(v + K·tap) for channel v."""
    outputs, channels = weight.shape[:2]
    out = np.zeros((DEGREE, outputs, -(-channels // CLASSES)))
    for channel in range(channels):
        upload, v = divmod(channel, CLASSES)
        for tap, offset in enumerate(TAPS):
            place = -(v + CLASSES * int(offset))
            sign = 1 if place // DEGREE % 2 == 0 else -1
            out[place % DEGREE, :, upload] += sign * weight[:, channel].reshape(outputs, -1)[:, tap]
    return out


def hints(weight: Any, drawn: Drawn) -> Any:
    """(6, DEGREE, RANK, O): h_j, modulo q, untransformed."""
    rows = []
    for k in range(6):
        w, u = forward(polynomials(weight), k), forward(drawn.u, k)
        total = inverse(sum(times(drawn.a[k][:, i, :, None], w[:, None, :, i], k) for i in range(w.shape[2])), k)
        for j in range(len(weight)):
            tau, g = divmod(j, MATRICES)
            masked = residues.reduce(sum(times(drawn.m[k][:, g, :, r], u[:, None, r, tau], k) for r in range(RANK)), k)
            total[:, :, j] += inverse(masked, k)
        rows.append(residues.reduce(total + drawn.hint_errors, k))
    return np.stack(rows)


def betas(drawn: Drawn, k: int) -> Any:
    """(DEGREE, MATRICES, RANK): M_gᵀ·s + ε_g."""
    s = forward(drawn.s, k)
    total = residues.reduce(sum(times(drawn.m[k][:, :, r], s[:, r, None, None], k) for r in range(RANK)), k)
    return residues.reduce(inverse(total, k) + drawn.beta_errors, k)


def upload(r: Any, drawn: Drawn) -> Any:
    """(6, C, SENT): of b the coefficients in use, as sequences from index −LEAD on; r: uint64 (C, SIDE, SIDE)."""
    padded = np.zeros((drawn.errors.shape[1] * CLASSES, N), np.uint64)
    padded[: len(r), SLOTS] = r.reshape(len(r), -1)
    message = padded.reshape(-1, CLASSES, N).transpose(2, 1, 0).reshape(DEGREE, -1)
    ready = []
    for k in range(6):
        s = forward(drawn.s, k)
        total = residues.reduce(sum(times(drawn.a[k][:, :, i], s[:, i, None], k) for i in range(RANK)), k)
        ready.append((inverse(total, k) + drawn.errors).reshape(-1))
    b = residues.ciphertext(np.stack(ready), message.reshape(-1)).reshape(6, N, CLASSES, -1)
    return b.transpose(0, 3, 2, 1).reshape(6, -1, N)[:, : len(r), PLACES] * SIGNS


def every(b: Any, index: Any) -> list[Any]:
    """(parts, taps) of all columns: each tap of each part."""
    return [axis.reshape(-1).astype(np.int32) for axis in np.indices((b.shape[1], len(index)))]


def sums(weight: Any, b: Any, drawn: Drawn) -> tuple[Any, Any]:
    """What the server adds up: products with the weights, and ⟨β_g, u_τ⟩; (6, O, slots) each."""
    body = residues.pack(b.reshape(6, -1), PRIMES)
    b = residues.unpack(np.frombuffer(body, np.uint8), PRIMES, b[0].size).reshape(b.shape)
    products = weight.reshape(len(weight), -1).astype(np.float64) @ residues.columns(b, *every(b, INDEX), INDEX)
    masks = []
    for k in range(6):
        u = forward(classes(drawn.u, N).reshape(N, -1, drawn.u.shape[2]), k).astype(np.int32)
        beta = partner(betas(drawn, k).transpose(0, 2, 1), N).reshape(N, -1, MATRICES)
        found = inverse(dot(u, forward(beta, k), k), k)[SLOTS]  # (slots, MATRICES, taus)
        masks.append(found.transpose(2, 1, 0).reshape(-1, len(SLOTS))[: len(weight)])
    return products.reshape(len(weight), 6, -1).transpose(1, 0, 2), np.stack(masks)


def dropped(rows: Any) -> Any:
    return residues.drop(rows.reshape(6, -1)).reshape(3, *rows.shape[1:])


def decoded(answer: Any, hint: Any, s: Any) -> Any:
    """uint64 (O, slots); answer: (3, O, slots), hint: (3, DEGREE, RANK, O)."""
    rows = []
    for k in range(3):
        h = forward(classes(hint[k], N).reshape(N, -1, hint.shape[3]), k).astype(np.int32)
        sigma = forward(partner(s, N).reshape(N, -1, 1), k)
        rows.append(answer[k] - inverse(dot(h, sigma, k), k)[SLOTS, 0].T)
    return residues.decode(np.stack(rows).reshape(3, -1)).reshape(answer.shape[1:])


def convolution(weight: Any, r: Any) -> Any:
    """Modulo 2^64, by the definition; (O, slots)."""
    padded = np.pad(r, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), SIDE, SIDE), np.uint64)
    for i, j in np.ndindex(3, 3):
        window = padded[:, i : i + SIDE, j : j + SIDE].reshape(len(r), -1)
        out += (weight[:, :, i, j].astype(np.int64).view(np.uint64) @ window).reshape(out.shape)
    return out.reshape(len(weight), -1)


def random_case(outputs: int, channels: int, largest: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(outputs)
    weight = rng.integers(-largest, largest + 1, (outputs, channels, 3, 3))
    return weight, rng.integers(0, 1 << 64, (channels, SIDE, SIDE), np.uint64)


@pytest.mark.parametrize("name", kernels.NAMES)
def test_a_query_gives_the_products_less_the_mask(name):
    """Of two uploads and two u, with all that is drawn honestly."""
    weight, r = random_case(10, 70, 100)
    with using(name):
        drawn = Drawn.fresh(weight)
        products, masks = sums(weight, upload(r, drawn), drawn)
        answer = residues.answer(products, masks, drawn.mask, Stream(fresh_seed(), "flood"))
        found = decoded(answer, dropped(hints(weight, drawn)), drawn.s)
    np.testing.assert_array_equal(found, convolution(weight, r) - drawn.mask)


def worst_case(slot: int) -> tuple[Any, Any, Drawn]:
    """A row of Σ|w| = 2^28, all errors ±21 and of the sign that adds up at a slot, s of ones, and hints that all round
    by 1/2, likewise: of all that is drawn a_0 alone gives way to it, and is solved for."""
    weight, r = random_case(1, 70, 400_000)
    weight = weight + (weight == 0)
    weight[0, 5, 1, 1] += (LARGEST_NORM - np.abs(weight).sum()) * np.sign(weight[0, 5, 1, 1])
    assert np.abs(weight).sum() == LARGEST_NORM
    drawn = Drawn.fresh(weight)
    place = CLASSES * int(SLOTS[slot])
    wraps = np.where(np.arange(DEGREE) <= place, 1.0, -1.0)  # of coefficient i in that of `place` of a product by ones
    drawn.s[:] = 1
    w = polynomials(weight)[:, 0]
    drawn.errors[:] = 21 * np.roll(np.sign(w)[::-1], place + 1, 0) * wraps[:, None]
    drawn.u[:] = 1
    drawn.beta_errors[:] = 21 * wraps[:, None, None]
    drawn.hint_errors[:] = -21 * wraps[:, None, None]
    drawn.flood = np.array([(3 << parameters.FLOOD_BITS) % p for p in PRIMES], float)[:, None, None] + np.zeros((1, 16))
    drawn.a[:, :, 0] = 0
    rest, half = hints(weight, drawn), np.array([P // 2 % p for p in PRIMES], float)
    for k, prime in enumerate(PRIMES):
        h = half[k] * wraps[:, None] - rest[k, :, :, 0]  # of remainder ±(P − 1)/2, rounded towards 0
        powers = forward(w[:, 0], k)
        assert powers.all(), "w_0 has an inverse"
        inverses = np.array([pow(int(x), -1, prime) for x in powers], float)
        drawn.a[k, :, 0] = times(forward(residues.reduce(h, k), k), residues.reduce(inverses, k)[:, None], k)
    return weight, r, drawn


@pytest.mark.parametrize("name", kernels.NAMES)
@pytest.mark.parametrize("slot", [0, 9])
def test_the_worst_case_is_right_and_just_beyond_is_wrong(name, slot):
    with using(name):
        weight, r, drawn = worst_case(slot)
        hint, (products, masks) = hints(weight, drawn), sums(weight, upload(r, drawn), drawn)
        total = [residues.reduce(products[k] + masks[k], k) + drawn.flood[k] for k in range(6)]
        total = np.stack(total) - residues.message(drawn.mask.reshape(-1)).reshape(6, 1, -1)
        wanted = convolution(weight, r) - drawn.mask
        worst = Fraction((3 << parameters.FLOOD_BITS) + parameters.noise(LARGEST_NORM), P) + Fraction(DEGREE * RANK, 2)
        threshold = Fraction(Q_KEPT, 1 << 65)
        for more, is_right in ((0, True), (threshold - worst - 3, True), (threshold - worst + 1, False)):
            rows = [residues.reduce(total[k] + int(more * P) % p, k) for k, p in enumerate(PRIMES)]
            found = decoded(dropped(np.stack(rows)), dropped(hint), drawn.s)
            assert (found[0, slot] == wanted[0, slot]) == is_right
            others = np.arange(16) != slot
            assert (found[:, others] == wanted[:, others]).all(), "the roundings do not add up at the other slots"


def test_the_noise_modulo_q_is_within_its_bound_and_of_the_foretold_size():
    """A product, an error or a transposition that is missing would show by a third and more."""
    weight, r = random_case(64, 70, 3)
    drawn = Drawn.fresh(weight)
    (products, masks), hint = sums(weight, upload(r, drawn), drawn), hints(weight, drawn)
    found, y = [], convolution(weight, r) - drawn.mask
    message = residues.message(drawn.mask.reshape(-1)).reshape(6, *y.shape)
    for k in range(6):
        h, s = forward(hint[k], k), forward(drawn.s, k)
        hs = inverse(residues.reduce(sum(times(h[:, i], s[:, i, None], k) for i in range(RANK)), k), k)
        total = residues.reduce(products[k], k) + masks[k] - message[k] - hs[SLOTS * CLASSES].T
        found.append(residues.reduce(total, k).reshape(-1))
    scaled = [(Q * int(value) + (1 << 63)) >> 64 for value in y.reshape(-1)]
    noise = np.array([signed(v - m, Q) for v, m in zip(values(np.stack(found), PRIMES), scaled, strict=True)], float)
    assert np.abs(noise).max() <= parameters.noise(int(np.abs(weight).sum((1, 2, 3)).max()))
    squares = (weight.astype(float) ** 2).sum((1, 2, 3)).mean()
    variance = (21 / 2 + 1 / 12) * squares + 2 * 21 / 2 * (2 / 3) * RANK * DEGREE
    assert (noise**2).mean() == pytest.approx(variance, rel=0.2)
