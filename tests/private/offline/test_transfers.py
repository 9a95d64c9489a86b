"""Both ends' transfers: no tweak comes twice, and a client's abort tells no secret, whatever a server sends."""

import hmac
import os
import socket
import threading
from collections import Counter

import numpy as np
import pytest
from base_transfers import deal

from parelu.errors import ProtocolError
from parelu.private.crypto.garbling import sign
from parelu.private.crypto.hash import OT_DOMAIN, Hash
from parelu.private.crypto.prg import Stream
from parelu.private.offline import comparisons, transfers
from parelu.private.offline.transfers import BITS_TIMES, INTEGERS_TIMES, ObliviousClient, ObliviousServer
from parelu.private.protocol.relu import garble
from parelu.private.transport.channel import Channel

CONTEXT = b"what both have seen, 16 bytes and more"
COUNT, BITS, WIDTH = 20, 4, 4
SECRETS = "zeros", "random"


class Server(ObliviousServer):
    linear = square = None


class Client(ObliviousClient):
    linear = square = None


def serve(channel, inferences=1):
    """A server's transfers of every kind."""
    server = Server(channel, CONTEXT)
    for _ in range(inferences):
        server.begin()
        first = server.numbers(COUNT)
        zeros = server.labels(1, first, BITS, COUNT)
        server.random_ot(1, first, COUNT)
        server.send_tables(1, garble(sign, server, 1, first, zeros, BITS)[0])
        server.product(1, first, np.arange(COUNT, dtype=np.uint8) & 1)
        server.multiply(np.arange(COUNT, dtype=np.uint64), WIDTH)
        server.comparison(2, COUNT, BITS)


def ask(channel, secrets="random", inferences=1):
    """The client's, of secrets that are all zero or not."""
    known = Stream(bytes(16), "secrets")
    bits, values = known.bits(BITS * COUNT).reshape(BITS, COUNT), known.elements(COUNT)
    if secrets == "zeros":
        bits, values = np.zeros_like(bits), np.zeros_like(values)
    client = Client(channel, CONTEXT)
    for _ in range(inferences):
        client.begin()
        first = client.numbers(COUNT)
        client.labels(1, first, bits)
        client.random_ot(1, first, bits[0])
        client.tables(1, 2 * (BITS - 1) * COUNT)
        client.product(1, first, values)
        client.multiply(values, WIDTH)
        client.comparison(2, values, BITS)


