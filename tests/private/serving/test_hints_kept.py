"""Hints of a deployed pair: sent once to a client, kept in folders that stay small, never free."""

import functools
import os
import threading
import time

import numpy as np
import pytest
from deployed import deployed, until
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError
from parelu.fusion.hint_plan import OFTEN, ONCE, plan
from parelu.private.lowering import reference
from parelu.private.lowering.layers import layers
from parelu.private.offline import hint_exchange, hint_folder, hint_sets
from parelu.private.offline.hint_sets import Use
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.serving.client import Client
from parelu.private.transport import tls
from parelu.private.transport.channel import Channel

LOWERED = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.4))
IMAGES = images_of(3, (1, 6, 6))
EXPECTED = reference.run(LOWERED, IMAGES).logits
LAYERS = layers(LOWERED.program)
FEW, MANY = (Use(LOWERED.program.digest, LOWERED.commitment, plan(LAYERS, often)).bytes for often in (ONCE, OFTEN))
A_FEW = 2000  # bytes of what is said about hints that are not sent


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls") / "certs"
    tls.make_certificates(folder, ("localhost",))
    return folder


@pytest.fixture(autouse=True)
def a_choice(monkeypatch):
    """Of a network this small a server would offer the set for few queries alone."""
    monkeypatch.setattr(hint_sets, "plans", lambda layers: (plan(layers, ONCE), plan(layers, OFTEN)))
    monkeypatch.setattr(hint_exchange, "best", lambda plans, queries: int(queries > 100))


serving = functools.partial(deployed, LOWERED, offline="hints")


def received(server, certificates, keep, images=IMAGES):
    """Bytes of hints that a connection got, which also has to be right."""
    with Client("localhost", server.port, certificates, keep=keep) as client:
        logits = client.predict(images)
        assert np.abs(logits - EXPECTED[: len(images)]).max() < 0.05
        return client.session.channel.traffic["setup", "hints"].received


def test_hints_come_once_over_tls(certificates, tmp_path):
    """A process that comes again finds its hints; one that expects few queries takes those for many."""
    with serving(certificates) as (server, _):
        assert FEW < received(server, certificates, Keep(1, tmp_path)) < FEW + A_FEW
        assert received(server, certificates, Keep(1, tmp_path)) < A_FEW
        assert MANY < received(server, certificates, Keep(10_000, tmp_path)) < MANY + A_FEW
        (tmp_path / min(tmp_path.iterdir(), key=lambda file: file.stat().st_size)).unlink()
        assert received(server, certificates, Keep(1, tmp_path)) < A_FEW
        keep = Keep(1)
        assert received(server, certificates, keep) > FEW
        assert received(server, certificates, keep) < A_FEW, "in memory"
    assert len(list(tmp_path.iterdir())) == 1


def test_progress_is_of_bytes_and_ends(certificates, tmp_path):
    made, come = [], []
    model = Model(LOWERED, relus()["sign"], Exact())
    modes()["hints"].make(model, Keep(folder=tmp_path, progress=lambda *step: made.append(step)))
    assert modes()["hints"].sizes(model) == (FEW, MANY)
    assert {total for _, total in made} == {FEW + MANY} and made[-1][0] == FEW + MANY
    assert sorted(made) == made and len(set(made)) == len(made)
    with serving(certificates) as (server, _):
        received(server, certificates, Keep(progress=lambda *step: come.append(step)), IMAGES[:1])
    assert come[-1] == (FEW, FEW)


