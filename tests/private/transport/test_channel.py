"""Framing, counting and shaping; decoders of fixed-size bodies."""

import dataclasses
import os
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.errors import ProtocolError, UserError
from parelu.private.serving.greeting import FORMAT, _load
from parelu.private.transport import tls
from parelu.private.transport.channel import FAIL, HEADER, LINGER, Channel, bits_of, connect, elements_of, pack_bits
from parelu.private.transport.link import LINKS, Link, link_of, shaped


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


def test_a_message_up_to_a_length_is_taken_and_a_longer_one_refused():
    for size in (0, 4, 5, 6):
        one, two = pair()
        one.send("kind", bytes(size))
        if size <= 5:
            assert two.receive_up_to("kind", 5) == bytes(size)
        else:
            with pytest.raises(ProtocolError, match="message 0, 'kind' has 6 bytes, not at most 5"):
                two.receive_up_to("kind", 5)
        closed(one, two)


def test_a_length_that_is_not_said_is_none():
    one, two = pair()
    one.send("kind", b"x")
    with pytest.raises(ProtocolError, match="has 1 bytes, not at most 0"):
        two.expect("kind", None)
    closed(one, two)


def test_a_connection_sends_small_messages_at_once_and_says_where_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with connect("127.0.0.1", port, 1.0) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getpeername() == ("127.0.0.1", port) and connection.gettimeout() == 1.0
    for nobodys in (port, 1 << 17):
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{nobodys}: .*; is `parelu serve` running there\?"):
            connect("127.0.0.1", nobodys, 1.0)


def test_closing_again_or_what_is_broken_is_no_error():
    one, two = pair()
    for _ in range(2):
        closed(one, two)

    def close():
        raise OSError("not connected")

    Channel(SimpleNamespace(settimeout=lambda seconds: None, close=close)).close()


def test_after_a_failed_send_the_next_one_fails_in_the_same_way():
    """TLS looks at what it sends through a view that the error keeps alive; nobody may resize it then."""
    views = []

    def sendall(data):
        views.append(memoryview(data))
        raise OSError("broken")

    one = Channel(SimpleNamespace(settimeout=lambda seconds: None, sendall=sendall))
    for _ in range(2):
        with pytest.raises(ProtocolError, match=r"the connection broke while sending \(broken\)"):
            one.send("kind", b"abc")


def test_turns_are_changes_of_direction_and_a_clock_stands_still_inside_another(clock):
    one, two = pair()
    with one.measured("online", "outer"):
        clock.now += 1
        with one.measured("online", "inner"):
            clock.now += 10
            one.send("kind", b"x")
            one.send("kind", b"y")
        clock.now += 100
        two.receive("kind", 1)
        two.send("kind", b"zz")
        one.receive("kind", 2)
        one.send("kind")
    clock.now += 1000
    outer, inner = one.traffic["online", "outer"], one.traffic["online", "inner"]
    assert (outer.seconds, outer.cpu, inner.seconds, inner.cpu) == (101, 101, 10, 10)
    assert (outer.sent, outer.received, outer.turns) == (HEADER.size, HEADER.size + 2, 2)
    assert (inner.sent, inner.received, inner.turns) == (2 * HEADER.size + 2, 0, 1)
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


def test_a_slow_link_is_not_silence():
    """A message takes five times as long as a peer may be silent; data flows all the while."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    one, length, read = Channel(ours, timeout=0.4), 4 << 20, bytearray()

    def slowly():
        while len(read) < length + HEADER.size:
            read.extend(theirs.recv(1 << 15))
            time.sleep(2 / (length >> 15))

    thread = threading.Thread(target=slowly)
    thread.start()
    started = time.monotonic()
    one.send("kind", bytes(length))
    thread.join()
    assert time.monotonic() - started > 1.5 and len(read) == length + HEADER.size
    with pytest.raises(ProtocolError, match=r"took nothing for 0\.4 seconds"):
        one.send("kind", bytes(length))
    one.close()
    theirs.close()


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


def test_a_message_of_more_than_is_reserved_at_once_arrives_whole():
    one, two = pair()
    body = os.urandom((1 << 25) + 3)
    thread = threading.Thread(target=one.send, args=("kind", body))
    thread.start()
    assert two.receive("kind", len(body)).tobytes() == body
    thread.join()
    closed(one, two)


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


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves while a channel sleeps, and by hand."""
    clock = SimpleNamespace(now=100.0)

    def sleep(seconds):
        clock.now += seconds

    told = {name: lambda: clock.now for name in ("monotonic", "perf_counter", "process_time")}
    for module in ("link", "traffic"):
        monkeypatch.setattr(f"parelu.private.transport.{module}.time", SimpleNamespace(sleep=sleep, **told))
    return clock


