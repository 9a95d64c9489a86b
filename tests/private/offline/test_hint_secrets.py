"""The public part of a client's secrets: who commits to one that is not honest, and stops, is caught or counted."""

import contextlib
import hashlib

import pytest
from hand_programs import Hand
from two_parties import WIDE, Pair

from parelu.errors import ProtocolError
from parelu.private.crypto.prg import derive
from parelu.private.offline import hint_secrets, hints
from parelu.private.offline.hint_secrets import CANDIDATES
from parelu.private.serving.ledger import MOST_UNANSWERED, Ledger, Record
from parelu.private.serving.session import Service


def small():
    hand = Hand((1, 4, 4), WIDE)
    hand.linear(hand.activation(hand.truncate(hand.conv(0, 2)), 0.3), 3)
    return hand.lowered()


LOWERED = small()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("shows", [True, False])
def test_who_stops_where_it_cannot_show_a_seed_gains_no_try(shows, monkeypatch):
    """One candidate is malformed. Where another is chosen the client shows a seed that is none, or nothing at all, and
    goes away before it sends a ciphertext."""

    def offer(channel, use, seed):
        seeds = [derive(seed, "secrets", number) for number in range(CANDIDATES)]
        parts = [hint_secrets.public_part(use.secrets(each)) for each in seeds]
        parts[0] = bytes([parts[0][0] ^ 1]) + parts[0][1:]
        channel.send("cmit", *(hashlib.sha256(part).digest() for part in parts))
        chosen = int(channel.receive("chos", 1)[0])
        if chosen and shows:
            channel.send("open", *(each for number, each in enumerate(seeds) if number != chosen))
            with contextlib.suppress(ProtocolError):  # the server may have gone by now
                channel.send("beta", parts[chosen])
        raise Stopped(chosen)

    monkeypatch.setattr(hints, "offer", offer)
    account = Ledger().account("a")
    for phases in range(1, MOST_UNANSWERED + 1):
        pair = Pair(LOWERED, "sign", "hints", service=Service(account=account))
        with pytest.raises(Stopped) as stopped:
            pair.client.prepare()
        pair.client.channel.close()
        pair.thread.join()
        if shows and stopped.value.args[0]:
            assert account.record.barred.startswith("caught: the public part of a client's secrets is not the one")
            return
        assert account.record == Record("a", 0, phases, phases, 0, "")
    assert account.record.barred == f"{MOST_UNANSWERED} offline phases were not shown"