def test_a_clients_folder_stays_small(certificates, tmp_path, monkeypatch):
    """The longest unused go; what was just used stays, also where it alone is too large."""
    monkeypatch.setattr(hint_folder, "MOST_KEPT", FEW + 300)
    for number, age in enumerate((30, 20, 10)):
        file = tmp_path / f"{number}.hints"
        file.write_bytes(bytes(150))
        os.utime(file, (time.time() - age, time.time() - age))
    (tmp_path / "mine.txt").write_text("not ours")
    hint_folder.touch(tmp_path / "0.hints")
    with serving(certificates) as (server, _):
        received(server, certificates, Keep(1, tmp_path), IMAGES[:1])
        kept = sorted(file.name for file in tmp_path.iterdir() if file.stat().st_size <= 150)
        assert kept == ["0.hints", "2.hints", "mine.txt"]
        received(server, certificates, Keep(10_000, tmp_path), IMAGES[:1])
    assert [file.stat().st_size for file in tmp_path.glob("*.hints")] == [MANY]


def test_a_servers_folder_has_the_sets_of_its_program_alone(certificates, tmp_path):
    """What other weights left goes, but not from under a server that still runs, nor while somebody writes it."""
    mode, first, second = modes()["hints"], *(Model(LOWERED, relus()["sign"], Exact()) for _ in range(2))
    mode.make(first, Keep(folder=tmp_path, alone=True))
    own = sorted(tmp_path.glob("*.hints"))
    left, written, abandoned = (tmp_path / name for name in ("old.hints", ".a.hints.1.x", ".b.hints.2.x"))
    for file in (left, written, abandoned):
        file.write_bytes(b"hints")
    os.utime(abandoned, (0, 0))
    before = [file.stat().st_mtime_ns for file in own]
    mode.make(second, Keep(folder=tmp_path, alone=True))
    assert sorted(tmp_path.iterdir()) == sorted([written, *own])
    assert [file.stat().st_mtime_ns for file in own] == before, "taken, not made"
    hint_folder.drop_others(tmp_path, ())
    made = first.made["hints"]
    assert [each.use.digest(each.body()) for each in made] == [each.digest for each in made]
    assert not list(tmp_path.glob("*.hints"))


def test_a_client_that_leaves_in_the_middle_frees_its_place(certificates, tmp_path):
    def leaves(done, total):
        raise KeyboardInterrupt

    with serving(certificates, clients=1) as (server, lines):
        with pytest.raises(KeyboardInterrupt):
            received(server, certificates, Keep(10_000, tmp_path, progress=leaves))
        assert until(lambda: lines), "its place is free"
        assert not list(tmp_path.iterdir()), "nothing is left of half a set"
        assert received(server, certificates, Keep(1, tmp_path)) > FEW
    assert "internal error" not in lines[0]


def test_no_hints_without_an_offline_phase_of_the_budget(certificates):
    """Whoever asks for hints again pays with a phase, and gets none where none is left."""
    sent = []

    def counting(channel, kind, *parts, send=Channel.send):
        sent.append(kind)
        send(channel, kind, *parts)

    with serving(certificates, budget=1, audit=0.0) as (server, lines), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "send", counting)
        phases = server.default.ledger.phases
        for _ in range(phases):
            server.default.ledger.account("CN=parelu test client; by CN=parelu test authority").phase()
        with (
            pytest.raises(ProtocolError, match=rf"budget of this certificate is used up: {phases} of {phases} offline"),
            Client("localhost", server.port, certificates) as client,
        ):
            client.prepare()
        assert until(lambda: lines)
    assert "sets" not in sent and "hint" not in sent


def test_many_clients_fetch_at_once(certificates, tmp_path):
    """Each its own, or all into one folder; every file is whole."""
    counts, errors = [], []

    def one(folder):
        try:
            counts.append(received(server, certificates, Keep(10_000, folder), IMAGES[:1]))
        except Exception as error:
            errors.append(error)

    with serving(certificates) as (server, _):
        folders = [tmp_path / name for name in ("a", "b", "shared", "shared", "shared", "shared")]
        threads = [threading.Thread(target=one, args=(folder,)) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and len(counts) == 6
        for folder in set(folders):
            (file,) = folder.iterdir()
            assert file.stat().st_size == MANY and received(server, certificates, Keep(1, folder), IMAGES[:1]) < A_FEW
