"""Several models at one port, clients that wait their turn, and those that are not allowed."""

import socket
import threading
import time

import numpy as np
import pytest
from deployed import deployed, until
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError, Refused, UserError
from parelu.private.lowering import reference
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.serving import ledger as ledger_module
from parelu.private.serving import turns as turns_module
from parelu.private.serving.client import Client
from parelu.private.serving.greeting import Accepted
from parelu.private.serving.ledger import Ledger
from parelu.private.serving.quotas import Allowed, Quota
from parelu.private.serving.served import Served
from parelu.private.serving.session import Session
from parelu.private.serving.turns import Busy, Turns
from parelu.private.transport import tls
from parelu.private.transport.channel import Channel

LOWERED, OTHER = (lowered_of(ready(Residual(), (1, 6, 6), lambda u, s=s: u < s)) for s in (0.4, 0.2))
IMAGES = images_of(2, (1, 6, 6))


def client_of(server, folder=None, **options):
    return Client("localhost" if folder else "127.0.0.1", server.port, folder, offline="dealer", timeout=20, **options)


def right(client, lowered=LOWERED):
    return np.abs(client.predict(IMAGES) - reference.run(lowered, IMAGES).logits).max() < 0.05


def test_models_by_name():
    other = Served(Model(OTHER, relus()["sign"], Exact()), modes()["dealer"])
    with deployed(LOWERED) as (server, _):
        server.reload({"first": server.default, "second.8": other}, None)
        for name, lowered in (("first", LOWERED), ("second.8", OTHER)):
            with client_of(server, model=name) as client:
                assert right(client, lowered) and client.session.offer.pin == server.models[name].offer.pin
        for name in (None, "third"):
            with pytest.raises(ProtocolError, match=f"has no model {name or ''!r}: it has first, second.8; name one"):
                client_of(server, model=name)
        for name in ("", "a b", "-a", "x" * 65, "é"):
            with pytest.raises(UserError, match="is no name of a model"):
                client_of(server, model=name)
        server.reload({"": other}, None)
        with client_of(server) as client:
            assert right(client, OTHER)
        with pytest.raises(ProtocolError, match="has one that has no name; leave --model out"):
            client_of(server, model="first")


@pytest.mark.parametrize("has_tls", [False, True])
def test_a_client_waits_and_is_told_its_place(has_tls, tmp_path, monkeypatch):
    monkeypatch.setattr(turns_module, "TOLD", 0.1)
    folder = tmp_path if has_tls else None
    if has_tls:
        tls.make_certificates(tmp_path)
    places, answers = {1: [], 2: []}, []

    def wait(number):
        with client_of(server, folder, waiting=places[number].append) as client:
            answers.append(right(client))

    with deployed(LOWERED, folder, clients=1) as (server, _):
        with client_of(server, folder) as first:
            threads = [threading.Thread(target=wait, args=(number,)) for number in places]
            for number, thread in enumerate(threads, start=1):
                thread.start()
                assert until(lambda n=number: len(places[n]) > 1)
            assert server.standing.waiting == 2 and server.standing.clients == 1
            assert set(places[1]) == {0} and set(places[2]) == {1}
            assert right(first)
        for thread in threads:
            thread.join()
        assert answers == [True, True] and places[2][-1] == 0 and server.standing.waiting == 0


def test_the_wait_has_an_end_and_a_client_that_does_not_know_of_it_waits_in_silence():
    with deployed(LOWERED, clients=1, wait=0.3) as (server, lines), client_of(server) as first:
        with pytest.raises(ProtocolError, match="1 clients are being served, and yours waited its time"):
            client_of(server)
        with socket.create_connection(("127.0.0.1", server.port)) as old:
            thread = threading.Thread(target=lambda: (time.sleep(0.1), first.close()))
            thread.start()
            session = Session(Channel(old, 20), Accepted(offline="dealer"))
            thread.join()
            session.prepare()
            session.close()
        assert until(lambda: len(lines) == 3)


def test_a_client_that_leaves_gives_up_its_place(monkeypatch):
    monkeypatch.setattr(turns_module, "TOLD", 0.05)
    with deployed(LOWERED, clients=1) as (server, _), client_of(server) as first:
        told, gone = [], []

        def leave(before):
            told.append(before)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client_of(server, waiting=leave)
        assert until(lambda: not server.standing.waiting) and told == [0] and not gone
        assert right(first)


