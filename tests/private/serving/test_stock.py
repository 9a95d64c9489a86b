"""Stocks on disk: what is stored comes back once, and nothing is used twice, whatever is killed, restored or full."""

import contextlib
import errno
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError, UserError
from parelu.network import storage
from parelu.private.crypto.codec import FORMAT, dump, load
from parelu.private.crypto.hash import Hash
from parelu.private.lowering import reference
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Material, Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.serving.client import Client
from parelu.private.serving.greeting import Accepted
from parelu.private.serving.log import telling
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.serving.session import Session
from parelu.private.serving.stock import IDLE, NAME_BYTES, STOCKS, UNUSED, ClientStocks, ServerStocks, Stock, key_of
from parelu.private.transport import tls
from parelu.private.transport.channel import Channel

KEY = bytes(range(32))
LOWERED = lowered_of(
    ready(Residual(), (1, 6, 6), masks=lambda r: r > 0.4, coefficients=lambda c: torch.rand(3, c) * 0.5)
)
IMAGES = images_of(4, (1, 6, 6), seed=3)


class Serving:
    """A server in this process; a stock folder makes it keep material."""

    def __init__(
        self, folder, room: int = 5, relu: str = "sign", reveal: str = "exact", offline: str = "dealer"
    ) -> None:
        model = Model(LOWERED, relus()[relu], reveal_of(reveal))
        self.lines: list[str] = []
        served = Served(model, modes()[offline], ServerOptions(ahead=room, stock=folder))
        self.server = Server(served, ("127.0.0.1", 0), log=telling(self.lines.append))

    def client(self, folder) -> Client:
        return Client(
            "127.0.0.1",
            self.server.port,
            stock=folder,
            timeout=20,
            offline=self.server.mode.name,
            relu=self.server.model.terms.relu.name,
        )

    def __enter__(self) -> "Serving":
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.thread.join()


def pieces(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and len(path.name) == 32)


# What is stored


def test_dump_and_load_are_inverse():
    arrays = {3: np.arange(6, dtype=np.uint64).reshape(2, 3), 1: np.zeros((0, 2), np.uint8), -2: np.int64([[-1]])}
    got = load(dump({"a": arrays, "b": b"\0\1", "c": None, "d": 5, "e": Hash(KEY[:16])}))
    assert {k: got[k] for k in "bcd"} == {"b": b"\0\1", "c": None, "d": 5} and got["e"].key == KEY[:16]
    assert list(got["a"]) == [3, 1, -2]
    for key, array in arrays.items():
        np.testing.assert_array_equal(got["a"][key], array)
        assert got["a"][key].dtype == array.dtype and got["a"][key].flags.writeable


@pytest.mark.parametrize("body", [b"", b"\1", dump([1][0]) + b"x", b"\xff" * 30, dump({1: np.zeros(9, np.uint8)})[:-1]])
def test_other_bytes_are_no_material(body):
    with pytest.raises(ValueError):
        load(body)


def test_what_has_no_form_is_refused():
    for value in (object(), np.zeros(2), {1, 2}):
        with pytest.raises(TypeError, match="cannot be stored"):
            dump(value)


# One party's folder


def test_a_piece_is_taken_once(tmp_path):
    stock = Stock(tmp_path / "s", KEY, "x")
    for number in range(3):
        stock.put(bytes([number]) * 16, b"content %d" % number)
    assert stock.names() == [bytes([number]) * 16 for number in range(3)]
    assert stock.take(bytes([1]) * 16) == b"content 1"
    with pytest.raises(KeyError):
        stock.take(bytes([1]) * 16)
    assert len(stock.names()) == 2


