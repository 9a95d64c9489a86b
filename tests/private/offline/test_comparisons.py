"""Keys that two parties make for each other: the same, to the bit, as a dealer's for the same secrets."""

import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.private.crypto import kernels
from parelu.private.crypto.dcf import correct
from parelu.private.offline import comparisons
from parelu.private.offline.comparisons import MOST_BITS
from parelu.private.offline.transfers import ObliviousClient, ObliviousServer
from parelu.private.transport.channel import Channel

CONTEXT = b"what both have seen"


class Server(ObliviousServer):
    linear = square = None


class Client(ObliviousClient):
    linear = square = None


@pytest.fixture(scope="module")
def parties():
    """Both ends of a connection; what the server is asked runs in a thread."""
    ours, theirs = socket.socketpair()
    made = []
    thread = threading.Thread(target=lambda: made.append(Server(Channel(ours), CONTEXT)))
    thread.start()
    client = Client(Channel(theirs), CONTEXT)
    thread.join()
    client.begin()
    made[0].begin()
    yield made[0], client
    ours.close()
    theirs.close()


def made(parties, share, bits):
    """The server's and the client's of `comparison`."""
    server, client = parties
    found = []
    thread = threading.Thread(target=lambda: found.append(server.comparison(1, len(share), bits)))
    thread.start()
    own = client.comparison(1, share, bits)
    thread.join()
    return found[0], own


def check(parties, count, bits):
    share = np.random.default_rng(bits).integers(0, 1 << 64, count, np.uint64)
    (shift, theirs, their_r, their_top), (own, r, top) = made(parties, share, bits)
    r = r + their_r
    np.testing.assert_array_equal(shift, share + r)
    one_and_r, bit = np.stack([np.ones_like(r), r], 1), (r >> np.uint64(bits - 1) & np.uint64(1))[:, None]
    np.testing.assert_array_equal(top + their_top, bit * one_and_r)
    betas = (np.uint64(1) - np.uint64(2) * bit) * one_and_r
    dealt = correct(own.permutation, bits - 1, r, betas, (own.roots, theirs.roots))
    np.testing.assert_array_equal(own.corrections, dealt)
    np.testing.assert_array_equal(theirs.corrections, dealt)
    assert (own.party, theirs.party, own.levels, theirs.permutation) == (0, 1, bits - 1, own.permutation)
    return r


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(2, 10))
def test_they_are_the_dealers(parties, count, bits):
    check(parties, count, bits)


@pytest.mark.parametrize("name", kernels.NAMES)
def test_trees_in_parts_and_in_turns(parties, name, monkeypatch):
    """Nodes that are permuted in parts of a tree, and trees that are grown one after another."""
    if name == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba")
    monkeypatch.setattr(comparisons, "kernels", kernels.load(name))
    monkeypatch.setattr(comparisons, "NODES", 16)
    monkeypatch.setattr(comparisons, "MEMORY", 1 << 12)
    check(parties, 7, 8)


def test_the_widest(parties):
    check(parties, 3, MOST_BITS)


def test_what_opens_is_uniform(parties):
    """r has entropy in every bit, and no two functions share it."""
    r = check(parties, 300, 5)
    assert len(set(r.tolist())) == 300
    ones = (r[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).mean(0)
    assert (np.abs(ones - 0.5) < 0.2).all()
