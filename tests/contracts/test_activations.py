"""Every ReLU protocol: what it computes, and in how many messages."""

import socket
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_parties import Residual, lowered_of, ready

from parelu.errors import UserError
from parelu.private.crypto.prg import Stream, fresh_seed
from parelu.private.crypto.ring import WIDTHS, Ring, encode
from parelu.private.lowering.reference import _Modulo
from parelu.private.offline.dealer import Dealer, DealtClient, Mirror
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.transport.channel import HEADER, Channel, bits_of

RELUS = list(relus())
TRUNCATING = [name for name, relu in relus().items() if relu.truncates]
NARROW, WIDE = map(Ring, WIDTHS)


def any_integers(ring: Ring) -> st.SearchStrategy[list[int]]:
    """Of the whole ring."""
    return st.lists(st.integers(-(1 << (ring.bits - 1)), (1 << (ring.bits - 1)) - 1), min_size=1, max_size=20)


class Site:
    """relu of (n,) integers by two threads, with a dealer's material. What is above the ring's bits of shares is noise.

    relu: the result; share: the client's, of x; traffic: the client's.
    """

    def __init__(self, name: str, x: Any, bits: int, cut: int = 0, ring: Ring = WIDE) -> None:
        self.protocol, self.bits, self.cut = relus()[name], bits, cut
        mirror, count = Mirror(fresh_seed()), len(x)
        self.share = share = Stream(fresh_seed(), "share").elements(count)
        self.protocol.prepare_client(mirror, 1, 0, share, bits, cut, ring)
        program: Any = SimpleNamespace(terms=SimpleNamespace(program=SimpleNamespace(layers=("relu",))))
        dealer = Dealer(mirror, program)
        material = self.protocol.prepare_server(dealer, 1, 0, count, bits, cut, ring)
        ours, theirs = (Channel(end) for end in socket.socketpair())
        noise = Stream(fresh_seed(), "noise").elements(count)
        other = encode(x) - share + noise - ring.reduce(noise)
        thread = threading.Thread(target=self._serve, args=(theirs, dealer, material, other))
        thread.start()
        try:
            offline = DealtClient(mirror.seed, dealer.key, ours)
            client = self.protocol.prepare_client(offline, 1, 0, share, bits, cut, ring)
            with ours.measured("online", "relu"):
                ours.send("mask", *self.protocol.answer(ours, client))
        finally:
            thread.join()
            ours.close()
            theirs.close()
        self.relu = ring.decode(self.closed + client.mask)
        self.traffic = ours.traffic["online", "relu"]

    def _serve(self, channel: Channel, dealer: Dealer, material: Any, share: Any) -> None:
        for _, tables in dealer.outgoing:
            channel.send("tabl", tables)
        opened = self.protocol.open(channel, material, share)
        self.material = material
        self.answer = channel.receive("mask", self.protocol.answer_bytes(len(share), self.cut))
        self.closed = self.protocol.close(material, opened, self.answer)


