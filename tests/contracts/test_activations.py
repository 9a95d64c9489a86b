"""Every ReLU protocol: what it computes, and in how many messages."""

import socket
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.private.crypto.prg import Stream, fresh_seed
from parelu.private.crypto.ring import BITS, decode, encode, reduce
from parelu.private.offline.dealer import Dealer, DealtClient, Mirror
from parelu.private.protocol.relu import relus
from parelu.private.transport.channel import HEADER, Channel

RELUS = list(relus())


class Site:
    """relu of (n,) integers by two threads, with a dealer's material. `relu`: the result; `traffic`: the client's."""

    def __init__(self, name: str, x: Any, bits: int) -> None:
        self.protocol, self.bits = relus()[name], bits
        mirror, count = Mirror(fresh_seed()), len(x)
        share = Stream(fresh_seed(), "share").ring(count)
        self.protocol.prepare_client(mirror, 1, 0, share, bits)
        program: Any = SimpleNamespace(terms=SimpleNamespace(program=SimpleNamespace(layers=("relu",))))
        dealer = Dealer(mirror, program)
        material = self.protocol.prepare_server(dealer, 1, 0, count, bits)
        ours, theirs = (Channel(end) for end in socket.socketpair())
        thread = threading.Thread(target=self._serve, args=(theirs, dealer, material, reduce(encode(x) - share)))
        thread.start()
        try:
            client = self.protocol.prepare_client(DealtClient(mirror.seed, dealer.key, ours), 1, 0, share, bits)
            with ours.measured("online", "relu"):
                ours.send("mask", *self.protocol.answer(ours, client))
        finally:
            thread.join()
            ours.close()
            theirs.close()
        self.relu = decode(reduce(self.share + client.mask))
        self.traffic = ours.traffic["online", "relu"]

    def _serve(self, channel: Channel, dealer: Dealer, material: Any, share: Any) -> None:
        for _, tables in dealer.outgoing:
            channel.send("tabl", tables)
        opened = self.protocol.open(channel, material, share)
        answer = channel.receive("mask", self.protocol.answer_bytes(len(share)))
        self.share = self.protocol.close(material, opened, answer)


@pytest.mark.parametrize("name", RELUS)
@pytest.mark.parametrize("bits", [2, 3, 7, 20, BITS])
def test_exact_for_every_input_in_range(name, bits):
    """|x| < 2^(m − 1), the ends among them, under many masks."""
    end = (1 << (bits - 1)) - 1
    x = np.arange(-end, end + 1) if bits < 10 else np.array([-end, -end + 1, -2, -1, 0, 1, 2, end - 1, end])
    x = np.tile(x, 1 + 300 // len(x)).astype(np.int64)
    assert np.array_equal(Site(name, x, bits).relu, np.maximum(x, 0))


@settings(max_examples=15)
@given(st.sampled_from(RELUS), st.data(), st.integers(2, BITS))
def test_of_any_input_a_protocol_sees_its_bits(name, data, bits):
    """x or 0 by bit m − 1, also out of range, where that bit is no sign: as the reference replays it."""
    x = np.array(data.draw(st.lists(st.integers(-(1 << (BITS - 1)), (1 << (BITS - 1)) - 1), min_size=1, max_size=20)))
    seen = bits if name != "full" else BITS
    assert np.array_equal(Site(name, x, bits).relu, np.where(x >> (seen - 1) & 1, 0, x))


@pytest.mark.parametrize("name", RELUS)
def test_one_message_each_way(name):
    count = 40
    site = Site(name, np.arange(count), 18)
    assert site.traffic.turns == 1  # from receiving, as the tables were, to sending
    assert site.traffic.sent == HEADER.size + site.protocol.answer_bytes(count)


@pytest.mark.parametrize("bits", [2, 18, 32, BITS])
def test_fss_takes_16_bytes_online(bits):
    count = 100
    traffic = Site("fss", np.arange(count), bits).traffic
    assert traffic.received - HEADER.size == traffic.sent - HEADER.size == 8 * count
