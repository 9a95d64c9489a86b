"""Base transfers: they agree, refuse what is malformed, and show nothing of a choice."""

import hashlib
from typing import Any

import numpy as np
import pytest
from kernel_sets import random_bits
from nacl import bindings

from parelu.errors import ProtocolError
from parelu.private.crypto import base_ot

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
TORSION = [  # the points of order 2, 4, 4, 8, 8, 8, 8
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]


def is_on_the_curve(y: int) -> bool:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    return square == 0 or pow(square, (P - 1) // 2, P) == 1


def encoded(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def some_point() -> bytes:
    return base_ot.Sender(1, b"").message()


def bad_points() -> dict[str, bytes]:
    small = {f"of small order {k}": bytes.fromhex(point) for k, point in enumerate(TORSION)}
    mixed = {f"plus one {name}": bindings.crypto_core_ed25519_add(some_point(), point) for name, point in small.items()}
    not_reduced = {f"{y} + p, sign {s}": encoded(y + P, s) for y in range(19) for s in (0, 1)}
    off = {f"off the curve {y}": encoded(y) for y in range(2, 30) if not is_on_the_curve(y)}
    named = {
        "identity": base_ot.IDENTITY,
        "identity with a sign": encoded(1, 1),
        "order 2 with a sign": encoded(P - 1, 1),
        "short": some_point()[:31],
        "long": some_point() + b"\0",
        "empty": b"",
    }
    return small | mixed | not_reduced | off | named


@pytest.mark.parametrize("count", [1, 128])
def test_base_transfers_agree(count):
    choices = random_bits(count)
    sender, receiver = base_ot.Sender(count, b"context"), base_ot.Receiver(choices, b"context")
    pairs = sender.seeds(receiver.respond(sender.message()))
    seeds = receiver.seeds()
    rows = np.arange(count)
    assert pairs.shape == (count, 2, 16)
    assert np.array_equal(seeds, pairs[rows, choices])
    assert (seeds != pairs[rows, 1 - choices]).any(axis=1).all()
    assert len(np.unique(pairs.reshape(-1, 16), axis=0)) == 2 * count


def test_another_context_gives_other_seeds():
    sender, receiver = base_ot.Sender(4, b"one"), base_ot.Receiver(np.array([0, 1, 0, 1], np.uint8), b"two")
    pairs = sender.seeds(receiver.respond(sender.message()))
    assert (receiver.seeds()[:, None] != pairs).any(axis=2).all()


def test_seeds_are_bound_to_the_number_of_the_transfer():
    sender, receiver = base_ot.Sender(2, b""), base_ot.Receiver(np.zeros(2, np.uint8), b"")
    response = receiver.respond(sender.message())
    swapped = sender.seeds(response[64:] + response[:64])
    assert not np.array_equal(swapped[::-1], sender.seeds(response))


@pytest.mark.parametrize(("name", "point"), bad_points().items(), ids=bad_points())
def test_a_malformed_point_ends_the_connection(name, point):
    with pytest.raises(ProtocolError):
        base_ot.Receiver(np.zeros(2, np.uint8), b"").respond(point)
    for response in (some_point() + point, point + some_point()):
        with pytest.raises(ProtocolError):
            base_ot.Sender(1, b"").seeds(response)


def test_a_point_that_undoes_the_hash_is_refused():
    other = some_point()
    undone = bindings.crypto_core_ed25519_sub(base_ot.IDENTITY, base_ot.hash_to_group(b"", 0, 0, other))
    with pytest.raises(ProtocolError, match="undoes"):
        base_ot.Sender(1, b"").seeds(undone + other)


@pytest.mark.parametrize("change", [-64, -32, -1, 1, 32, 64])
def test_a_response_of_another_length_is_refused(change):
    with pytest.raises(ProtocolError, match="bytes for the points"):
        base_ot.Sender(2, b"").seeds((5 * some_point())[: 128 + change])


def test_what_is_hashed_to_is_in_the_prime_order_group_and_separate():
    inputs = [(c, n, i, p) for c in (b"", b"a") for n in (0, 1, 256) for i in (0, 1) for p in (bytes(32), some_point())]
    points = [base_ot.hash_to_group(*each) for each in inputs]
    assert all(bindings.crypto_core_ed25519_is_valid_point(point) for point in points)
    assert len(set(points)) == len(points)


def test_libsodiums_map_lands_in_the_prime_order_group():
    """Also of inputs whose image on the curve is of small order, or none."""
    ends = [bytes(32), b"\1" + bytes(31), bytes(31) + b"\x80", 32 * b"\xff", (P - 1).to_bytes(32, "little")]
    for data in ends + [hashlib.sha256(bytes([k])).digest() for k in range(50)]:
        point = bindings.crypto_core_ed25519_from_uniform(data)
        assert point == base_ot.IDENTITY or bindings.crypto_core_ed25519_is_valid_point(point)


def test_the_seeds_are_their_definition():
    """Of both parties, from the secrets, by the formula of the paper."""
    context, choices = b"context", np.array([1, 0, 1], np.uint8)
    sender, receiver = base_ot.Sender(3, context), base_ot.Receiver(choices, context)
    response = receiver.respond(sender.message())
    pairs, a = sender.seeds(response), sender.message()
    for number in range(3):
        sent = response[64 * number : 64 * number + 64]
        for choice, (point, other) in enumerate([(sent[:32], sent[32:]), (sent[32:], sent[:32])]):
            key = bindings.crypto_core_ed25519_add(point, base_ot.hash_to_group(context, number, choice, other))
            shared = bindings.crypto_scalarmult_ed25519_noclamp(sender._secret, key)
            message = number.to_bytes(4, "little") + bytes([choice]) + a + sent + shared
            key = hashlib.sha256(context).digest()
            seed = hashlib.blake2b(message, key=key, digest_size=16, person=b"parelu-baseOT").digest()
            assert pairs[number, choice].tobytes() == seed
    assert receiver.transcript == sender.transcript
    assert len(sender.transcript) == 32


def test_the_receiver_computes_the_same_whatever_it_chooses(monkeypatch):
    calls: list[str] = []

    def recorded(name: str) -> Any:
        function = getattr(bindings, name)
        return lambda *arguments: (calls.append(name), function(*arguments))[1]

    for name in dir(bindings):
        if name.startswith(("crypto_core_ed25519_", "crypto_scalarmult_ed25519")) and callable(getattr(bindings, name)):
            monkeypatch.setattr(bindings, name, recorded(name))
    a, runs = some_point(), []
    for choice in (0, 1):
        calls.clear()
        base_ot.Receiver(np.array([choice], np.uint8), b"").respond(a)
        runs.append(calls.copy())
    assert runs[0] == runs[1]
    assert len(runs[0]) > 5


def test_points_are_as_uniform_as_their_bits_can_say():
    count = 64
    receiver = base_ot.Receiver(random_bits(count), b"")
    response = receiver.respond(some_point())
    points = [response[start : start + 32] for start in range(0, len(response), 32)]
    assert len(set(points)) == 2 * count
    ones = np.unpackbits(np.frombuffer(response, np.uint8).reshape(-1, 32)[:, :31], axis=1).mean()
    assert abs(ones - 0.5) < 0.02


@pytest.mark.parametrize("choice", [0, 1])
def test_a_receiver_that_knows_both_logarithms_has_no_seed(choice):
    """Points of its own making, without the hash, are of no use: what is multiplied by a has no known logarithm."""
    sender, secrets = base_ot.Sender(1, b""), [base_ot._scalar() for _ in range(2)]
    a = sender.message()
    response = b"".join(bindings.crypto_scalarmult_ed25519_base_noclamp(secret) for secret in secrets)
    pairs = sender.seeds(response)
    shared = bindings.crypto_scalarmult_ed25519_noclamp(secrets[choice], a)
    assert not np.array_equal(base_ot._seed(b"", 0, choice, a, response, shared), pairs[0, choice])