@pytest.mark.parametrize("name", RELUS)
@pytest.mark.parametrize(
    ("bits", "ring"),
    [(2, WIDE), (3, NARROW), (7, WIDE), (20, WIDE), (20, NARROW), (59, NARROW), (59, WIDE), (64, WIDE)],
)
def test_exact_for_every_input_in_range(name, bits, ring):
    """|x| < 2^(m − 1), the ends among them, under many masks."""
    end = (1 << (bits - 1)) - 1
    x = np.arange(-end, end + 1) if bits < 10 else np.array([-end, -end + 1, -2, -1, 0, 1, 2, end - 1, end])
    x = np.tile(x, 1 + 300 // len(x)).astype(np.int64)
    assert np.array_equal(Site(name, x, bits, ring=ring).relu, np.maximum(x, 0))


@settings(max_examples=15)
@given(st.sampled_from(RELUS), st.data(), st.sampled_from([NARROW, WIDE]))
def test_of_any_input_a_protocol_sees_its_bits(name, data, ring):
    """x or 0 by bit m − 1, also out of range, where that bit is no sign: as the reference replays it."""
    x, bits = np.array(data.draw(any_integers(ring))), data.draw(st.integers(2, ring.bits))
    seen = bits if name != "full" else ring.bits
    assert np.array_equal(Site(name, x, bits, ring=ring).relu, np.where(x >> (seen - 1) & 1, 0, x))


@pytest.mark.parametrize("name", RELUS)
def test_one_message_each_way(name):
    count = 40
    site = Site(name, np.arange(count), 18)
    assert site.traffic.turns == (2 if name == "sign" else 1)  # of the others tables were received before
    assert site.traffic.sent == HEADER.size + site.protocol.answer_bytes(count, 0)


@pytest.mark.parametrize(
    ("name", "bits", "cut"),
    [(name, *width) for name in TRUNCATING for width in [(2, 1), (2, 5), (3, 2), (5, 4), (12, 13), (16, 18)]]
    + [("full", 20, 38), ("full", 29, 30)],  # where shares wrap, only this one is exact
)
@pytest.mark.parametrize("ring", [NARROW, WIDE])
def test_truncated_exactly_for_every_input_in_range(name, bits, cut, ring):
    """All that becomes less than 2^(m − 1), the ends and halves among it: no bit depends on a mask."""
    half, end = 1 << (cut - 1), 1 << (bits + cut - 1)
    ends = [-end, -end + 1, -half - 1, -half, -half + 1, -1, 0, 1, half - 1, half, half + 1, end - half - 1]
    x = np.arange(-end, end - half) if bits + cut < 10 else np.array(ends)
    x = np.tile(x, 1 + 300 // len(x)).astype(np.int64)
    assert np.array_equal(Site(name, x, bits, cut, ring).relu, np.maximum((x + half) >> cut, 0))


@settings(max_examples=15)
@given(st.sampled_from(TRUNCATING), st.data(), st.sampled_from([NARROW, WIDE]), st.integers(1, 30))
def test_of_any_input_a_truncating_protocol_makes_what_the_reference_replays(name, data, ring, cut):
    """Also where the shares wrap, or bit m + cut − 1 is no sign."""
    x, bits = np.array(data.draw(any_integers(ring))), data.draw(st.integers(2, ring.bits))
    site = Site(name, x, bits, cut, ring)
    replayed = _Modulo(ring.bits).divided(x, site.share.astype(np.int64), cut, bits, name)
    assert np.array_equal(site.relu, ring.decode(encode(replayed)))


@pytest.mark.parametrize(("cut", "outputs"), [(0, 1), (13, 2)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_server_sees_no_bit_of_signs_circuit(cut, outputs, sign):
    """Not even with its own π and ρ taken off, whether the sign and the carry are 0 for sure or are not."""
    count = 2000
    site = Site("sign", np.full(count, sign << (5 + cut)), 12, cut)
    bits = bits_of(site.answer[8 * count :], outputs * count).reshape(outputs, count) ^ site.material.permutation
    assert np.abs(bits.mean(1) - 0.5).max() < 5 * 0.5 / np.sqrt(count)


@pytest.mark.parametrize("name", RELUS)
def test_who_truncates_says_so(name):
    """The others are refused before anything runs, and the line names what to give."""
    lowered = lowered_of(ready(Residual(), (1, 6, 6)))
    with nullcontext() if name in TRUNCATING else pytest.raises(UserError, match=r"give --relu .*sign"):
        assert Model(lowered, relus()[name], reveal_of("exact"), "exact").terms.truncation == "exact"
    with pytest.raises(UserError, match="unknown truncation 'near'"):
        Model(lowered, relus()[name], reveal_of("exact"), "near")


@pytest.mark.parametrize("bits", [2, 18, 32, 64])
def test_fss_takes_16_bytes_online(bits):
    count = 100
    traffic = Site("fss", np.arange(count), bits).traffic
    assert traffic.received - HEADER.size == traffic.sent - HEADER.size == 8 * count
