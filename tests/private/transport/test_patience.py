"""Silence ends a connection, slowness does not."""

import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parelu.errors import ProtocolError
from parelu.private.transport import patience
from parelu.private.transport.channel import Channel, tcp
from parelu.private.transport.patience import LEAST_RATE, Ended, TooSlow, receive_all, send_all

TIMEOUT = 60.0


class Slow:
    """A peer that sends so many bytes at a time, each time after so many seconds."""

    def __init__(self, patch, size, seconds):
        self.now, self.size, self.seconds = 0.0, size, seconds
        patch.setattr(patience.time, "monotonic", lambda: self.now)

    def recv_into(self, buffer):
        self.now += self.seconds
        return min(len(buffer), self.size)


@given(size=st.integers(1, 5000), seconds=st.floats(0.01, TIMEOUT), length=st.integers(1, 50_000))
def test_what_comes_at_the_least_rate_is_taken_however_long_it_takes(size, seconds, length):
    with pytest.MonkeyPatch.context() as patch:
        peer = Slow(patch, size, seconds)
        try:
            assert len(receive_all(peer, length, TIMEOUT)) == length
            is_taken = True
        except TooSlow as error:
            is_taken = False
            assert str(error) == f"{error}" and peer.now > TIMEOUT
        if size >= LEAST_RATE * seconds:
            assert is_taken
        if not is_taken:
            assert peer.now <= TIMEOUT + seconds + length / LEAST_RATE


def test_a_byte_now_and_then_is_no_link(monkeypatch):
    peer = Slow(monkeypatch, 1, 19.0)
    with pytest.raises(TooSlow, match="4 bytes in 76 seconds"):
        receive_all(peer, 16, TIMEOUT)
    assert peer.now < 80


def test_what_came_before_the_end_is_known():
    parts = iter([b"ab", b"c", b""])

    class Peer:
        def recv_into(self, buffer):
            part = next(parts)
            buffer[: len(part)] = part
            return len(part)

    with pytest.raises(Ended) as caught:
        receive_all(Peer(), 10, TIMEOUT)
    assert caught.value.before == b"abc"


class Full:
    """A socket that has no room and nothing to read; after each wait the system holds so many bytes."""

    def __init__(self, monkeypatch, *left):
        self.left, self.sent = list(left), b""
        monkeypatch.setattr(patience, "held", lambda connection: self.left.pop(0))

    def send(self, data):
        if self.left:
            raise TimeoutError
        self.sent += bytes(data)
        return len(data)

    def recv_into(self, buffer):
        if self.left:
            raise TimeoutError
        return len(buffer)


def test_a_full_buffer_that_empties_slowly_is_waited_for(monkeypatch):
    link = Full(monkeypatch, 1_000_000, 940_000, 880_000)
    send_all(link, memoryview(b"hint"), TIMEOUT)
    assert link.sent == b"hint"


def test_an_answer_is_waited_for_while_the_question_is_on_its_way(monkeypatch):
    """A server's hints fill the system's buffer in no time, and take minutes from there."""
    assert len(receive_all(Full(monkeypatch, 180_000, 120_000, 1_000, 0), 4, TIMEOUT)) == 4
    for left in ((0,), (180_000, 180_000), (180_000, 179_000), (1_000, 0, 0)):
        with pytest.raises(TimeoutError):
            receive_all(Full(monkeypatch, *left, 0), 4, TIMEOUT)


@pytest.mark.parametrize("left", [(1_000_000, 1_000_000), (1_000_000, 940_000, 939_000), (0, 0)])
def test_a_full_buffer_that_stays_full_is_silence(left, monkeypatch):
    link = Full(monkeypatch, *left, *[0] * 9)
    with pytest.raises(TimeoutError):
        send_all(link, memoryview(b"hint"), TIMEOUT)


def connected():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = tcp(socket.create_connection(listener.getsockname()))
        return one, tcp(listener.accept()[0])


def test_the_system_tells_what_it_still_holds():
    one, two = connected()
    one.setblocking(False)
    while True:
        try:
            one.send(bytes(1 << 16))
        except BlockingIOError:
            break
    left = patience.held(one)
    assert left > 0
    two.setblocking(False)
    end = time.monotonic() + 20
    while patience.held(one) and time.monotonic() < end:
        try:
            two.recv(1 << 20)
        except BlockingIOError:
            time.sleep(0.01)
    assert patience.held(one) == 0
    one.close()
    two.close()


def test_an_end_is_noticed_before_it_is_this_sides_turn():
    one, two = (Channel(end, 5.0) for end in connected())
    assert one.ended() == ""
    two.fail("it is late")
    assert one.ended() == "the peer ended the connection: it is late"
    one.close()
    two.close()
    one, two = (Channel(end, 5.0) for end in connected())
    two.close()
    assert "closed the connection" in one.ended()
    with pytest.raises(ProtocolError):
        one.receive("kind", 0)
    one.close()


def test_a_peer_of_tls_is_told_from_noise():
    one, two = (Channel(end, 5.0) for end in connected())
    two.socket.sendall(bytes([21, 3, 3, 0, 2, 2, 70]))  # an alert
    two.close()
    with pytest.raises(ProtocolError, match=r"the peer speaks TLS.*; give --tls DIR on both sides"):
        one.receive("kind", 0)
    one.close()
