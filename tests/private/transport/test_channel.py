"""Framing, counting and shaping; decoders of fixed-size bodies."""

import os
import socket
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.errors import ProtocolError
from parelu.private.serving.session import FORMAT, _load
from parelu.private.transport import tls
from parelu.private.transport.channel import FAIL, HEADER, LINGER, Channel, bits_of, pack_bits, ring_of
from parelu.private.transport.link import LINKS, Link, shaped


def pair(link="loopback", timeout=5.0):
    return [Channel(shaped(end, LINKS[link]), timeout) for end in socket.socketpair()]


def closed(*channels):
    for channel in channels:
        channel.close()


def test_messages_arrive_whole_and_are_counted():
    one, two = pair()
    parts = [np.arange(10, dtype=np.uint64), b"abc", np.zeros((2, 3, 2), np.uint64), os.urandom(200_000)]
    length = 80 + 3 + 96 + 200_000
    received = []
    with one.measured("online", "a"):
        thread = threading.Thread(target=lambda: received.append(two.receive("kind", length)))
        thread.start()
        one.send("kind", *parts)
        thread.join()
    with two.measured("online", "b"):
        two.send("k")
        one.receive("k", 0)
    joined = b"".join(np.ascontiguousarray(p).tobytes() if isinstance(p, np.ndarray) else p for p in parts)
    assert received[0].tobytes() == joined
    assert one.traffic["online", "a"].sent == HEADER.size + length
    assert two.traffic["online", "b"].sent == HEADER.size
    assert one.traffic["online", "a"].turns == 1
    closed(one, two)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((b"othr", 0, 8), "message 0, 'kind' was due, message 0, 'othr' came"),
        ((b"kind", 1, 8), "out of order, replayed or forged"),
        ((b"kind", 0, 7), "has 7 bytes, not 8"),
        ((b"kind", 0, 2**60), "has 1152921504606846976 bytes, not 8"),
        ((FAIL, 0, 2**40), "'fail' came"),
    ],
)
def test_another_header_ends_the_connection_before_its_body(header, message):
    one, two = pair()
    one.socket.sendall(HEADER.pack(*header))
    with pytest.raises(ProtocolError, match=message):
        two.receive("kind", 8)
    closed(one, two)


def test_a_replayed_message_is_refused():
    one, two = pair()
    one.send("kind", bytes(8))
    assert two.receive("kind", 8).tolist() == [0] * 8
    one._numbers[0] -= 1
    one.send("kind", bytes(8))
    with pytest.raises(ProtocolError, match="replayed"):
        two.receive("kind", 8)
    closed(one, two)


def test_silence_and_a_closed_connection_are_named():
    one, two = pair(timeout=0.1)
    with pytest.raises(ProtocolError, match=r"silent for 0\.1 seconds"):
        two.receive("kind", 8)
    one.socket.sendall(HEADER.pack(b"kind", 0, 8) + bytes(3))
    one.close()
    with pytest.raises(ProtocolError, match="closed the connection in the middle"):
        two.receive("kind", 8)
    closed(one, two)


