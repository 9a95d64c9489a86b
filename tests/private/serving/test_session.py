"""Sessions of two parties: terms, bad input, and peers that do not follow the protocol."""

import random
import threading

import numpy as np
import pytest
from two_parties import Pair, Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError, UserError
from parelu.private.lowering.encode import encode_images
from parelu.private.lowering.program import Program
from parelu.private.offline.he import HomomorphicEncryption
from parelu.private.offline.mode import modes
from parelu.private.serving.session import COMMAND, Session
from parelu.private.transport.channel import HEADER

LOWERED = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.3))
IMAGE = images_of(1, (1, 6, 6))[0]


def test_a_pinned_program_is_checked_by_both():
    with Pair(LOWERED, pin=LOWERED.program.digest) as pair:
        pair.infer(IMAGE)
    with pytest.raises(ProtocolError, match=r"is not the pinned 0000000000000000…; ask the operator"):
        Pair(LOWERED, pin="0" * 64)


def test_a_program_that_differs_between_the_parties_ends_the_session(monkeypatch):
    other = lowered_of(ready(Residual(width=6), (1, 6, 6))).program
    with Pair(LOWERED) as pair:
        pass
    monkeypatch.setattr(Program, "to_bytes", lambda self: b"{}")
    with pytest.raises(ProtocolError, match="the server's program is refused"):
        Pair(LOWERED)
    assert pair.server_error is None and other.digest


def test_a_server_whose_terms_do_not_go_together_is_refused(monkeypatch):
    """Without a dealer, wide keys would keep the client busy for ever."""
    monkeypatch.setattr(HomomorphicEncryption, "most_bits", 8)
    reason = (
        r"ReLU fss needs keys for m = \d+ bits at \w+; offline mode he makes them up to 8: give --offline dealer, or"
    )
    with pytest.raises(ProtocolError, match=f"terms do not go together: {reason}"):
        Pair(LOWERED, "fss", "he")


def test_images_of_the_wrong_size_or_range_are_refused_before_anything_is_sent():
    with Pair(LOWERED) as pair:
        good = encode_images(LOWERED.program, IMAGE[None])
        pair.client.prepare()
        none, wrong = r"the images are \(0, 1, 6, 6\)", r"the images are \(1, 1, 5, 6\)"
        for bad, message in ((good[:, :, :5], wrong), (good[:0], none), (good + 10_000, "outside of its range")):
            with pytest.raises(UserError, match=message):
                pair.client.infer(bad)
        assert len(pair.client.prepared) == 1
        pair.client.infer(good)
    assert pair.server_error is None


def test_offline_material_is_made_for_each_inference():
    with Pair(LOWERED) as pair:
        pair.client.prepare(3)
        masks = [m._content.mask.tobytes() for m in pair.client.prepared]
        assert len(set(masks)) == 3
        for _ in range(5):  # two more are made on the way
            pair.client.infer(encode_images(LOWERED.program, IMAGE[None]))
        assert not pair.client.prepared
    assert pair.done == 5


@pytest.mark.parametrize(
    "command", [(b"infr", 1), (b"infr", 2), (b"prep", 0), (b"prep", 10**6), (b"nope", 1), (b"end ", 3)]
)
def test_commands_out_of_order_end_the_session(command):
    with Pair(LOWERED) as pair:
        pair.client.channel.send("comd", COMMAND.pack(*command))
        pair.thread.join(5)
        assert not pair.thread.is_alive()
    assert isinstance(pair.server_error, ProtocolError)
    assert "inferences prepared" in str(pair.server_error)


class Mutator:
    """A client's socket that spoils what it sends: bytes flipped, cut, doubled, left out or replayed."""

    def __init__(self, socket, seed, skip):
        self.socket, self.random, self.skip, self.done = socket, random.Random(seed), skip, False
        self.sent = b""

    def sendall(self, data):
        data = bytes(data)
        if self.done or self.skip > 0 or not data:
            self.skip -= 1
            self.sent += data
            self.socket.sendall(data)
            return
        self.done = True
        position = self.random.randrange(len(data))
        header = self.random.random() < 0.5
        place = self.random.randrange(min(HEADER.size, len(data))) if header else position
        flipped = bytearray(data)
        flipped[place] ^= 1 << self.random.randrange(8)
        self.socket.sendall(
            self.random.choice(
                [
                    bytes(flipped),
                    data[:position],
                    data + data,
                    b"",
                    data + self.random.randbytes(40),
                    self.random.randbytes(len(data)),
                    self.sent[-len(data) :] or data,
                    b"\xff" * len(data),
                ]
            )
        )

    def __getattr__(self, name):
        return getattr(self.socket, name)


@pytest.mark.parametrize(("offline", "relu"), [*((mode, "sign") for mode in modes()), ("dealer", "fss"), ("he", "fss")])
def test_mutated_sessions_end_in_one_line_and_never_hang(offline, relu):
    """Sessions with one spoilt message each: every end is a result or one clear line on each side."""
    clear, ended = 0, 0
    sessions = 10 if (offline, relu) == ("he", "fss") else 100  # keys take seconds
    for seed in range(sessions):

        def wrap(socket, seed=seed):
            return Mutator(socket, seed, skip=seed % 13)

        pair = None
        try:
            pair = Pair(LOWERED, relu, offline, timeout=0.15 if sessions == 100 else 3, wrap=wrap)
            result, _ = pair.infer(IMAGE)
            assert result.shape == (5,)
            ended += 1
        except ProtocolError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            clear += 1
        finally:
            if pair is not None:
                pair.client.close()
                pair.thread.join(5)
                assert not pair.thread.is_alive()
                error = pair.server_error
                assert error is None or (isinstance(error, ProtocolError) and "\n" not in str(error)), repr(error)
    assert clear > 0.4 * sessions and clear + ended == sessions
    assert threading.active_count() < 5


def test_a_server_that_lies_about_its_program_is_refused():
    """The hash in the greeting, the program and the pin are compared; sizes are bounded before allocation."""
    with Pair(LOWERED) as pair:
        channel = pair.client.channel
        with pytest.raises(ProtocolError, match="at most"):
            pair.server_channel._numbers[0] = channel._numbers[1]
            pair.server_channel.socket.sendall(HEADER.pack(b"prog", channel._numbers[1], 1 << 40))
            channel.receive_up_to("prog", 1 << 20)
    assert isinstance(pair.client, Session)


def test_ring_elements_are_checked_on_both_sides():
    with Pair(LOWERED) as pair:
        pair.client.prepare()
        channel = pair.client.channel
        channel.send("comd", COMMAND.pack(b"infr", 1))
        channel.send("inpt", np.full(36, 2**63, np.uint64))
        pair.thread.join(5)
    assert "outside of the ring" in str(pair.server_error)