def test_of_many_that_race_one_gets_it(tmp_path):
    stock, found = Stock(tmp_path, KEY, "x"), []
    for number in range(30):
        stock.put(number.to_bytes(16, "big"), b"x")

    def take_all() -> None:
        for number in range(30):
            try:
                found.append((number, stock.take(number.to_bytes(16, "big"))))
            except KeyError:
                continue

    threads = [threading.Thread(target=take_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in found) == list(range(30))


def test_a_piece_is_encrypted_and_bound_to_its_name_and_use(tmp_path):
    stock, name = Stock(tmp_path, KEY, "x"), bytes(16)
    stock.put(name, b"secret" * 100)
    (path,) = (tmp_path / piece for piece in pieces(tmp_path))
    body = path.read_bytes()
    assert b"secret" not in body
    others = (Stock(tmp_path, KEY, "y"), name, body), (Stock(tmp_path, KEY[::-1], "x"), name, body)
    damaged = (stock, name, body[:-1]), (stock, name, body[:5]), (stock, name, b""), (stock, bytes([1]) * 16, body)
    for reader, other, content in (*others, *damaged):
        (tmp_path / other.hex()).write_bytes(content)
        with pytest.raises(KeyError):
            reader.take(other)
        assert not (tmp_path / other.hex()).exists(), "what cannot be read is gone too"


def test_keys_are_this_users_alone(tmp_path):
    folder = tmp_path / "stock"
    assert key_of(folder) == key_of(folder)
    path = tmp_path / "stock.key"
    assert path.stat().st_mode & 0o777 == 0o600 and not list(folder.iterdir())
    path.write_bytes(b"short")
    with pytest.raises(UserError, match=r"stock\.key is not a key of a stock"):
        key_of(folder)


def test_what_a_killed_process_was_writing_goes_after_an_hour(tmp_path):
    name, key = bytes(NAME_BYTES), key_of(tmp_path / "stock")
    left = [tmp_path / "stock" / "use" / f".{name.hex()}.123", tmp_path / f"stock.key.{name.hex()}"]
    (tmp_path / "stock" / "use").mkdir()
    for age, are_there in ((60, True), (7200, False)):
        for path in left:
            path.write_bytes(b"half of it")
            os.utime(path, (time.time() - age,) * 2)
        Stock(tmp_path / "stock" / "use", key_of(tmp_path / "stock"), "use").put(name, b"whole")
        assert [path.exists() for path in left] == [are_there] * 2
    assert key_of(tmp_path / "stock") == key and Stock(tmp_path / "stock" / "use", key, "use").take(name) == b"whole"


def test_a_key_that_anybody_may_write_to_is_refused(tmp_path):
    key_of(tmp_path / "stock")
    (tmp_path / "stock.key").chmod(0o602)
    with pytest.raises(UserError, match=r"stock\.key can be written to by anybody; .*chmod 600"):
        key_of(tmp_path / "stock")
    tls.make_certificates(tmp_path / "certs")
    (tmp_path / "certs" / "server.key").chmod(0o666)
    tls.client_context(tmp_path / "certs")
    with pytest.raises(UserError, match=r"server\.key can be written to by anybody"):
        tls.server_context(tmp_path / "certs")


def test_stocks_of_one_name_do_not_drop_each_other(tmp_path):
    """Users who share a name have so many stocks; empty ones and old ones make room, others never."""
    stocks = ServerStocks(tmp_path / "s", 3)
    for number in range(STOCKS):
        stocks.of("us", f"identity {number}", "use").put(bytes(16), b"x")
    assert stocks.of("us", "one more", "use") is None and len(pieces(tmp_path)) == STOCKS
    assert stocks.of("us", "identity 3", "use").take(bytes(16)) == b"x"
    stocks.of("another", "identity", "use").put(bytes(16), b"x")
    folder = stocks.of("us", "identity 3", "use").folder
    assert stocks.of("us", "one more", "use") is None, "it was emptied a moment ago, and may be filled in the next"
    os.utime(folder, (time.time() - 2 * IDLE,) * 2)
    assert stocks.of("us", "one more", "use").names() == []
    stocks.of("us", "one more", "use").put(bytes(16), b"x")
    assert stocks.of("us", "two more", "use") is None
    os.utime(stocks.of("us", "identity 5", "use").folder, (time.time() - 2 * UNUSED,) * 2)
    assert stocks.of("us", "two more", "use") is not None and len(pieces(tmp_path)) == STOCKS


# Both parties


@pytest.mark.parametrize(
    ("relu", "reveal", "offline"),
    [("sign", "exact", "seal"), ("full", "label", "dealer"), ("fss", "logits 2^12", "dealer")],
)
def test_kept_material_serves_another_connection(tmp_path, relu, reveal, offline):
    ours, theirs = tmp_path / "client", tmp_path / "server"
    with Serving(theirs, relu=relu, reveal=reveal, offline=offline) as serving:
        with serving.client(ours) as client:
            for _ in range(3):
                client.session.add_to_stock()
            assert client.session.in_stock == 3
        assert len(pieces(ours)) == len(pieces(theirs)) == 3
        with serving.client(ours) as client:
            got = np.concatenate(
                [client.predict(part, batch=2) for part in IMAGES.split(2)]
            )  # the last two are made now
            assert client.session.in_stock == 1
        assert len(pieces(ours)) == len(pieces(theirs)) == 1
    expected = reference.run(LOWERED, IMAGES).logits
    if reveal == "label":
        assert got.tolist() == expected.argmax(1).tolist()
    else:
        assert np.abs(got - expected).max() < 0.05


@pytest.mark.parametrize("party", ["client", "server"])
def test_a_stock_of_another_version_is_dropped_in_one_line(tmp_path, party, monkeypatch):
    """Whoever finds its material to be of another version drops all of it; the next connection drops the other half."""
    put = Stock.put

    def of_another_version(self, name, content):
        is_other = tmp_path / party in self.folder.parents
        put(self, name, content.replace(FORMAT.encode(), b"parelu-material-1", 1) if is_other else content)

    with Serving(tmp_path / "server") as serving:
        with monkeypatch.context() as patch, serving.client(tmp_path / "client") as client:
            patch.setattr(Stock, "put", of_another_version)
            client.session.add_to_stock()
            client.session.add_to_stock()
        client = serving.client(tmp_path / "client")
        line = "a stock of offline material was dropped .*another version of parelu made it.*prepare it anew$"
        with pytest.raises({"client": UserError, "server": ProtocolError}[party], match=line) as error:
            client.predict(IMAGES[:1])
        assert "\n" not in str(error.value)
        client.close()
        assert not pieces(tmp_path / party)
        with serving.client(tmp_path / "client") as client:
            assert not pieces(tmp_path) and client.predict(IMAGES[:1]).shape == (1, 5)


def test_without_a_stock_the_connection_says_so(tmp_path):
    refused = pytest.raises(UserError, match="the server keeps no stock")
    with Serving(None, room=0) as serving, serving.client(tmp_path / "client") as client, refused:
        client.session.add_to_stock()


def test_a_stock_is_bounded(tmp_path):
    with Serving(tmp_path / "server", room=2) as serving:
        client = serving.client(tmp_path / "client")
        client.session.add_to_stock()
        client.session.add_to_stock()
        with pytest.raises(ProtocolError, match="the stock is full: the server keeps 2 inferences"):
            client.session.add_to_stock()
        client.close()
    assert len(pieces(tmp_path / "client")) == 2


@pytest.mark.parametrize("restored", ["client", "server"])
def test_a_party_restored_from_an_old_copy_reuses_nothing(tmp_path, restored):
    ours, theirs, copy = tmp_path / "client", tmp_path / "server", tmp_path / "copy"
    with Serving(theirs) as serving:
        with serving.client(ours) as client:
            for _ in range(3):
                client.session.add_to_stock()
        shutil.copytree(tmp_path / restored, copy)
        with serving.client(ours) as client:
            client.predict(IMAGES[:2])
        (left,) = pieces(ours)
        shutil.rmtree(tmp_path / restored)
        shutil.copytree(copy, tmp_path / restored)
        assert len(pieces(tmp_path / restored)) == 3
        with serving.client(ours) as client:
            assert pieces(ours) == pieces(theirs) == [left], "both know what is spent"
            client.predict(IMAGES[:1])
        assert not pieces(ours) and not pieces(theirs)


def test_while_a_stock_is_filled_nothing_is_dropped_and_nothing_used_that_the_other_lacks(tmp_path):
    ours, theirs = tmp_path / "client", tmp_path / "server"
    with Serving(theirs) as serving:
        with serving.client(ours) as client:
            client.session.add_to_stock()
            client.session.add_to_stock()
        for path in list(theirs.rglob(pieces(theirs)[0])):
            path.unlink()
        with ClientStocks(ours).filling(), serving.client(ours) as client:
            assert client.session.in_stock == 1 and len(pieces(ours)) == 2
            assert client.predict(IMAGES[:1]).shape == (1, 5)
        assert len(pieces(ours)) == 1
        with serving.client(ours):
            assert not pieces(ours)


class Silent(Channel):
    """A server's channel that hears which pieces are to be used, and then keeps all that still comes."""

    def receive(self, kind, length):
        body = super().receive(kind, length)
        if kind == "item":
            self.socket.settimeout(0.5)
            heard = bytearray()
            with contextlib.suppress(TimeoutError):
                while part := self.socket.recv(1 << 16):
                    heard += part
            Silent.heard = bytes(heard)
            raise ProtocolError("heard enough")
        return body


@pytest.mark.parametrize("is_filled", [False, True])
def test_a_restored_client_does_not_send_two_images_under_one_mask(tmp_path, monkeypatch, is_filled):
    """The difference of two messages under one r is that of the images. A piece counts as used by the server's word.

    The client's stock is restored from a copy while another process of it fills, so that it cannot drop pieces; the
    server is one that was restored as well, or that listens.
    """
    ours, copy = tmp_path / "client", tmp_path / "copy"
    with Serving(tmp_path / "server") as serving:
        with serving.client(ours) as client:
            client.session.add_to_stock()
        shutil.copytree(ours, copy)
        with serving.client(ours) as client:
            client.predict(IMAGES[:1])
        shutil.rmtree(ours)
        shutil.copytree(copy, ours)
        monkeypatch.setattr("parelu.private.serving.server.Channel", Silent)
        Silent.heard = b""
        with contextlib.ExitStack() as stack:
            if is_filled:
                stack.enter_context(ClientStocks(ours).filling())
            client = stack.enter_context(serving.client(ours))
            client.session._there = set(client.session._stock.names())  # what a client without the comparison thinks
            monkeypatch.setattr("parelu.private.serving.session.infer_client", lambda *_: pytest.fail("x − r was sent"))
            if client.session.in_stock:
                with pytest.raises(ProtocolError):
                    client.predict(IMAGES[1:2])
                assert Silent.heard == b"", "nothing but the name was sent"
            assert client.session.in_stock == 0


def test_connecting_elsewhere_leaves_a_stock_alone(tmp_path):
    ours = tmp_path / "client"
    with Serving(tmp_path / "server") as serving, Serving(tmp_path / "another") as another:
        with serving.client(ours) as client:
            for _ in range(3):
                client.session.add_to_stock()
        with another.client(ours) as client:
            assert client.session.in_stock == 0
        with serving.client(ours) as client:
            assert client.session.in_stock == 3 and client.predict(IMAGES[:1]).shape == (1, 5)


def test_a_stock_of_a_server_that_lost_its_key_is_not_offered_to_it(tmp_path):
    with Serving(tmp_path / "server") as serving, serving.client(tmp_path / "client") as client:
        client.session.add_to_stock()
    (tmp_path / "server.key").unlink()
    with Serving(tmp_path / "server") as serving, serving.client(tmp_path / "client") as client:
        assert client.session.in_stock == 0


@pytest.mark.parametrize("party", ["client", "server"])
def test_a_full_disk_loses_one_piece_and_says_so(tmp_path, party, monkeypatch):
    full = storage.write_atomic

    def write(path, data):
        if (tmp_path / party) in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        full(path, data)

    with Serving(tmp_path / "server") as serving:
        client = serving.client(tmp_path / "client")
        client.session.add_to_stock()
        monkeypatch.setattr("parelu.private.serving.stock.write_atomic", write)
        with pytest.raises((UserError, ProtocolError), match="No space left on device"):
            client.session.add_to_stock()
        client.close()
        monkeypatch.setattr("parelu.private.serving.stock.write_atomic", full)
        with serving.client(tmp_path / "client") as client:
            assert pieces(tmp_path / "client") == pieces(tmp_path / "server") and client.session.in_stock == 1
            client.session.add_to_stock()
            client.predict(IMAGES[:2])


def test_material_that_is_stored_is_not_in_memory_too(tmp_path):
    material = Material({"x": 1})
    assert Material.load(material.dump()).take() == {"x": 1}
    with pytest.raises(RuntimeError, match="must not be used twice"):
        material.take()


def test_a_greeting_with_a_stock_is_checked(tmp_path):
    import socket

    with Serving(tmp_path / "server") as serving:
        connection = socket.create_connection(("127.0.0.1", serving.server.port))
        stock = ClientStocks(tmp_path / "client")
        stock.identity = "../../x" * 3
        session = Session(Channel(connection, timeout=10), Accepted(offline="dealer"), stocks=stock)
        session.add_to_stock()
        session.close()
    assert all(tmp_path / "server" in path.parents for path in (tmp_path / "server").rglob("*"))
    assert len(pieces(tmp_path / "server")) == 1 and not (tmp_path / "x").exists()
