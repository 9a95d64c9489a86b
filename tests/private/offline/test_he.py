"""Homomorphic products against the ring's linear maps, at the limit of the noise, and against bad bytes."""

import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.errors import ProtocolError, UserError
from parelu.fusion.packing import packing
from parelu.private.crypto import he
from parelu.private.crypto.prg import Stream, fresh_seed
from parelu.private.crypto.ring import BITS, LinearMap, encode, reduce
from parelu.private.lowering.ops import Conv, Linear
from parelu.private.offline import he as mode
from parelu.private.offline.he import convolution
from parelu.private.offline.transfers import ObliviousClient, ObliviousServer
from parelu.private.transport.channel import Channel

NORM = 1 << 18


def stream() -> Stream:
    return Stream(fresh_seed(), "test")


def array(body: bytes) -> np.ndarray:
    return np.frombuffer(body, np.uint8)


@pytest.fixture(scope="module")
def parties() -> tuple[he.Client, he.Server]:
    client = he.Client(he.parameters(NORM))
    return client, he.Server(he.parameters(NORM), NORM, array(client.public_key()))


class Ends:
    """Both ends of a connection in two threads, without base transfers of a program."""

    def __init__(self, client, server) -> None:
        ours, theirs = socket.socketpair()
        self.results = {}

        def run() -> None:
            self.results["server"] = server(Channel(theirs, timeout=10))

        thread = threading.Thread(target=run)
        thread.start()
        self.results["client"] = client(Channel(ours, timeout=10))
        thread.join()
        ours.close()
        theirs.close()


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
    values = rng.integers(0, 1 << BITS, source).astype(np.uint64)
    map_ = LinearMap(weight, op.stride, op.padding, op.groups) if isinstance(op, Conv) else LinearMap(weight)
    expected = reduce(map_(values[None]).reshape(-1))
    packed = packing(convolution(op, source))
    inputs = [server.open(array(client.encrypt(polynomial))) for polynomial in packed.pack_input(values.reshape(-1))]
    mask, got = stream().ring(len(expected)), np.zeros(len(expected), np.uint64)
    for block in range(packed.output_blocks):
        for tile in range(packed.tiles):
            total = None
            for read in packed.reads(block):
                plain = server.weight(packed.pack_weight(weight.reshape(len(weight), -1), block, read))
                total = server.accumulate(total, inputs[tile * packed.input_blocks + read], plain)
            coefficients, positions = packed.needed(block, tile)
            answer = server.answer(total, mask[positions], coefficients, stream())
            assert len(answer) == client.parameters.answer_bytes(len(coefficients))
            got[positions] = client.decrypt(array(answer), coefficients)
    np.testing.assert_array_equal(reduce(got + mask), expected)


