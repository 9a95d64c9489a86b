"""What hints and answers of the scheme hold beside W·r: rebuilt modulo q, by products without transforms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from negacyclic import T, balanced, inner, integers, scaled, times

from parelu.fusion.composition import Convolution
from parelu.fusion.hint_layout import Layer, Upload
from parelu.private.crypto import noise
from parelu.private.crypto.lattice import accounting, parameters, scheme
from parelu.private.crypto.lattice.residues import ciphertext
from parelu.private.crypto.lattice.transforms import inverse
from parelu.private.crypto.prg import fresh_seed

OUTPUTS, SIDE, LARGEST = 9, 14, 20  # two u; weights such that each kind of error has about the same part
UPLOAD = Upload(0, (Layer(1, 0, Convolution(4, OUTPUTS, (SIDE, SIDE), (3, 3), (1, 1), (1, 1))),))
(READER,) = UPLOAD.readers
MATRICES = READER.matrices
ROWS = [0, 7, 8]  # under each u


def coefficients(transforms):
    """(DEGREE, …) transforms modulo each prime → integers."""
    return integers(np.stack([inverse(x.astype(np.float64), k) for k, x in enumerate(transforms)]))


def columns(polynomials):
    """(DEGREE, a, …) → a polynomials of each."""
    return np.moveaxis(polynomials, 0, -1)


@pytest.fixture(scope="module")
def model():
    """weight, u and public polynomials as integers; hints before P is dropped."""
    seed, public = fresh_seed(), fresh_seed()
    weight = np.random.default_rng(0).integers(-LARGEST, LARGEST + 1, (OUTPUTS, 4, 3, 3))
    hiding, kept = scheme.Hiding(seed, public, READER.rows, MATRICES), []
    polynomials = scheme.public_polynomials(public, 0, UPLOAD.polynomials)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheme, "drop", lambda x: kept.append(x) or x[: len(parameters.KEPT)])
        for _ in hiding.hints(polynomials, lambda rows: READER.polynomials(READER.matrix(weight), rows)):
            pass
    (found,) = kept
    hints = integers(found).reshape(parameters.DEGREE, parameters.RANK, READER.rows)
    return SimpleNamespace(public=public, weight=weight, hiding=hiding, polynomials=polynomials, hints=columns(hints))


@pytest.fixture(scope="module")
def errors(model):
    """e'_ρ = h_ρ − Σ a_i·w_ρi − M_g·u_τ of some rows, (RANK · rows, DEGREE)."""
    a = columns(coefficients(model.polynomials))  # (RANK, polynomials, DEGREE)
    w = columns(READER.polynomials(READER.matrix(model.weight), slice(0, READER.rows)).astype(np.int64).astype(object))
    m = coefficients(scheme.public_matrices(model.public))
    m = columns(m).reshape(parameters.RANK, -1, parameters.RANK, parameters.DEGREE)
    u = columns(model.hiding.u().astype(np.int64).astype(object))
    found = []
    for rank in range(parameters.RANK):
        for row in ROWS:
            tau, g = divmod(row, MATRICES)
            product = inner(a[rank], w[:, row]) + inner(m[rank, g], u[:, tau])
            found.append(balanced(model.hints[rank, row] - product))
    return np.array(found)


def test_hints_less_their_products_are_binomial(errors):
    found = errors.reshape(-1).astype(int)
    expected = np.array([math.comb(42, k) for k in range(43)]) / 2**42 * len(found)
    assert np.abs(found).max() <= noise.ETA
    counts, common = np.bincount(found + noise.ETA, minlength=43), expected > 10
    assert ((counts - expected)[common] ** 2 / expected[common]).sum() < 70  # some 24 degrees
    assert len({row.tobytes() for row in errors.astype(int)}) == len(errors)


def test_the_noise_of_answers_is_within_its_bound_and_of_the_size_predicted(model):
    secrets = scheme.Secrets(fresh_seed(), model.public, (MATRICES,))
    rng = np.random.default_rng(1)
    r = rng.integers(0, 2**64, 4 * SIDE * SIDE, np.uint64, endpoint=False)
    masks = np.stack(secrets.masks(0, model.polynomials, 1)).reshape(6, UPLOAD.points, UPLOAD.classes, 1, -1)
    masks = masks[:, UPLOAD.coefficients].transpose(0, 3, 4, 2, 1)
    masks = masks.reshape(6, 1, -1, len(UPLOAD.coefficients))[:, :, : UPLOAD.parts]
    message = UPLOAD.pack(r)
    sent = ciphertext(np.ascontiguousarray(masks).reshape(6, -1), message.reshape(-1)).reshape(6, UPLOAD.parts, -1)

    matrix = READER.matrix(model.weight)[0].astype(np.int64).astype(object)
    gathered = integers(READER.gather(sent, 0).swapaxes(0, 1))  # (columns, slots)
    halves = np.stack([message[0] % 2**32, message[0] >> np.uint64(32)]).astype(np.float64)
    low, high = (half.astype(np.int64).astype(object) for half in READER.gather(halves, 0).swapaxes(0, 1))
    share = low + 2**32 * high
    u = [scheme.as_classes(model.hiding.u(), UPLOAD.points, k) for k in scheme.ALL]
    taken = scheme.times_u(u, scheme.Betas(secrets.beta()), UPLOAD.points, list(range(MATRICES)), MATRICES)
    taken = integers(np.stack(taken))[READER.positions, 0, : READER.rows].T

    y = rng.integers(0, 2**64, (READER.rows, READER.slots), np.uint64, endpoint=False).astype(object)
    mask = (matrix @ share - y) % T
    s = columns(secrets.secrets.astype(np.int64).astype(object))[:, 0]
    taken_off = np.array(
        [inner(model.hints[:, row], s)[UPLOAD.classes * READER.positions] for row in range(READER.rows)]
    )
    v = balanced(matrix @ gathered + taken - scaled(mask) - taken_off - scaled(y))

    norms, squares = np.abs(matrix).sum(1), (matrix**2).sum(1)
    assert all(np.abs(row).max() <= parameters.noise(norm) for row, norm in zip(v, norms, strict=True))
    predicted = sum((accounting.row(0, square, 1).drawn for square in squares), 0) / READER.rows
    # Left out, an error in b, β or a hint takes a third away; a wrong transpose or scaling is far off.
    assert abs(float((v.astype(float) ** 2).mean()) / float(predicted) - 1) < 0.16


def test_products_without_transforms_are_those_with_them(model):
    one, other = (x[0] for x in (columns(coefficients(model.polynomials)), model.hints))
    direct = [0] * parameters.DEGREE
    for i, x in enumerate(other[0][:3]):  # a few terms of the schoolbook's
        for j, y in enumerate(one[0]):
            at, sign = (i + j) % parameters.DEGREE, -1 if i + j >= parameters.DEGREE else 1
            direct[at] += sign * x * y
    few = np.array([*other[0][:3], *[0] * (parameters.DEGREE - 3)], object)
    assert (balanced(np.array(direct, object)) == balanced(times(few, one[0]))).all()
