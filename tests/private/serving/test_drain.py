"""A server that is stopped or reloaded: nobody's work is lost, and what was cut is said."""

import datetime
import functools
import socket
import threading
import time

import numpy as np
import pytest
from deployed import deployed, until
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import UserError
from parelu.private.lowering import reference
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.serving import connections
from parelu.private.serving.client import Client
from parelu.private.serving.listening import listen
from parelu.private.serving.served import Served
from parelu.private.transport import tls

LOWERED, OTHER = (lowered_of(ready(Residual(), (1, 6, 6), lambda u, s=s: u < s)) for s in (0.4, 0.2))
IMAGES = images_of(3, (1, 6, 6))
serving = functools.partial(deployed, LOWERED)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(connections, "GRACE", 0.2)


def client_of(server, folder=None):
    return Client("localhost" if folder else "127.0.0.1", server.port, folder, offline="dealer", timeout=10)


def drained(server, seconds):
    """Drains in a thread; (that, what it returns when it is done)."""
    found = []
    thread = threading.Thread(target=lambda: found.append(server.drain(seconds)))
    thread.start()
    until(lambda: server.is_draining)
    return thread, found


@pytest.mark.parametrize("has_tls", [False, True])
def test_a_session_that_has_material_may_use_it_and_an_idle_one_ends(has_tls, tmp_path):
    folder = tmp_path if has_tls else None
    if has_tls:
        tls.make_certificates(tmp_path)
    with serving(folder) as (server, lines), client_of(server, folder) as busy, client_of(server, folder) as idle:
        busy.prepare(3)
        idle.predict(IMAGES[:1])
        assert server.is_ready
        thread, found = drained(server, 20)
        assert not server.is_ready and until(lambda: len(lines) == 1)
        assert "the server stops; connect again; 1 inferences, 1 offline phases" in lines[0]
        assert "the server stops; connect again" in idle.session.channel.ended()
        with pytest.raises(UserError, match="is `parelu serve` running there"):
            client_of(server, folder)
        assert np.abs(busy.predict(IMAGES) - reference.run(LOWERED, IMAGES).logits).max() < 0.05
        thread.join()
        assert found == [[]], "nobody was cut"


def test_what_is_cut_is_named(monkeypatch):
    with serving() as (server, lines), client_of(server) as client:
        client.prepare(2)
        thread, found = drained(server, 0.3)
        thread.join()
        assert found[0][0].startswith("127.0.0.1:") and found[0][0].endswith(", 2 inferences prepared")
        with pytest.raises(UserError, match="is `parelu serve` running there"):  # where it would connect again
            client.predict(IMAGES[:1])
        assert len(lines) == 1


def test_a_hurry_ends_the_wait():
    with serving() as (server, _), client_of(server) as client:
        client.prepare()
        hurry = threading.Event()
        hurry.set()
        started = time.monotonic()
        assert len(server.drain(60, hurry)) == 1 and time.monotonic() - started < 10


def served(lowered):
    return Served(Model(lowered, relus()["sign"], Exact()), modes()["dealer"])


def test_a_reload_serves_another_model_and_lets_sessions_go_on():
    other = served(OTHER)
    with serving() as (server, _), client_of(server) as client:
        client.prepare()
        before, old = server.offer.pin, server.default
        server.reload({"": other}, None)
        assert server.default is other and server.offer.pin != before
        with client_of(server) as new:
            assert new.session.offer.pin == server.offer.pin
            assert np.abs(new.predict(IMAGES) - reference.run(OTHER, IMAGES).logits).max() < 0.05
        assert np.abs(client.predict(IMAGES) - reference.run(LOWERED, IMAGES).logits).max() < 0.05
        assert old.ledger.records()
        client.close()
        assert until(lambda: not len(server._connections))
        with pytest.raises(UserError, match="closed"):
            old.ledger.records()


def test_a_reload_of_the_same_keeps_what_was_made_ahead():
    with serving(ahead=2) as (server, _):
        old = server.default
        assert old.prepared.wait(2, 20)
        same = Served(old.model, old.mode, old.options)
        server.reload({"": same}, None)
        assert server.default is old and len(old.prepared) == 2


def test_certificates_that_are_none_leave_the_old_ones(tmp_path, monkeypatch):
    tls.make_certificates(tmp_path / "old")
    tls.make_certificates(tmp_path / "new")
    (tmp_path / "new/server.key").write_text("nothing")
    with serving(tmp_path / "old") as (server, _):
        with pytest.raises(UserError, match="its certificates cannot be used"):
            server.reload({"": server.default}, tmp_path / "new")
        with client_of(server, tmp_path / "old") as client:
            assert client.predict(IMAGES).shape == (3, 5)
        with monkeypatch.context() as patch:
            patch.setattr(tls, "SINCE", datetime.timedelta(days=-3))
            patch.setattr(tls, "DAYS", -1)
            tls.make_certificates(tmp_path / "expired")
        with pytest.raises(UserError, match="the server's certificate has expired"):
            server.reload({"": server.default}, tmp_path / "expired")
        tls.make_certificates(tmp_path / "good")
        server.reload({"": server.default}, tmp_path / "good")
        with pytest.raises(UserError, match="no TLS connection"):
            client_of(server, tmp_path / "old")
        with client_of(server, tmp_path / "good") as client:
            assert client.predict(IMAGES).shape == (3, 5)


def test_a_probe_is_no_error(monkeypatch):
    with serving() as (server, lines):
        ends = []
        monkeypatch.setattr(server.watcher, "ended", ends.append, raising=False)
        socket.create_connection(("127.0.0.1", server.port)).close()
        assert until(lambda: ends) == ["probe"] and not lines


def test_a_port_has_one_server_and_a_name_all_of_its_addresses():
    (first,) = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot listen .*; give another --port"):
        listen("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen"):
        listen("192.0.2.1", 0)
    (both,) = listen("::", 0)
    with both:
        port = both.getsockname()[1]
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as client:
                client.connect((host, port))
    several = listen("localhost", 0)
    assert len({listener.getsockname()[1] for listener in several}) == 1
    for listener in several:
        listener.close()
