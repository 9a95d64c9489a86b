"""The homomorphic offline phase between two parties: bounds on weights, integers by transfer, and its audit."""

import dataclasses
import functools
import re

import numpy as np
import pytest
from two_parties import Ends, Residual, lowered_of, ready

from parelu.errors import ProtocolError
from parelu.private.crypto import he
from parelu.private.crypto.prg import Stream, fresh_seed
from parelu.private.crypto.ring import encode
from parelu.private.offline import seal as mode
from parelu.private.offline.mode import Deviation, Keep
from parelu.private.offline.seal import HomomorphicEncryption
from parelu.private.offline.transfers import ObliviousClient, ObliviousServer
from parelu.private.protocol.delphi import Model, prepare_client
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.transport.channel import Channel

LOWERED = lowered_of(ready(Residual(), (1, 6, 6)))
PACKED = mode.packings(LOWERED.program)
MODE = HomomorphicEncryption()


def stream() -> Stream:
    return Stream(fresh_seed(), "test")


@pytest.mark.parametrize("width", [2, 9, 59, 64])
def test_integers_times_values(width, monkeypatch):
    """By oblivious transfer; signed factors of a few bits, and ring elements."""
    monkeypatch.setattr("parelu.private.offline.transfers.AT_ONCE", 100)  # several parts
    rng = np.random.default_rng(0)
    largest = 1 << (width - 1)
    factors = rng.integers(-largest, largest, 50)
    factors[:3] = -largest, largest - 1, 0
    values = stream().elements(50)
    abstract = {"linear": None, "square": None}
    end = type("Server", (ObliviousServer,), abstract), type("Client", (ObliviousClient,), abstract)

    def begun(side, channel):
        state = end[side](channel, bytes(16))
        state.begin()
        return state

    both = Ends(
        lambda channel: begun(1, channel).multiply(values, width),
        lambda channel: begun(0, channel).multiply(encode(factors), width),
    )
    got = both.results["client"] + both.results["server"]
    np.testing.assert_array_equal(got, encode(factors) * values)


def test_the_norm_is_that_of_the_packed_polynomials():
    found = []
    for number, packed in PACKED.items():
        weight = LOWERED.weights[number - 1]["weight"]
        columns = weight.reshape(len(weight), -1)
        for block in range(packed.output_blocks):
            found.append(sum(int(np.abs(packed.pack_weight(columns, block, r)).sum()) for r in packed.reads(block)))
    assert mode.norm(LOWERED, PACKED) == max(found)


def test_the_stated_width_holds_for_single_values():
    width = mode.width(LOWERED)
    for number, integers in LOWERED.weights.items():
        if number + 1 not in PACKED:
            for name in {"weight", "c2"} & set(integers):
                assert np.abs(integers[name]).max() < 1 << (width - 1)


def test_the_client_is_told_a_choice_and_no_bound_on_rows():
    """Networks with the same choice state the same bytes, however large their rows are."""
    large = dataclasses.replace(
        LOWERED,
        weights={
            number: {name: values * 4 if number + 1 in PACKED else values for name, values in integers.items()}
            for number, integers in LOWERED.weights.items()
        },
    )
    assert mode.norm(large, PACKED) == 4 * mode.norm(LOWERED, PACKED)
    assert mode.parameters(large, PACKED) == mode.parameters(LOWERED, PACKED)
    assert mode.width(large) == mode.width(LOWERED)


CHANNELS = np.array([how.channels for how in PACKED.values()], mode.CHANNELS)


@pytest.mark.parametrize(
    ("choice", "width", "channels", "message"),
    [
        (len(he.CHOICES), 9, CHANNELS, "states parameters"),
        (0, 1, CHANNELS, "states parameters"),
        (0, 59, CHANNELS, "states parameters"),
        (0, 9, 0 * CHANNELS, "packing is refused: 0 channels"),
        (0, 9, CHANNELS + 8192, "packing is refused: 8[0-9]* channels"),
    ],
)
def test_a_choice_that_is_none_is_refused(choice, width, channels, message):
    stated = mode.SIZES.pack(choice, width) + channels.astype(mode.CHANNELS).tobytes()

    class Plain(Channel):
        def send(self, kind, *parts):
            super().send(kind, *((stated,) if kind == "size" else parts))

    model = Model(LOWERED, relus()["sign"], reveal_of("exact"))
    both = Ends(
        lambda channel: MODE.client(channel, bytes(32), model.terms, "", Keep()),
        lambda channel: MODE.server(Plain(channel.socket, timeout=10), bytes(32), model),
    )
    assert isinstance(both.results["client"], ProtocolError)
    assert re.search(message, str(both.results["client"]))