def worst(client: he.Client, server: he.Server, norm: int) -> tuple[np.ndarray, np.ndarray]:
    """(answer's values, W·r) for a polynomial of weights with Σ|w| = norm."""
    values = stream().ring(he.DEGREE)
    weight = np.full(he.DEGREE, norm // he.DEGREE)
    weight[0] += norm - weight.sum()
    prefix = np.cumsum(values)
    ones = np.uint64(2) * prefix - prefix[-1:]  # times 1 + X + … + X^(N − 1)
    expected = ones * np.uint64(norm // he.DEGREE) + values * np.uint64(norm % he.DEGREE)
    every = np.arange(he.DEGREE)
    total = server.accumulate(None, server.open(array(client.encrypt(values))), server.weight(weight))
    answer = server.answer(total, np.zeros(he.DEGREE, np.uint64), every, stream())
    return client.decrypt(array(answer), every), reduce(expected)


def limit(parameters: he.Parameters) -> int:
    """The largest norm that the parameters are proved for."""
    low, high = 1, 1 << 50
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters.holds(middle) else (low, middle)
    return low


@pytest.mark.parametrize("parameters", he.CHOICES)
@pytest.mark.parametrize("sign", [1, -1])
def test_at_the_proved_limit_answers_are_exact(parameters, sign, monkeypatch):
    """With the largest weights and the largest flooding noise at every coefficient."""
    norm = limit(parameters)
    bits = he.flood_bits(norm)
    edge = [((sign * ((1 << bits) - 1)) % prime) for prime in he._primes(parameters)]
    largest = np.repeat(np.array(edge, np.uint64)[:, None], he.DEGREE, 1)
    monkeypatch.setattr(he, "flooding", lambda *_: largest)
    client = he.Client(parameters)
    got, expected = worst(client, he.Server(parameters, norm, array(client.public_key())), norm)
    np.testing.assert_array_equal(got, expected)


def test_beyond_the_limit_answers_are_wrong(monkeypatch):
    """The proved limit is the real one to a few bits, of which the rounding up of the flooding's bits is one."""
    parameters = he.CHOICES[0]
    norm = limit(parameters)
    bits = he.flood_bits(norm) + 3
    monkeypatch.setattr(he, "flood_bits", lambda norm: bits)
    monkeypatch.setattr(he.Parameters, "holds", lambda *_: True)
    client = he.Client(parameters)
    got, expected = worst(client, he.Server(parameters, norm, array(client.public_key())), norm)
    assert (got != expected).mean() > 0.1


def test_weights_without_room_for_noise_are_refused():
    with pytest.raises(UserError, match="no room for noise at 128 bits of security"):
        he.parameters(1 << 40)


def budget(client: he.Client, server: he.Server, weight: np.ndarray) -> int:
    """Bits of noise that an answer could still take."""
    every = np.arange(he.DEGREE)
    total = server.accumulate(None, server.open(array(client.encrypt(stream().ring(he.DEGREE)))), server.weight(weight))
    answer = array(server.answer(total, np.zeros(he.DEGREE, np.uint64), every, stream()))
    primes, widths = he._primes(client.parameters)[:2], client.parameters.widths[:2]
    c1 = he._unpack(answer, widths, primes, he.DEGREE)
    c0 = he._unpack(answer[he.DEGREE * sum(widths) :], widths, primes, he.DEGREE)
    both = he._ciphertext(client.context, client.context.last_parms_id(), np.stack([c0, c1]), 2)
    return client._decryptor.invariant_noise_budget(both)


def test_an_answers_noise_is_the_floodings(parties, monkeypatch):
    """Its size is what was drawn, for small weights and for the largest; without flooding it would be far smaller."""
    client, server = parties
    first, second, dropped = he._primes(client.parameters)
    room = first * second / 2 ** (BITS + 1) / (2 ** he.flood_bits(NORM) / dropped)
    weights = np.eye(1, he.DEGREE, dtype=np.int64)[0], np.full(he.DEGREE, NORM // he.DEGREE)
    for weight in weights:
        assert abs(budget(client, server, weight) - np.log2(room)) <= 1
    monkeypatch.setattr(he, "flooding", lambda *_: np.zeros((3, he.DEGREE), np.uint64))
    assert budget(client, server, weights[1]) > np.log2(room) + 4


def test_weights_of_zero_say_nothing_either(parties):
    client, server = parties
    one, every = server.open(array(client.encrypt(stream().ring(he.DEGREE)))), np.arange(he.DEGREE)
    total = server.accumulate(None, one, server.weight(np.zeros(he.DEGREE, np.int64)))
    mask = stream().ring(he.DEGREE)
    answer = array(server.answer(total, mask, every, stream()))
    np.testing.assert_array_equal(client.decrypt(answer, every), reduce(np.uint64(0) - mask))
    assert len(np.unique(answer[: he.DEGREE * 5])) == 256, "c1 is not bare"


def test_two_answers_to_one_upload_share_nothing(parties):
    client, server = parties
    one = server.open(array(client.encrypt(stream().ring(he.DEGREE))))
    weight, every = server.weight(np.ones(he.DEGREE, np.int64)), np.arange(he.DEGREE)
    answers = [
        array(server.answer(server.accumulate(None, one, weight), stream().ring(he.DEGREE), every, stream()))
        for _ in range(2)
    ]
    words = [answer[: he.DEGREE * 5].reshape(-1, 5) for answer in answers]  # c1, which no mask of the server's is in
    assert (words[0] == words[1]).all(1).mean() < 0.001


def test_flooding_is_uniform_in_its_range():
    parameters, bits = he.CHOICES[0], 70
    rows, primes = he.flooding(parameters, bits, stream()), he._primes(parameters)
    modulus = primes[0] * primes[1] * primes[2]
    basis = [modulus // p * pow(modulus // p, -1, p) for p in primes]
    values = [sum(int(x) * b for x, b in zip(column, basis, strict=True)) % modulus for column in rows.T]
    signed = [value - modulus if value > modulus // 2 else value for value in values]
    assert max(abs(value) for value in signed) <= 1 << bits
    counts = np.bincount([(value + (1 << bits)) >> (bits - 3) for value in signed], minlength=16)
    assert ((counts - 512) ** 2 / 512).sum() < 45  # chi-square of 15 degrees, below 1e-4
    assert len({value & 0xFFFF for value in values}) > 7000, "the low bits are drawn too"


def test_residues_out_of_range_are_refused(parties):
    client, server = parties
    upload = array(client.encrypt(np.zeros(he.DEGREE, np.uint64))).copy()
    upload[:5] = 255
    with pytest.raises(ProtocolError, match="not below its prime"):
        server.open(upload)
    with pytest.raises(ProtocolError, match="not below its prime"):
        client.decrypt(np.full(client.parameters.answer_bytes(3), 255, np.uint8), np.arange(3))
    with pytest.raises(ProtocolError, match="not below its prime"):
        he.Server(client.parameters, NORM, np.full(client.parameters.key_bytes, 255, np.uint8))


@pytest.mark.parametrize("width", [2, 9, BITS])
def test_integers_times_values(width, monkeypatch):
    """By oblivious transfer; signed factors of a few bits, and ring elements."""
    monkeypatch.setattr("parelu.private.offline.transfers.AT_ONCE", 100)  # several parts
    rng = np.random.default_rng(0)
    largest = 1 << (width - 1)
    factors = rng.integers(-largest, largest, 50)
    factors[:3] = -largest, largest - 1, 0
    values = stream().ring(50)
    abstract = {"linear": None, "square": None}
    end = type("Server", (ObliviousServer,), abstract), type("Client", (ObliviousClient,), abstract)

    def begun(side, channel):
        state = end[side](channel, bytes(16))
        state.begin()
        return state

    both = Ends(
        lambda channel: begun(1, channel).multiply(values, width),
        lambda channel: begun(0, channel).multiply(encode(factors), width),
    )
    got = reduce(both.results["client"] + both.results["server"])
    np.testing.assert_array_equal(got, reduce(encode(factors) * values))


def test_bounds_that_the_server_states_hold_for_its_weights():
    from two_parties import Residual, lowered_of, ready

    lowered = lowered_of(ready(Residual(), (1, 6, 6)))
    rows, width = mode.sizes(lowered)
    for integers in lowered.weights.values():
        weight = np.abs(integers["weight"]) if "weight" in integers else np.zeros((1, 1))
        assert weight.reshape(len(weight), -1).sum(1).max() <= 1 << rows or weight.max() < 1 << (width - 1)
