"""Every offline mode: what it says of audits is what it does."""

import socket
import threading

import pytest
from two_parties import WIDE, Pair, Residual, lowered_of, ready

from parelu.errors import ProtocolError, UserError
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model, prepare_client
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.transport.channel import Channel

NETWORK = ready(Residual(), (1, 6, 6))
MODEL = Model(lowered_of(NETWORK), relus()["sign"], reveal_of("label"))
CONTEXT = bytes(32)


def both(client, server) -> list:
    """What two ends of a connection return."""
    ends, results = socket.socketpair(), [None, None]

    def run(index, party) -> None:
        results[index] = party(Channel(ends[index], timeout=20))

    thread = threading.Thread(target=run, args=(1, server))
    thread.start()
    run(0, client)
    thread.join()
    for end in ends:
        end.close()
    return results


@pytest.mark.parametrize("name", modes())
def test_phases_that_are_opened_and_phases_that_are_not_follow_each_other(name):
    """Of three, the first and the last are opened where the mode audits; each has material of its own."""
    mode = modes()[name]
    mode.make(MODEL)
    opened = [mode.audits, False, mode.audits]

    def client(channel):
        state, found = mode.client(channel, CONTEXT, MODEL.terms, mode.make(MODEL), Keep()), []
        for is_opened in opened:
            found.append(prepare_client(MODEL.terms, mode.fetch(channel, state)).dump())
            if is_opened:
                mode.show(channel, state)
        return found

    def server(channel):
        state, found = mode.server(channel, CONTEXT, MODEL), []
        for is_opened in opened:
            found.append(mode.serve(channel, state, MODEL, audited=is_opened).dump())
            if is_opened:
                mode.audit(channel, state, MODEL)
        return found

    for materials in both(client, server):
        assert len(set(materials)) == len(opened)


@pytest.mark.parametrize("name", [name for name, mode in modes().items() if not mode.audits])
def test_a_mode_that_does_not_audit_says_so(name):
    for end in (lambda: modes()[name].audit(None, None, MODEL), lambda: modes()[name].show(None, None)):
        with pytest.raises(NotImplementedError, match=f"{name} cannot be audited"):
            end()


@pytest.mark.parametrize("name", [name for name, mode in modes().items() if mode.ring_bits < WIDE.bits])
def test_a_program_of_a_wider_ring_is_refused_in_a_line_that_names_the_fix(name):
    """By the server before it listens, by the client before anything is sent."""
    wide, message = lowered_of(NETWORK, ring=WIDE), f"ring has 64 bits; offline mode {name} .*: give --offline .*dealer"
    with pytest.raises(UserError, match=message) as refused:
        modes()[name].check_terms(wide.program, relus()["sign"])
    assert "\n" not in str(refused.value)
    with pytest.raises(ProtocolError, match=message):
        Pair(wide, offline=name)
