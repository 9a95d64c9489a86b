"""Homomorphic products against the ring's linear maps, at the limit of the noise, and against deviating clients."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.errors import ProtocolError, UserError
from parelu.fusion.packing import DEGREE, packing
from parelu.private.crypto import he, noise
from parelu.private.crypto.prg import Stream, fresh_seed
from parelu.private.crypto.ring import LinearMap, Ring
from parelu.private.crypto.seal import BITS, Context
from parelu.private.lowering.layers import convolution
from parelu.private.lowering.ops import Conv, Linear

EVERY, FIRST = np.arange(DEGREE), 256
PLAIN = Ring(BITS)  # the plaintext modulus
USUAL = he.parameters(1 << 22, 200_000)
ONE = np.eye(1, DEGREE, dtype=np.int64)[0]


def stream() -> Stream:
    return Stream(fresh_seed(), "test")


def array(body: bytes) -> np.ndarray:
    return np.frombuffer(body, np.uint8)


def parties_of(parameters: he.Parameters) -> tuple[he.Client, he.Server]:
    client = he.Client(parameters, stream())
    return client, he.Server(parameters, array(client.public_key()), stream())


@pytest.fixture(scope="module")
def parties() -> tuple[he.Client, he.Server]:
    return parties_of(USUAL)


def answer(server: he.Server, upload: np.ndarray, weight: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """To one upload and one polynomial of weights, all coefficients."""
    total = server.blank()
    server.accumulate(total, server.open(upload), server.weight(weight))
    return array(server.answer(total, np.zeros(DEGREE, np.uint64) if mask is None else mask, EVERY))


@settings(max_examples=15)
@given(st.data())
def test_a_layers_shares_add_up_to_its_product(parties, data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    client, server = parties
    if draw(0, 4):
        groups = draw(1, 2)
        kernel, stride, padding = (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2)), (draw(0, 2), draw(0, 2))
        source = groups * draw(1, 8), draw(3, 40), draw(3, 40)
        op = Conv(0, groups * draw(1, 8), kernel, stride, padding, groups)
    else:
        source, op = (draw(1, 500),), Linear(0, draw(1, 40))
    rng = np.random.default_rng(draw(0, 9))
    weight = rng.integers(-1 << 11, 1 << 11, op.weight_shape(source))
    values = rng.integers(0, 1 << 64, source, np.uint64)
    map_ = LinearMap(weight, op.stride, op.padding, op.groups) if isinstance(op, Conv) else LinearMap(weight)
    expected = PLAIN.reduce(map_(values[None]).reshape(-1))
    packed = packing(convolution(op, source))
    inputs = [server.open(array(client.encrypt(polynomial))) for polynomial in packed.pack_input(values.reshape(-1))]
    mask, got = stream().elements(len(expected)), np.zeros(len(expected), np.uint64)
    for block in range(packed.output_blocks):
        for tile in range(packed.tiles):
            total = server.blank()
            for read in packed.reads(block):
                plain = server.weight(packed.pack_weight(weight.reshape(len(weight), -1), block, read))
                server.accumulate(total, inputs[tile * packed.input_blocks + read], plain)
            coefficients, positions = packed.needed(block, tile)
            body = server.answer(total, mask[positions], coefficients)
            assert len(body) == client.parameters.answer_bytes(len(coefficients))
            got[positions] = client.decrypt(array(body), coefficients)
    np.testing.assert_array_equal(PLAIN.reduce(got + mask), expected)


def worst(client: he.Client, server: he.Server, norm: int) -> tuple[np.ndarray, np.ndarray]:
    """(answer's values, W·r) for a polynomial of weights with Σ|w| = norm."""
    values = stream().elements(DEGREE)
    weight = np.full(DEGREE, norm // DEGREE)
    weight[0] += norm - weight.sum()
    prefix = np.cumsum(values)
    ones = np.uint64(2) * prefix - prefix[-1:]  # times 1 + X + … + X^(N − 1)
    expected = ones * np.uint64(norm // DEGREE) + values * np.uint64(norm % DEGREE)
    got = client.decrypt(answer(server, array(client.encrypt(values)), weight), EVERY)
    return got, PLAIN.reduce(expected)


def largest_flooding(parameters: he.Parameters, sign: int) -> np.ndarray:
    """(primes, N): the end of the flooding's range at every coefficient."""
    value = sign * noise.TERMS * ((1 << (parameters.flood_bits - 1)) - (sign > 0))
    edge = [value % prime for prime in he.context(parameters).primes]
    return np.repeat(np.array(edge, np.uint64)[:, None], DEGREE, 1)


def limit(parameters: he.Parameters) -> int:
    """The largest norm for which answers are proved right, as far as weights below 2^49 make one."""
    left = parameters.room - (noise.TERMS << (parameters.flood_bits - 1)) - he.ZERO - 2
    return min(left // he.FRESH, DEGREE << 49)


@pytest.mark.parametrize("parameters", he.CHOICES)
@pytest.mark.parametrize("sign", [1, -1])
def test_at_the_proved_limit_answers_are_exact(parameters, sign, monkeypatch):
    """With the largest weights and the largest flooding noise at every coefficient."""
    monkeypatch.setattr(noise, "covers", lambda *_: True)
    norm = limit(parameters)
    assert parameters.holds(norm, 1)
    assert not parameters.holds(parameters.room // he.FRESH, 1)
    largest = largest_flooding(parameters, sign)
    monkeypatch.setattr(noise, "flooding", lambda *_: largest)
    got, expected = worst(*parties_of(parameters), norm)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("parameters", he.CHOICES)
def test_beyond_the_limit_answers_are_wrong(parameters, monkeypatch):
    """One more bit of flooding would be too much."""
    bits = parameters.flood_bits + 1
    monkeypatch.setattr(he.Parameters, "flood_bits", bits)
    largest = largest_flooding(parameters, 1)
    monkeypatch.setattr(noise, "flooding", lambda *_: largest)
    got, expected = worst(*parties_of(parameters), 1 << 20)
    assert (got != expected).mean() > 0.1


def test_weights_without_room_for_noise_are_refused():
    with pytest.raises(UserError, match="no room for noise at 128 bits of security"):
        he.parameters(1 << 52, 1000)


def test_less_than_128_bits_of_security_is_refused():
    assert all(sum(choice.bits) + he.UNUSED <= 218 for choice in he.CHOICES)
    with pytest.raises(UserError, match="SEAL refuses primes"):
        Context((60, 60, 60, 40))


def test_parameters_grow_with_weights_and_with_coefficients():
    sizes = [he.parameters(1 << norm, 1 << 18).upload_bytes for norm in range(8, 34, 3)]
    assert sizes == sorted(sizes)
    assert he.CHOICES.index(he.parameters(1 << 20, 1 << 24)) >= he.CHOICES.index(he.parameters(1 << 20, 1 << 4))


def fraction(client: he.Client, body: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """(n,): an answer's noise as a part of what a plaintext's 1 is worth, in [0, 1): masks and W·r are multiples."""
    context, widths = client.context, client.parameters.widths[:2]
    primes, split = context.primes[:2], DEGREE * sum(widths)
    residues = np.zeros((2, 2, DEGREE), np.uint64)
    residues[1] = he._unpack(body[:split], widths, primes, DEGREE)
    c0 = he._unpack(body[split:], widths, primes, len(coefficients))
    found = context.ciphertext(residues)
    context.evaluator.transform_to_ntt_inplace(found)
    product = context.product(found, context.factor(client.secret, context.last))
    context.evaluator.transform_from_ntt_inplace(product)
    rows = (c0 + context.words(product)[1][:, coefficients]) % context.moduli[:2]
    modulus = primes[0] * primes[1]
    basis = [modulus // p * pow(modulus // p, -1, p) for p in primes]
    joined = [sum(int(x) * b for x, b in zip(column, basis, strict=True)) for column in rows.T]
    return np.array([(value << BITS) % modulus / modulus for value in joined])


def scale(parameters: he.Parameters) -> int:
    """q/t: what a plaintext's 1 is worth."""
    return math.prod(he.context(parameters).primes) >> BITS


def test_an_answers_noise_is_the_floodings(parties, monkeypatch):
    """Its distribution is what was drawn, for small weights, for large ones and for none."""
    client, server = parties

    def noise_of(weight: np.ndarray) -> np.ndarray:
        """Over the flooding's width."""
        body = answer(server, array(client.encrypt(stream().elements(DEGREE))), weight, stream().elements(DEGREE))
        found = fraction(client, body, EVERY)
        return np.where(found > 0.5, found - 1, found) * (scale(USUAL) / 2**USUAL.flood_bits)

    large = np.full(DEGREE, 1 << 9)
    for weight in (ONE, large, 0 * large):
        found = noise_of(weight)
        assert abs(found.mean()) < 0.04
        assert abs(found.var() - 0.25) < 0.02, "a sum of three uniforms of width 1"
        assert np.abs(found).max() < 1.5
    monkeypatch.setattr(noise, "flooding", lambda *_: np.zeros((3, DEGREE), np.uint64))
    assert np.abs(noise_of(large)).max() < 1e-6, "and nothing else is there"


def test_weights_of_zero_say_nothing_either(parties):
    client, server = parties
    mask = stream().elements(DEGREE)
    found = answer(server, array(client.encrypt(stream().elements(DEGREE))), np.zeros(DEGREE, np.int64), mask)
    np.testing.assert_array_equal(client.decrypt(found, EVERY), PLAIN.reduce(np.uint64(0) - mask))
    assert len(np.unique(found[: DEGREE * 5])) == 256, "c1 is not bare"


def test_two_answers_to_one_upload_share_nothing(parties):
    client, server = parties
    upload, weight = array(client.encrypt(stream().elements(DEGREE))), np.ones(DEGREE, np.int64)
    width = client.parameters.widths[0]
    bodies = [answer(server, upload, weight, stream().elements(DEGREE)) for _ in range(2)]
    words = [body[: DEGREE * width].reshape(-1, width) for body in bodies]  # c1, which no mask of the server's is in
    assert (words[0] == words[1]).all(1).mean() < 0.001


def test_c1_is_a_ring_lwe_sample_of_the_servers(monkeypatch):
    """a·u + e for a ternary u and an error e of its stream, where the weights are zero; e is enlarged to be seen."""
    client, seed, binomial = he.Client(USUAL, stream()), fresh_seed(), noise.binomial
    context, key = client.context, array(client.public_key())
    upload, server = array(client.encrypt(stream().elements(DEGREE))), he.Server(USUAL, key, Stream(seed, "answers"))
    large = np.array([-1 << 47, 1 << 47])
    monkeypatch.setattr(noise, "binomial", lambda *drawn: large[(binomial(*drawn) >= 0).astype(int)])
    body = answer(server, upload, np.zeros(DEGREE, np.int64))

    own = Stream(seed, "answers")
    own.elements(DEGREE)  # the blinding
    u = noise.ternary(own, DEGREE)
    noise.flooding(own, USUAL.flood_bits, DEGREE, context.primes)
    e = context.residues(noise.binomial(own, DEGREE))
    opened = context.ciphertext(he._received(USUAL, key), key[-he.SEED_BYTES :].tobytes(), ntt=True)
    product = context.product(opened, context.factor(u))
    context.evaluator.transform_from_ntt_inplace(product)
    found = context.ciphertext((context.words(product) + np.stack([0 * e, e])) % context.moduli)
    context.evaluator.mod_switch_to_next_inplace(found)
    widths = USUAL.widths[:2]
    expected = array(he._pack(context.words(found)[1], widths))
    np.testing.assert_array_equal(body[: DEGREE * sum(widths)], expected)


WEIGHTS = {
    "zeros": np.zeros(DEGREE, np.int64),
    "one": ONE,
    "negative": np.full(DEGREE, -(1 << 52)),
    "both signs": np.random.default_rng(0).integers(-1 << 52, 1 << 52, DEGREE),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_blinded_and_products_equal_to_the_bit(name, monkeypatch):
    """SEAL sees positive numbers, of which those below 2^56 differ from query to query; nothing of them is left."""
    client, seen, weight = he.Client(USUAL, stream()), [], WEIGHTS[name]
    context, factor = client.context, client.context.factor
    upload = array(client.encrypt(stream().elements(DEGREE)))
    for _ in range(2):
        server = he.Server(USUAL, array(client.public_key()), stream())
        total = server.blank()
        before, opened = context.words(total), server.open(upload)
        monkeypatch.setattr(context, "factor", lambda values: (seen.append(values), factor(values))[1])
        ready = server.weight(weight)
        monkeypatch.setattr(context, "factor", factor)
        server.accumulate(total, opened, ready)
        added = context.words(context.product(opened[0], factor(weight))) if weight.any() else 0 * before
        np.testing.assert_array_equal(context.words(total), (before + added) % context.moduli)
    shares = (np.array(seen) - weight - (1 << 56)) / 2.0**56
    assert len(seen) == 2 and ((np.array(seen) > 0) & (np.array(seen) < 1 << 58)).all()
    assert shares.min() >= 0 and shares.max() < 1 and (np.abs(shares.mean(1) - 0.5) < 0.02).all()
    assert (shares[0] != shares[1]).all()


def test_zero_weights_take_the_same_operations(parties, monkeypatch):
    """What SEAL is asked to do, and on how many bytes, does not depend on which blocks of weights are zero."""
    client, server = parties
    upload = array(client.encrypt(stream().elements(DEGREE)))
    calls: list[str] = []

    class Counted:
        def __init__(self, evaluator):
            self.evaluator = evaluator

        def __getattr__(self, name):
            calls.append(name)
            return getattr(self.evaluator, name)

    def counted(blocks: list[np.ndarray]) -> list[str]:
        calls.clear()
        total, one = server.blank(), server.open(upload)
        for block in blocks:
            server.accumulate(total, one, server.weight(block))
        server.answer(total, np.zeros(DEGREE, np.uint64), EVERY)
        return calls.copy()

    monkeypatch.setattr(server.context, "evaluator", Counted(server.context.evaluator))
    dense, zero = np.ones(DEGREE, np.int64), np.zeros(DEGREE, np.int64)
    usual = counted([dense, dense, dense])
    assert len(usual) > 9
    for blocks in ([zero, dense, zero], [zero, zero, zero], [ONE, zero, dense]):
        assert counted(blocks) == usual


def test_residues_out_of_range_are_refused(parties):
    client, server = parties
    upload = array(client.encrypt(np.zeros(DEGREE, np.uint64))).copy()
    upload[: client.parameters.widths[0]] = 255
    with pytest.raises(ProtocolError, match="not below its prime"):
        server.open(upload)
    with pytest.raises(ProtocolError, match="not below its prime"):
        client.decrypt(np.full(client.parameters.answer_bytes(3), 255, np.uint8), np.arange(3))
    with pytest.raises(ProtocolError, match="not below its prime"):
        he.Server(client.parameters, np.full(client.parameters.upload_bytes, 255, np.uint8), stream())


def test_a_query_is_its_seed():
    """Every byte that a client sends is of its stream: SEAL draws nothing."""
    seed, values = fresh_seed(), stream().elements(DEGREE)

    def sent(seed: bytes) -> bytes:
        client = he.Client(USUAL, Stream(seed, "query"))
        return client.public_key() + client.encrypt(values)

    assert sent(seed) == sent(seed)
    assert sent(seed) != sent(fresh_seed())


# A client that deviates.


def shifted(client: he.Client, upload: np.ndarray, shift: int) -> np.ndarray:
    """The upload plus a constant polynomial, which is `shift` at every point."""
    c0 = he._received(client.parameters, upload)[0]
    moved = (c0 + np.array([[shift % p] for p in client.context.primes], np.uint64)) % client.context.moduli
    return np.concatenate([array(he._pack(moved, client.parameters.widths)), upload[-he.SEED_BYTES :]])


def read_weights(client: he.Client, server: he.Server, weight: np.ndarray, bits: int, phases: int) -> np.ndarray:
    """The first weights of a block, modulo 2^bits, from answers whose masks nobody tells: the attack.

    A one-hot of q/t·2^−k is no plaintext: of w times it what is below q/t stays in the noise, where no mask is. Lowest
    bit first, each by the noise's mean direction over several phases.
    """
    first = EVERY[:FIRST]
    known = np.zeros(FIRST, np.int64)
    for bit in range(bits):
        seen = np.zeros(FIRST, complex)
        for _ in range(phases):
            upload = array(client.encrypt(np.zeros(DEGREE, np.uint64)))
            total = server.blank()
            one = server.open(shifted(client, upload, scale(client.parameters) >> (bit + 1)))
            server.accumulate(total, one, server.weight(weight))
            body = array(server.answer(total, stream().elements(FIRST), first))
            seen += np.exp(2j * np.pi * fraction(client, body, first))
        known |= ((seen * np.exp(-2j * np.pi * known / (2 << bit))).real < 0).astype(np.int64) << bit
    return known


def test_a_key_that_hides_nothing_is_refused(parties):
    client, server = parties
    for key in (np.zeros(client.parameters.upload_bytes, np.uint8), shifted(client, server.public_key * 0, 12345)):
        with pytest.raises(ProtocolError, match="degenerate"):
            he.Server(client.parameters, key, stream())
        with pytest.raises(ProtocolError, match="degenerate"):
            server.open(key)


def test_a_deviating_client_reads_weights_and_an_audit_always_sees_it():
    """With an honest key nothing tells the server that an upload is none: it is read out, and then caught."""
    client, server = parties_of(USUAL)
    weight = np.random.default_rng(0).integers(-4, 4, DEGREE)
    np.testing.assert_array_equal(read_weights(client, server, weight, 3, 16), weight[:FIRST] & 7)
    audit = he.Audit(USUAL, array(client.show()))
    honest = array(client.encrypt(stream().elements(DEGREE)))
    assert audit.is_fresh(honest)
    assert audit.is_fresh(server.public_key, is_key=True)
    for bit in range(80):  # down to what no flooding would let through, and to the least that is no error
        assert not audit.is_fresh(shifted(client, honest, scale(USUAL) >> (bit + 1)))
    assert not audit.is_fresh(shifted(client, honest, 43))


def test_an_audit_takes_every_error_of_an_honest_client_and_no_other(monkeypatch):
    client = he.Client(USUAL, stream())
    audit, values = he.Audit(USUAL, array(client.show())), stream().elements(DEGREE)
    error = np.zeros(DEGREE, np.int64)
    monkeypatch.setattr(noise, "binomial", lambda *_: error)
    for size, is_honest in ((21, True), (-21, True), (22, False), (-22, False), (1 << 40, False)):
        for where in (0, 5, DEGREE - 1):
            error[:] = 0
            error[where] = size
            assert audit.is_fresh(array(client.encrypt(values))) == is_honest


def test_an_audit_wants_zero_of_a_key_and_the_same_error_modulo_every_prime():
    client = he.Client(USUAL, stream())
    audit = he.Audit(USUAL, array(client.show()))
    upload = array(client.encrypt(ONE.astype(np.uint64)))
    assert audit.is_fresh(upload)
    assert not audit.is_fresh(upload, is_key=True)
    for prime in client.context.primes:
        assert not audit.is_fresh(shifted(client, upload, prime)), "no error at all modulo this prime"
        assert not audit.is_fresh(shifted(client, upload, prime << 35))


def test_another_secret_key_opens_nothing():
    client, other = he.Client(USUAL, stream()), he.Client(USUAL, stream())
    audit = he.Audit(USUAL, array(other.show()))
    assert not audit.is_fresh(array(client.public_key()), is_key=True)
    assert audit.is_fresh(array(other.public_key()), is_key=True)
    near = client.secret.copy()
    near[7] = (near[7] + 2) % 3 - 1
    client.secret = near
    assert not he.Audit(USUAL, array(client.show())).is_fresh(array(client.public_key()), is_key=True)


@pytest.mark.parametrize("body", [bytes(he.SECRET_BYTES - 1) + b"\xff", b"\x55" * he.SECRET_BYTES])
def test_what_is_no_ternary_key_is_refused(body):
    with pytest.raises(ProtocolError, match="is none"):
        he.Audit(USUAL, array(body))


def test_a_shown_key_is_the_secret():
    client = he.Client(USUAL, stream())
    codes = (array(client.show())[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    np.testing.assert_array_equal(codes.reshape(-1).astype(np.int64) - 1, client.secret)