def arrivals(clock, link, *sent, size=984, timeout=60.0):
    """When messages of 16 + size bytes that were sent at these times arrive, from the clock's start."""
    one, two = (Channel(shaped(end, link), timeout) for end in socket.socketpair())
    start, found = clock.now, []
    for at in sent:
        clock.now = start + at
        one.send("kind", bytes(size))
    for _ in sent:
        two.receive("kind", size)
        found.append(clock.now - start)
    closed(one, two)
    return found


def test_messages_queue_on_a_shaped_link(clock):
    """8 kbit/s, 2 s there and back: a message of 1,000 bytes takes a second, and a second more to arrive."""
    slow = Link(bandwidth=8e3, round_trip=2.0)
    assert arrivals(clock, slow, 0, 0, 0) == pytest.approx([2, 3, 4])
    assert arrivals(clock, slow, 0, 0.5, 10) == pytest.approx([10, 10, 12]), "read late; the link was long free"
    assert arrivals(clock, slow, 0, 0, size=1984) == pytest.approx([3, 5])
    assert arrivals(clock, Link(bandwidth=8e3), 0, 0) == pytest.approx([1, 2])
    assert arrivals(clock, Link(round_trip=2.0), 0, 0) == pytest.approx([1, 1])
    assert arrivals(clock, Link(), 0, 0) == pytest.approx([0, 0])
    assert arrivals(clock, slow, 0, timeout=0.5) == pytest.approx([0.5]), "never longer than the timeout"


@given(st.floats(1, 1e15), st.floats(1e-9, 10))
def test_a_links_text_is_read_as_the_link(bandwidth, round_trip):
    link = Link(bandwidth, round_trip)
    found = link_of(str(link))
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(link), rel=1e-8)
    assert str(found) == str(link)


@pytest.mark.parametrize("name", LINKS)
def test_a_named_link_says_its_name(name):
    assert str(LINKS[name]) == name and link_of(name) == LINKS[name]


@pytest.mark.parametrize(
    ("text", "link", "said"),
    [
        ("8Gb/s,0.3ms", Link(8e9, 0.3e-3), "8Gb/s,0.3ms"),
        (" 500 Mb/s , 2000 µs", Link(500e6, 2e-3), "500Mb/s,2ms"),
        ("1.5kb/s,.5s", Link(1500, 0.5), "1.5kb/s,500ms"),
        ("1000Mb/s,500us", LINKS["lan"], "lan"),
    ],
)
def test_a_link_is_bandwidth_and_round_trip(text, link, said):
    found = link_of(text)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(link)) and str(found) == said


@pytest.mark.parametrize(
    "text",
    [
        *("", "lann", "8Gb/s", "8Gb/s,1ms,1ms", "8GB/s,1ms", "8Gb,1ms", "8Gb/s,1", "8,1ms", "8Gb/s,1min"),
        *("0Gb/s,1ms", "-8Gb/s,1ms", "8Gb/s,0ms", "8Gb/s,-1ms", "1e-999Gb/s,1ms"),
        *("nanGb/s,1ms", "infGb/s,1ms", "1e999Gb/s,1ms", "8Gb/s,11s"),
    ],
)
def test_what_is_no_link_is_one_line_with_an_example(text):
    with pytest.raises(UserError, match=r"^link '.*': .*; give loopback, lan, wan, or .* as 8Gb/s,0.3ms$"):
        link_of(text)


def test_the_named_links_are_shaped_as_they_say(clock):
    """1 Gb/s and 0.5 ms, 100 Mb/s and 40 ms."""
    for name, seconds in (("lan", 25_000 * 8 / 1e9 + 0.25e-3), ("wan", 25_000 * 8 / 100e6 + 20e-3), ("loopback", 0)):
        assert arrivals(clock, LINKS[name], 0, size=24_984) == pytest.approx([seconds])


def test_a_message_from_the_future_is_as_one_that_was_sent_now(clock):
    """A peer's clock cannot hold up the link."""
    one, two = (Channel(shaped(end, Link(round_trip=2.0))) for end in socket.socketpair())
    clock.now += 50
    one.send("kind")
    clock.now -= 50
    two.receive("kind", 0)
    assert clock.now == pytest.approx(101)
    closed(one, two)


@settings(max_examples=1000)
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
    assert elements_of(words).tobytes() == words.tobytes()


GREETING = b'{"format": "%s", "nonce": "00", "pin": ""}' % FORMAT.encode()


@settings(max_examples=600)
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