class Audited:
    """Offline phases of a connection, each of which is opened when it is over; `rounds` that the server went through.

    deviate: what a client does to itself once the connection is set up.
    """

    def __init__(self, deviate=lambda client: None, phases: int = 1) -> None:
        model = Model(LOWERED, relus()["sign"], reveal_of("label"))
        self.rounds, self.keys = 0, []

        def client(channel: Channel) -> None:
            state = MODE.client(channel, bytes(32), model.terms, "", Keep())
            deviate(state)
            for _ in range(phases):
                prepare_client(model.terms, MODE.fetch(channel, state))
                self.keys.append(state.he.secret)
                MODE.show(channel, state)

        def server(channel: Channel) -> None:
            state = MODE.server(channel, bytes(32), model)
            for _ in range(phases):
                MODE.serve(channel, state, model, audited=True)
                MODE.audit(channel, state, model)
                self.rounds += 1

        self.results = Ends(client, server).results


def test_an_honest_client_passes_every_audit_and_shows_another_key_each_time():
    audited = Audited(phases=3)
    assert audited.results == {"client": None, "server": None}
    assert audited.rounds == 3
    assert all((one != other).mean() > 0.6 for one, other in zip(audited.keys, audited.keys[1:], strict=False))


def deviating(how):
    """A client whose keys are replaced, where one is made, by one that deviates."""

    def deviate(state) -> None:
        start = state.start

        def replaced() -> None:
            start()
            how(state.he)

        state.start = replaced

    return deviate


def shift_an_upload(client: he.Client) -> None:
    """The last of a query's uploads, by a one-hot below q/t and above the flooding."""
    encrypt = client.encrypt
    client.uploads = 0

    def shifted(values):
        body, client.uploads = encrypt(values), client.uploads + 1
        if client.uploads < sum(packed.uploads for packed in PACKED.values()):
            return body
        context, width = client.context, client.parameters.widths
        upload = np.frombuffer(body, np.uint8)
        quarter = int(np.prod([int(p) for p in context.primes], dtype=object)) >> (he.BITS + 2)
        moved = he._received(client.parameters, upload)[0] + np.array(
            [[quarter % p] for p in context.primes], np.uint64
        )
        return he._pack(moved % context.moduli, width) + body[-he.SEED_BYTES :]

    client.encrypt = shifted


def show_another_key(client: he.Client) -> None:
    client.secret = np.roll(client.secret, 1)


def show_no_key(client: he.Client) -> None:
    client.show = lambda: b"\xff" * he.SECRET_BYTES


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (shift_an_upload, "a ciphertext of the client's is no fresh encryption"),
        (show_another_key, "public key is no encryption of zero"),
        (show_no_key, "shows as its secret key is none"),
    ],
)
def test_an_audit_finds_every_deviation(how, message):
    audited = Audited(deviating(how))
    assert isinstance(audited.results["server"], Deviation)
    assert message in str(audited.results["server"])
    assert audited.rounds == 0


def test_the_wire_does_not_tell_which_phase_will_be_opened():
    """Neither messages nor their sizes, until it is."""
    model = Model(LOWERED, relus()["sign"], reveal_of("label"))
    sent: dict[bool, list[tuple[str, int]]] = {False: [], True: []}

    def client(channel: Channel) -> None:
        prepare_client(model.terms, MODE.fetch(channel, MODE.client(channel, bytes(32), model.terms, "", Keep())))

    def server(channel: Channel, audited: bool) -> None:
        announce, found = channel.announce, sent[audited]
        channel.announce = lambda kind, length: (found.append((kind, length)), announce(kind, length))[1]
        MODE.serve(channel, MODE.server(channel, bytes(32), model), model, audited=audited)

    for audited in sent:
        Ends(client, functools.partial(server, audited=audited))
    assert sent[False] == sent[True]
    assert len(sent[True]) > 5


def test_uploads_are_kept_for_an_audit_alone_and_dropped_after_it():
    model = Model(LOWERED, relus()["sign"], reveal_of("label"))
    kept = []

    def server(channel: Channel) -> None:
        state = MODE.server(channel, bytes(32), model)
        MODE.serve(channel, state, model)
        kept.append(state.uploads)
        MODE.serve(channel, state, model, audited=True)
        kept.append(len(state.uploads))
        MODE.audit(channel, state, model)
        kept.append(state.uploads)

    def client(channel: Channel) -> None:
        state = MODE.client(channel, bytes(32), model.terms, "", Keep())
        for _ in range(2):
            prepare_client(model.terms, MODE.fetch(channel, state))
        MODE.show(channel, state)

    Ends(client, server)
    assert kept == [None, sum(packed.uploads for packed in PACKED.values()), None]