def test_the_peers_reason_arrives_in_one_printable_line():
    one, two = pair()
    thread = threading.Thread(target=lambda: one.fail("no\nmore\x1b[31m room"))
    thread.start()
    with pytest.raises(ProtocolError) as error:
        two.receive("kind", 8)
    two.close()
    thread.join()
    assert str(error.value) == "the peer ended the connection: nomore[31m room"
    one.close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_reason_reaches_a_peer_that_is_in_the_middle_of_sending(encrypted, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = [socket.create_connection(listener.getsockname()), listener.accept()[0]]
    if encrypted:
        tls.make_certificates(tmp_path)
        contexts = tls.client_context(tmp_path), tls.server_context(tmp_path)
        accepted = []
        thread = threading.Thread(target=lambda: accepted.append(tls.handshake(contexts[1], ends[1])))
        thread.start()
        ends[0] = tls.handshake(contexts[0], ends[0], "127.0.0.1")
        thread.join()
        ends[1] = accepted[0]
    sender, failing = (Channel(end, timeout=5.0) for end in ends)

    def fail():
        failing.expect("kind", 50_000_000)
        failing.fail("the stock is full")
        failing.close()

    thread = threading.Thread(target=fail)
    thread.start()
    sender.send("kind", bytes(50_000_000))
    with pytest.raises(ProtocolError, match="the stock is full"):
        sender.receive("kind", 8)
    sender.close()
    thread.join()


@pytest.mark.parametrize("sends_on", [False, True])
def test_a_party_that_failed_reads_on_for_a_moment_only(sends_on, monkeypatch):
    monkeypatch.setattr("parelu.private.transport.channel.LINGER", 0.5 if sends_on else LINGER)
    one, two = pair()

    def send():
        with pytest.raises(ProtocolError, match="while sending"):
            while True:
                two.send("kind", bytes(1000))

    thread = threading.Thread(target=send)
    if sends_on:
        thread.start()
    start = time.monotonic()
    one.fail("no")
    assert time.monotonic() - start < LINGER
    one.close()
    if sends_on:
        thread.join(10)
        assert not thread.is_alive()
    two.close()


def test_memory_does_not_grow_by_what_a_header_claims():
    one, two = pair()
    one.socket.sendall(HEADER.pack(b"kind", 0, 1 << 40))
    one.close()
    with pytest.raises(ProtocolError, match="closed"):
        two.receive("kind", 1 << 40)
    two.close()


def test_a_shaped_link_takes_its_time():
    one, two = pair("wan")
    start = time.monotonic()
    body = bytes(250_000)  # 20 ms at 100 Mb/s
    thread = threading.Thread(target=one.send, args=("kind", body))
    thread.start()
    two.receive("kind", len(body))
    thread.join()
    two.send("k")
    one.receive("k", 0)
    assert time.monotonic() - start >= 0.040 + 0.020
    assert two.traffic == {}
    closed(one, two)


@pytest.mark.parametrize(("link", "least"), [(Link(0.0, 0.04), 0.02), (Link(100e6, 0.0), 0.02)])
def test_a_link_may_delay_only_or_limit_only(link, least):
    one, two = (Channel(shaped(end, link)) for end in socket.socketpair())
    start, body = time.monotonic(), bytes(250_000)
    thread = threading.Thread(target=one.send, args=("kind", body))
    thread.start()
    two.receive("kind", len(body))
    thread.join()
    assert least <= time.monotonic() - start < 2 * least + 1
    closed(one, two)


def test_what_is_sent_waits_until_the_link_is_free():
    """Messages sent at once arrive one after another, each 20 ms at 4 Mb/s."""
    one, two = (Channel(shaped(end, Link(4e6, 0.02))) for end in socket.socketpair())
    body, arrivals = bytes(10_000), []
    start = time.monotonic()
    for _ in range(4):
        one.send("kind", body)
    for _ in range(4):
        two.receive("kind", len(body))
        arrivals.append(time.monotonic() - start)
    taken = 8 * len(body) / 4e6
    assert all(arrival >= (number + 1) * taken + 0.01 for number, arrival in enumerate(arrivals))
    assert arrivals[-1] < 4 * taken + 0.01 + 1
    closed(one, two)


def test_a_shaped_link_carries_the_same_messages():
    """Parts of any size, a reason at the end, and a peer that closes."""
    one, two = pair("lan")
    sizes = [0, 1, 16, 65_536, 65_537, 300_000]
    bodies = [os.urandom(size) for size in sizes]
    thread = threading.Thread(target=lambda: (one.send("kind", *bodies), one.fail("enough"), one.close()))
    thread.start()
    assert two.receive("kind", sum(sizes)).tobytes() == b"".join(bodies)
    with pytest.raises(ProtocolError, match="the peer ended the connection: enough"):
        two.receive("kind", 1)
    with pytest.raises(ProtocolError, match="closed the connection"):
        two.receive("kind", 1)
    two.close()
    thread.join()


@settings(max_examples=4000)
@given(st.binary(max_size=80), st.integers(0, 70))
def test_decoders_take_only_what_encoders_make(body, count):
    array = np.frombuffer(body, np.uint8)
    try:
        bits = bits_of(array, count)
    except ProtocolError:
        pass
    else:
        assert pack_bits(bits).tobytes() == body and len(bits) == count
    words = array[: len(array) // 8 * 8]
    try:
        elements = ring_of(words)
    except ProtocolError:
        assert any(word >> 59 for word in np.frombuffer(words.tobytes(), np.uint64).tolist())
    else:
        assert elements.tobytes() == words.tobytes() and not (elements >> np.uint64(59)).any()


GREETING = b'{"format": "%s", "nonce": "00", "pin": ""}' % FORMAT.encode()


@settings(max_examples=2000)
@given(st.lists(st.tuples(st.integers(0, len(GREETING) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 60))
def test_mutated_greetings_are_refused_or_sound(changes, end):
    data = bytearray(GREETING)
    for position, byte in changes:
        data[position] = byte
    try:
        value = _load(bytes(data[: end + 30]), ("nonce", "pin"))
    except ProtocolError as error:
        assert "\n" not in str(error)
    else:
        assert set(value) == {"nonce", "pin"} and all(isinstance(v, str) for v in value.values())
