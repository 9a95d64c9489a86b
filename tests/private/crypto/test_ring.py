"""The ring of a program: what is encoded comes back, what is truncated is off by less than one, and when it wraps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parelu.private.crypto.codec import dump, load
from parelu.private.crypto.prg import Stream
from parelu.private.crypto.ring import WIDTHS, Ring, encode

RINGS = [Ring(bits) for bits in WIDTHS]
COUNT = 20_000


def shares(ring, x, seed=0):
    """The client's and the server's, of (n,) integers; what is above the ring's bits is noise, each for itself."""
    stream = Stream(seed.to_bytes(16, "little"), "shares")
    share, noise = stream.elements(len(x)), stream.elements(2, len(x))
    noise -= ring.reduce(noise)
    return share + noise[0], encode(x) - share + noise[1]


def truncated(ring, x, cut, seed=0):
    client, server = shares(ring, x, seed)
    return ring.decode(ring.truncate_client(client, cut) + ring.truncate_server(server, cut))


@given(st.sampled_from(RINGS), st.data())
def test_what_is_encoded_is_decoded(ring, data):
    whole = st.integers(-(1 << (ring.bits - 1)), (1 << (ring.bits - 1)) - 1)
    x = np.array(data.draw(st.lists(whole, min_size=1)))
    assert ring.decode(encode(x)).tolist() == x.tolist()
    client, server = shares(ring, x)
    assert ring.decode(client + server).tolist() == x.tolist()
    assert [int(e) for e in ring.reduce(client)] == [int(e) % (1 << ring.bits) for e in client]


@given(st.sampled_from(RINGS), st.integers(1, 58), st.integers(0, 29), st.integers(0, 2**31))
def test_a_truncation_is_off_by_less_than_one(ring, cut, size, seed):
    """Of values so small that none of these wraps, but for one run in a million."""
    x = np.random.default_rng(seed).integers(-(1 << size), 1 << size, 100, endpoint=True)
    found = truncated(ring, x, cut, seed)
    assert ((found == x >> cut) | (found == (x >> cut) + 1)).all()


@given(st.sampled_from(RINGS), st.integers(1, 20), st.integers(-(2**40), 2**40))
def test_its_mean_is_the_quotient(ring, cut, x):
    """So `reference.run`, which rounds to the nearest, is what it gives on average."""
    rest = truncated(ring, np.full(COUNT, x), cut) - (x >> cut)
    rest = rest[np.abs(rest) < 2]  # one wraps in 2^19 at 59 bits
    assert abs(rest.mean() - (x / 2**cut - (x >> cut))) < 6 * 0.5 / np.sqrt(COUNT)


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("ratio", [3, 7])
def test_it_wraps_with_the_probability_that_the_bound_counts(ring, sign, ratio):
    """|x| / 2^bits, and then it is off by a multiple of 2^(bits − cut)."""
    cut, x = 5, sign * (1 << (ring.bits - ratio))
    error = truncated(ring, np.full(COUNT, x), cut) - (x >> cut)
    wrapped = np.abs(error) > 1
    expected = 2.0**-ratio
    assert abs(wrapped.mean() - expected) < 5 * np.sqrt(expected / COUNT)
    assert (np.abs(np.abs(error[wrapped].astype(float)) / 2.0 ** (ring.bits - cut) - 1) < 1e-9).all()


@pytest.mark.parametrize("ring", RINGS)
def test_a_truncated_share_has_no_bits_above_the_ring(ring):
    client, server = shares(ring, np.arange(-COUNT, COUNT))
    for share in (ring.truncate_client(client, 9), ring.truncate_server(server, 9)):
        assert np.array_equal(ring.reduce(share), share)


def test_there_are_two():
    with pytest.raises(ValueError, match="a ring of 60 bits; known are 59 and 64"):
        Ring(60)
    assert [load(dump(ring)) for ring in RINGS] == RINGS