def test_turns_are_in_order_and_none_is_lost():
    turns, order, most, now = Turns(3), [], [0], []
    lock = threading.Lock()

    def one(number):
        with turns.turn(patience=30):
            with lock:
                now.append(number)
                order.append(number)
                most[0] = max(most[0], len(now))
            time.sleep(0.01)
            with lock:
                now.remove(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    with turns.turn(), turns.turn(), turns.turn():
        for number, thread in enumerate(threads):
            thread.start()
            assert until(lambda n=number: turns.waiting == n + 1)
    for thread in threads:
        thread.join()
    assert most[0] <= 3 and sorted(order) == list(range(12)) and turns.waiting == 0
    assert all(abs(number - place) <= 3 for place, number in enumerate(order))
    with (
        turns.turn(),
        turns.turn(),
        turns.turn(),
        pytest.raises(Busy, match="3 clients are being served"),
        turns.turn(),
    ):
        pass


def listed(path, text):
    path.write_text(text)
    return Allowed.read(path)


def test_a_list_of_clients(tmp_path):
    allowed = listed(tmp_path / "l.yaml", 'clients: {"CN=Ada,O=C": {inferences: 3, per: hour}, "CN=B; by CN=x": }')
    assert allowed.quota("CN=Ada,O=C; by CN=an authority") == Quota(3, "hour") and len(allowed) == 2
    assert allowed.quota("CN=B; by CN=x") == Quota()
    for name in ("CN=B; by CN=y", "CN=Ada", ""):
        with pytest.raises(Refused, match="is not among those that this server serves"):
            allowed.quota(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not a mapping"),
        ("{", "is not valid YAML"),
        ("client: {}", "unknown key 'client'; nearest is 'clients'"),
        ("clients: [a]", "clients is .*; it should be a mapping such as"),
        ("clients: {3: {}}", "a client is named by its certificate"),
        ("clients: {a: 3}", "clients.a is 3; it should be a mapping"),
        ("clients: {a: {inference: 3}}", "unknown key 'clients.a.inference'; nearest is 'inferences'"),
        ("clients: {a: {inferences: -1}}", "clients.a.inferences is -1; it should be from 0"),
        ("clients: {a: {inferences: 1, per: week}}", "clients.a.per is 'week'; it should be one of minute, hour, day"),
    ],
)
def test_a_list_that_is_none(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        listed(tmp_path / "list.yaml", text)
    with pytest.raises(UserError, match="cannot be read"):
        Allowed.read(tmp_path / "other.yaml")


def test_quotas_and_revocation(tmp_path):
    tls.make_certificates(tmp_path)
    name = "CN=parelu test client"
    options = {"stock": tmp_path / "stock", "ahead": 9}
    with deployed(LOWERED, tmp_path, **options) as (server, lines):
        server.reload({"": server.default}, tmp_path, Allowed({name: Quota(inferences=3, prepared=1)}))
        with client_of(server, tmp_path, stock=tmp_path / "mine") as client:
            assert client.session.left == 3 and client.session.room == 1
            client.session.add_to_stock()
            assert right(client) and client.session.left == 1
            client.session.left = 9  # as a client may believe
            with pytest.raises(ProtocolError, match="quota of this certificate is used up: 2 of 3 inferences a day"):
                client.predict(IMAGES, batch=2)
        with client_of(server, tmp_path) as client:
            assert client.session.left == 1
            server.reload({"": server.default}, tmp_path, Allowed({"CN=another": Quota()}))
            with pytest.raises(ProtocolError, match="is not among those that this server serves"):
                client.predict(IMAGES[:1])
        with pytest.raises(ProtocolError, match="is not among those that this server serves"):
            client_of(server, tmp_path)
        with pytest.raises(UserError, match="--allow names clients by their certificates: give --tls"):
            server.reload({"": server.default}, None, Allowed({}))
        assert until(lambda: len(lines) == 3)


def test_a_quota_is_of_a_period_and_kept(tmp_path, monkeypatch):
    now = [7200.0 + 5]
    monkeypatch.setattr(ledger_module.time, "time", lambda: now[0])
    for used in (0, 2):  # a server that starts again
        ledger = Ledger(tmp_path / "l.sqlite")
        account = ledger.account("a", Quota(3, "hour"))
        assert account.left == 3 - used
        if not used:
            account.infer(2)
        with pytest.raises(Refused, match="2 of 3 inferences a hour"):
            account.infer(2)
        assert ledger.record("a").inferences == 2, "what was refused is not counted"
        assert ledger.account("b", Quota(3, "hour")).left == 3
        now[0] += 3590
        assert account.left == 3 - 2
        ledger.close()
        now[0] -= 3590
    now[0] += 3600
    ledger = Ledger(tmp_path / "l.sqlite")
    assert ledger.account("a", Quota(3, "hour")).left == 3
    ledger.close()


def test_one_more_client(tmp_path):
    """A key of the authority that is kept names further clients, each with quotas of its own."""
    tls.make_certificates(tmp_path / "certs", authority_key=tmp_path / "authority.key")
    assert oct((tmp_path / "authority.key").stat().st_mode)[-3:] == "600"
    assert tls.issue_client(tmp_path / "ada", "Ada, of C", tmp_path / "authority.key") == "CN=Ada\\, of C"
    allowed = Allowed({"CN=Ada\\, of C": Quota(inferences=1)})
    with deployed(LOWERED, tmp_path / "certs") as (server, _):
        server.reload({"": server.default}, tmp_path / "certs", allowed)
        with client_of(server, tmp_path / "ada") as client:
            assert client.session.left == 1
        with pytest.raises(ProtocolError, match="is not among those"):
            client_of(server, tmp_path / "certs")
    for folder, name, key, message in (
        ("ada", "B", "authority.key", "has certificates already"),
        ("b", "", "authority.key", "is no name of a client"),
        ("b", "x" * 65, "authority.key", "is no name of a client"),
        ("b", "B", "none.key", "has no authority's key and certificate"),
        ("b", "B", "certs/client.key", "has no authority's key and certificate"),
    ):
        with pytest.raises(UserError, match=message):
            tls.issue_client(tmp_path / folder, name, tmp_path / key)
    with pytest.raises(UserError, match="is there already"):
        tls.make_certificates(tmp_path / "others", authority_key=tmp_path / "authority.key")