def run(server, client):
    """Both in threads of their names; how the client ends: None, or the reason."""
    ours, theirs = socket.socketpair()
    reasons = {}

    def end(name, action, channel):
        try:
            action(channel)
        except ProtocolError as error:
            reasons[name] = str(error)
        finally:
            channel.close()

    ends = [("server", server, Channel(theirs, timeout=20)), ("client", client, Channel(ours, timeout=20))]
    threads = [threading.Thread(target=end, args=each, name=each[0]) for each in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reasons.get("client")


COMPARED = range(comparisons.VALUE, comparisons.SIGN + 1)
# Use → hashes of a party under one tweak: a sender hashes both blocks of a transfer, a garbler both labels of a wire;
# keys of comparisons are made by transfers each way, of which each has its own Δ.
GATES = range(2 * (BITS - 1))
SERVER = dict.fromkeys([*GATES, OT_DOMAIN], 2) | {BITS_TIMES: 1, INTEGERS_TIMES: 1} | dict.fromkeys(COMPARED, 3)
CLIENT = {OT_DOMAIN: 1, BITS_TIMES: 2, INTEGERS_TIMES: 2} | dict.fromkeys(COMPARED, 3)


def test_no_tweak_is_used_twice(dealt_base_transfers, monkeypatch):
    """Over three inferences of a connection, even without their keys; and each has a key of its own."""
    used, keys, halves = {"server": Counter(), "client": Counter()}, {"server": [], "client": []}, Hash.halves

    def recorded(self, scratch, first, *uses):
        name, count = threading.current_thread().name, scratch.operands.shape[1]
        used[name].update((first + i, use) for use in uses for i in range(count))
        if self.key not in keys[name]:
            keys[name].append(self.key)
        return halves(self, scratch, first, *uses)

    monkeypatch.setattr(Hash, "halves", recorded)
    assert run(lambda channel: serve(channel, 3), lambda channel: ask(channel, inferences=3)) is None
    for name, expected in (("server", SERVER), ("client", CLIENT)):
        assert all(times == expected[use] for (_, use), times in used[name].items())
        assert {use for _, use in used[name]} == set(expected)
        for use in (OT_DOMAIN, BITS_TIMES, INTEGERS_TIMES):
            total = sum(u == use for _, u in used[name])
            assert total == 3 * COUNT * (WIDTH if use == INTEGERS_TIMES else 1)
    assert keys["server"] == keys["client"]
    assert len(keys["server"]) == 3


def test_each_inference_has_its_own_seed_and_permutation():
    labels, products = bytes(32), bytes(range(32))
    state, seen = transfers._Inferences(labels, products), set()
    for _ in range(5):
        state.begin()
        seen |= {state.seed, state.permutation, state.hash.key}
    other = transfers._Inferences(labels, products)
    other.begin()
    apart = transfers._Inferences(products, labels)
    apart.begin()
    assert apart.hash.key not in seen
    assert len(seen) == 15
    assert other.hash.key in seen
    assert other.permutation in seen
    assert other.seed not in seen


class Tampered(Channel):
    """The client's end, which gets one message with a flipped bit."""

    def __init__(self, channel, number, place):
        super().__init__(channel.socket, channel.timeout)
        self.number, self.place, self.received = number, place, []

    def receive(self, kind, length):
        body = super().receive(kind, length).copy()
        if len(self.received) == self.number:
            body[int(self.place * (length - 1))] ^= 1
        self.received.append(kind)
        return body


def outcomes(monkeypatch, number, place):
    """How the client ends, and after how many messages, for secrets of each kind and equal randomness.

    The server goes on whatever it gets: its own checks pass.
    """
    compared, found = hmac.compare_digest, []
    threads = threading.local()

    def random(count):
        if not hasattr(threads, "stream"):
            threads.stream = Stream(bytes(16), threading.current_thread().name)
        return threads.stream.bytes(count).tobytes()

    def equal(a, b):
        return threading.current_thread().name == "server" or compared(a, b)

    monkeypatch.setattr(os, "urandom", random)
    monkeypatch.setattr(hmac, "compare_digest", equal)
    for secrets in SECRETS:
        channels = []

        def client(channel, secrets=secrets, channels=channels):
            channels.append(Tampered(channel, number, place))
            ask(channels[0], secrets)

        reason = run(serve, client)
        found.append((reason, channels[0].received))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_an_abort_in_the_base_transfers_tells_no_secret(place, monkeypatch):
    """The points of the server, and its own."""
    zeros, random = outcomes(monkeypatch, 0, place)
    assert zeros == random


def test_an_abort_of_the_client_tells_no_secret(dealt_base_transfers, monkeypatch):
    """Each message of a phase, in two places. The extension's are refused, values are taken as they are."""
    kinds, refused = None, []
    for number in range(100):
        for place in (0.4, 1):
            deal(monkeypatch)
            zeros, random = outcomes(monkeypatch, number, place)
            assert zeros == random
            if zeros[0]:
                refused.append(number)
                assert "not consistent" in zeros[0]
            else:
                kinds = zeros[1]
        if kinds and number == len(kinds):
            break
    assert kinds is not None
    assert len(kinds) == number
    named = [kinds[n] for n in sorted(set(refused))]
    assert named == ["tree", "prod", "prod", "comp", "comp"]  # of comparisons: for the bits, and for the signs


@pytest.mark.parametrize("secrets", SECRETS)
def test_an_honest_server_is_never_refused(dealt_base_transfers, secrets):
    assert run(serve, lambda channel: ask(channel, secrets)) is None


def test_a_client_that_deviates_is_told_in_one_line(dealt_base_transfers, monkeypatch):
    """Its choices of labels are not the same for all groups."""
    extend = transfers.ExtensionReceiver.extend

    def deviating(self, choices):
        message, rows = extend(self, choices)
        if threading.current_thread().name == "client":
            message[5] ^= 1
        return message, rows

    monkeypatch.setattr(transfers.ExtensionReceiver, "extend", deviating)
    told = []

    def server(channel):
        try:
            serve(channel)
        except ProtocolError as error:
            told.append(str(error))
            channel.fail(str(error))

    reason = run(server, ask)
    assert told == ["the peer's choices of oblivious transfers are not consistent"]
    assert reason is not None


def test_products_add_up_over_inferences(dealt_base_transfers):
    shares = {"server": [], "client": []}

    def server(channel):
        state = Server(channel, CONTEXT)
        for _ in range(2):
            state.begin()
            shares["server"].append(state.product(1, state.numbers(COUNT), np.ones(COUNT, np.uint8)))

    def client(channel):
        state = Client(channel, CONTEXT)
        for _ in range(2):
            state.begin()
            shares["client"].append(state.product(1, state.numbers(COUNT), np.arange(COUNT, dtype=np.uint64)))

    assert run(server, client) is None
    for ours, theirs in zip(*shares.values(), strict=True):
        assert np.array_equal(ours + theirs, np.arange(COUNT))
