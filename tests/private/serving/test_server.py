"""The deployed pair: TLS, several clients at once, stock, and what is left behind."""

import contextlib
import datetime
import errno
import functools
import os
import re
import socket
import ssl
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from deployed import deployed, until
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import NoResult, ProtocolError, UserError
from parelu.private.lowering import reference
from parelu.private.offline.dealer import Dealt
from parelu.private.offline.mode import Keep, modes
from parelu.private.offline.seal import HomomorphicEncryption
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact, reveal_of
from parelu.private.serving import server as server_module
from parelu.private.serving.client import Client
from parelu.private.serving.ledger import Ledger
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.transport import tls

LOWERED = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.4))
IMAGES = images_of(3, (1, 6, 6))
EXPECTED = reference.run(LOWERED, IMAGES).logits


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls") / "certs"
    tls.make_certificates(folder, ("localhost",))
    return folder


serving = functools.partial(deployed, LOWERED)


@pytest.mark.parametrize(
    ("offline", "relu"), [*((mode, "sign") for mode in modes()), ("dealer", "fss"), ("seal", "fss")]
)
def test_predictions_over_tls(certificates, offline, relu):
    with serving(certificates, offline, relu=relu, ahead=(offline, relu) == ("dealer", "fss")) as (server, lines):
        with Client(
            "localhost",
            server.port,
            certificates,
            pin=server.offer.pin,
            offline=server.mode.name,
            relu=server.model.terms.relu.name,
        ) as client:
            logits = client.predict(IMAGES)
        assert until(lambda: lines)
    assert logits.shape == (3, 5)
    assert np.abs(logits - EXPECTED).max() < 0.05
    assert re.search(r": 3 inferences, \d offline phases(, \d opened)?, CN=parelu test client; by CN=", lines[0])


@pytest.mark.parametrize("relu", list(relus()))
def test_labels_only(certificates, relu):
    with (
        serving(certificates, reveal="label", relu=relu) as (server, _),
        Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client,
    ):
        labels = client.predict(IMAGES.numpy())
    assert labels.dtype == np.int64 and labels.shape == (3,)
    top = np.sort(EXPECTED)
    sure = top[:, -1] - top[:, -2] > 0.05
    assert (labels == EXPECTED.argmax(1))[sure].all() and sure.any()


def test_images_that_do_not_fit(certificates):
    with (
        serving(certificates) as (server, lines),
        Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client,
    ):
        for bad, message in (
            (torch.zeros(1, 3, 6, 6, dtype=torch.uint8), "an image is 3x6x6; the network takes 1x6x6"),
            (torch.zeros(1, 1, 6, 6), "images are float32"),
            (torch.zeros(1, 6, 6, dtype=torch.uint8), r"shape \(1, 6, 6\)"),
        ):
            with pytest.raises(UserError, match=message):
                client.predict(bad)
        assert client.predict(IMAGES).shape == (3, 5), "the connection is still good"
        assert not lines


def test_images_of_the_data_sets_size_are_resized():
    network = ready(Residual(), (1, 6, 6))
    from parelu.network.preprocessing import resize
    from parelu.private.lowering.lower import lower

    lowered = lower(network, IMAGES, {"mean": [0.5], "std": [0.25], "image": [1, 12, 12]})
    large = images_of(2, (1, 12, 12))
    model = Model(lowered, relus()["sign"], Exact())
    server = Server(Served(model, modes()["dealer"]), ("127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    with Client("127.0.0.1", server.port, offline=server.mode.name, relu=server.model.terms.relu.name) as client:
        found = client.predict(large)
    server.close()
    thread.join()
    assert np.abs(found - reference.run(lowered, resize(large, (6, 6))).logits).max() < 0.05


def test_several_clients_at_once(certificates):
    results, errors = {}, []

    def one(number):
        try:
            with Client(
                "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
            ) as client:
                results[number] = client.predict(IMAGES)
        except Exception as error:
            errors.append(error)

    with serving(certificates, ahead=2) as (server, lines):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert until(lambda: len(lines) == 6)
    assert not errors
    assert all(np.abs(logits - EXPECTED).max() < 0.05 for logits in results.values()) and len(results) == 6


def test_one_client_too_many_is_told_so(certificates):
    with serving(certificates, clients=1, wait=0) as (server, lines):
        with Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client:
            with pytest.raises(ProtocolError, match="1 clients are being served; try again later"):
                Client(
                    "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
                )
            assert client.predict(IMAGES).shape == (3, 5)
        assert until(lambda: len(lines) == 2)
        with Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client:
            assert client.predict(IMAGES[:1]).shape == (1, 5)


def test_strangers_are_bounded(certificates, monkeypatch):
    """Connections that never shake hands take no more than their share of threads."""
    monkeypatch.setattr(server_module, "STRANGERS", 3)
    monkeypatch.setattr(server_module, "WAITING", 0)
    with serving(certificates, clients=1) as (server, _):
        strangers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        try:
            assert until(lambda: len(server._connections) == 4)
            closed = 0
            for stranger in strangers:
                stranger.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    closed += stranger.recv(1) == b""
            assert closed == 4 and len(server._connections) == 4
        finally:
            for stranger in strangers:
                stranger.close()
        assert until(lambda: not len(server._connections))
        with Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client:
            assert client.predict(IMAGES[:1]).shape == (1, 5)


def test_certificates_are_needed_and_checked(certificates, tmp_path):
    strangers = tmp_path / "strangers"
    tls.make_certificates(strangers)
    with serving(certificates) as (server, lines):
        with pytest.raises(UserError, match=r"no TLS connection .*is refused: .*; use the ca\.pem of the authority"):
            Client("localhost", server.port, strangers, offline=server.mode.name, relu=server.model.terms.relu.name)
        # The right authority, another authority's client: the server refuses, in TLS 1.3 after the client's handshake.
        mixed = tmp_path / "mixed"
        mixed.mkdir()
        for name, source in (("ca.pem", certificates), ("client.pem", strangers), ("client.key", strangers)):
            (mixed / name).write_bytes((source / name).read_bytes())
        with pytest.raises((UserError, ProtocolError), match=r"its authority is not the peer's ca\.pem|broke|closed"):
            Client("localhost", server.port, mixed, offline=server.mode.name, relu=server.model.terms.relu.name)
        with pytest.raises(ProtocolError):
            Client(
                "localhost", server.port, None, timeout=2, offline=server.mode.name, relu=server.model.terms.relu.name
            )  # plain
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificates / "ca.pem")
        with (  # no certificate
            socket.create_connection(("127.0.0.1", server.port)) as plain,
            pytest.raises(OSError),
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            wrapped.settimeout(5)
            if not wrapped.recv(1):
                raise OSError("closed")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(certificates / "ca.pem")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", server.port)) as plain, pytest.raises(OSError):
            old.wrap_socket(plain, server_hostname="localhost")
        with pytest.raises(UserError, match="no TLS connection"):
            Client(
                "127.0.0.1", server.port, certificates, offline=server.mode.name
            )  # a name that the certificate does not have
        assert until(lambda: len(lines) >= 5)
        assert all("\n" not in line for line in lines)
        with Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client:
            assert client.predict(IMAGES).shape == (3, 5)


VALIDITY = {
    "expired": (datetime.timedelta(days=-3), -1, "certificate has expired; make a new one", "it has expired"),
    "not yet": (datetime.timedelta(days=1), 9, "certificate is not yet valid; wait, or set", "it is not yet valid"),
}


@pytest.mark.parametrize("case", VALIDITY)
def test_what_is_wrong_with_a_certificate_is_said_on_both_sides(case, certificates, tmp_path, monkeypatch):
    since, days, by_client, by_server = VALIDITY[case]
    monkeypatch.setattr(tls, "SINCE", since)
    monkeypatch.setattr(tls, "DAYS", days)
    tls.make_certificates(tmp_path / "bad")
    with serving(tmp_path / "bad") as (server, lines):
        with pytest.raises(UserError, match=f"localhost:{server.port}: no TLS connection .*{by_client}"):
            Client("localhost", server.port, tmp_path / "bad", offline=server.mode.name)
        assert until(lambda: any(by_server in line for line in lines)), lines


def test_a_server_of_another_name_is_refused_with_both(tmp_path):
    tls.make_certificates(tmp_path, ("other.test",))
    with serving(tmp_path) as (server, _):
        for host, name in (("localhost", "Hostname mismatch.*--hosts NAME"), ("127.0.0.1", "IP address mismatch")):
            with pytest.raises(UserError, match=f"{name}"):
                Client(host, server.port, tmp_path, offline=server.mode.name)


@pytest.mark.parametrize("has_tls", [False, True])
def test_a_server_at_an_ipv6_address(has_tls, tmp_path):
    folder = None
    if has_tls:
        tls.make_certificates(folder := tmp_path)
    with serving(folder, host="::1") as (server, lines):
        assert server.address == f"[::1]:{server.port}"
        options = {"offline": server.mode.name, "relu": server.model.terms.relu.name}
        with Client("::1", server.port, folder, **options) as client:
            assert client.predict(IMAGES[:1]).shape == (1, 5)
        with pytest.raises(UserError, match=r"\[::1\]:1: .*is `parelu serve` running there"):
            Client("::1", 1, folder, **options)
        assert until(lambda: bool(lines)) and lines[0].startswith("[::1]:")


@pytest.mark.parametrize("is_tls", ["server", "client"])
def test_tls_on_one_side_alone_is_named_on_both(is_tls, certificates):
    with serving(certificates if is_tls == "server" else None) as (server, lines):
        with pytest.raises((UserError, ProtocolError), match=r"TLS.*; give --tls DIR on both sides"):
            Client("localhost", server.port, None if is_tls == "server" else certificates, offline="dealer", timeout=5)
        assert until(lambda: any("TLS" in line and "give --tls DIR on both sides" in line for line in lines)), lines


def test_a_server_that_has_no_time_for_a_handshake_is_said_to_be_overloaded(certificates):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(
            UserError, match=r"no TLS connection \(the peer closed it; it may be overloaded or stopping"
        ):
            Client("localhost", listener.getsockname()[1], certificates)
        thread.join()


def test_a_client_that_has_prepared_may_think_it_over_unless_another_waits():
    """Ten times as long as one that has not."""
    with serving(timeout=0.2, clients=1) as (server, lines):
        options = {"offline": "dealer", "keep": Keep(notice=(notices := []).append)}
        with Client("127.0.0.1", server.port, **options) as client:
            client.prepare(2)
            time.sleep(0.8)
            client.predict(IMAGES[:1])
            assert not notices, "nothing was lost"
            started = time.monotonic()
            with Client("127.0.0.1", server.port, **options) as other:
                assert other.predict(IMAGES[:1]).shape == (1, 5) and time.monotonic() - started < 1.5
            assert until(lambda: any("silent for 0.2 seconds" in line for line in lines))


def test_a_client_connects_again_to_the_same_offer(tmp_path):
    """After silence, and to a server that was started anew; what was prepared is made again."""
    notices = []
    options = {"offline": "dealer", "keep": Keep(notice=notices.append)}
    with serving(timeout=0.2) as (server, lines):
        client = Client("127.0.0.1", server.port, **options)
        client.prepare(2)
        assert until(lambda: lines), "the server lost patience"
        first = client.predict(IMAGES[:2])
        assert len(lines) == 1
        (notice,) = notices
        assert notice.startswith("connected again: the peer ended the connection: the peer was silent for 2 seconds")
        assert notice.endswith("; 2 inferences are prepared anew")
        port, model = server.port, server.model
    again = Server(Served(model, modes()["dealer"]), ("127.0.0.1", port))
    thread = threading.Thread(target=again.run)
    thread.start()
    assert np.abs(client.predict(IMAGES[:2]) - first).max() < 0.05 and len(notices) == 2
    again.close()
    thread.join()
    other = Server(Served(Model(LOWERED, relus()["full"], reveal_of("exact")), modes()["dealer"]), ("127.0.0.1", port))
    thread = threading.Thread(target=other.run)
    thread.start()
    with pytest.raises(
        ProtocolError, match="the server offers relu 'full', and 'sign' was asked for; nothing was sent"
    ):
        client.predict(IMAGES[:1])
    other.close()
    thread.join()
    client.close()


def test_certificate_files(certificates, tmp_path):
    assert oct((certificates / "server.key").stat().st_mode)[-3:] == "600"
    with pytest.raises(UserError, match="has certificates already"):
        tls.make_certificates(certificates)
    with pytest.raises(UserError, match=r"ca\.pem is missing; make test certificates with `parelu certs"):
        tls.client_context(tmp_path)
    for name in ("ca.pem", "client.pem", "client.key"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(UserError, match="cannot be used"):
        tls.client_context(tmp_path)


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="is `parelu serve` running there"):
        Client("127.0.0.1", port)
    with serving() as (server, _), pytest.raises(UserError, match="cannot listen"):
        Server(server.default, ("127.0.0.1", server.port))


def test_a_plain_connection_stays_on_this_machine(certificates):
    """Also from Python, not by the command line alone."""
    model = Model(LOWERED, relus()["sign"], reveal_of("exact"))
    for host in ("192.0.2.1", "2001:db8::1", "example.test"):
        with pytest.raises(UserError, match=f"{host} is not this machine's own address, and needs TLS"):
            Server(Served(model, modes()["dealer"]), (host, 0))
        with pytest.raises(UserError, match="and needs TLS"):
            Client(host, 7000)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        tls.check_plain(host, None)
    tls.check_plain("example.test", certificates)


def test_a_server_without_descriptors_waits(monkeypatch):
    """To ask again at once would keep a core busy."""
    asked, accept = [], socket.socket.accept

    def full(listener):
        asked.append(time.monotonic())
        if len(asked) <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    with serving() as (server, lines):
        monkeypatch.setattr(socket.socket, "accept", full)
        with Client("127.0.0.1", server.port, offline="dealer") as client:
            assert client.predict(IMAGES[:1]).shape == (1, 5)
        assert asked[3] - asked[0] > 0.5
        assert sum("was not accepted: [Errno 24] Too many open files" in line for line in lines) == 3


def test_a_renewed_certificate_keeps_name_stock_and_budget(certificates, tmp_path):
    """A client is known by the subject that the authority named."""
    authority = Authority(tmp_path / "first")
    options = {"stock": tmp_path / "server", "ahead": 5, "budget": 3, "ledger": tmp_path / "clients.sqlite"}
    with serving(tmp_path / "first", **options) as (server, lines):
        ours = {"stock": tmp_path / "client", "offline": "dealer"}
        with Client("localhost", server.port, tmp_path / "first", **ours) as client:
            client.session.add_to_stock()
            client.session.add_to_stock()
            client.predict(IMAGES[:1])
        authority.issue(tmp_path / "first", "CN=Ada,O=Clinic")
        with Client("localhost", server.port, tmp_path / "first", **ours) as client:
            assert client.session.in_stock == 1 and client.session.left == 2
        authority.issue(tmp_path / "first", "CN=Eve,O=Clinic")
        with Client("localhost", server.port, tmp_path / "first", **ours) as client:
            assert client.session.in_stock == 0 and client.session.left == 3
        assert until(lambda: len(lines) == 3)
    assert lines[0].endswith("1 inferences, 2 offline phases, CN=Ada,O=Clinic; by CN=an authority"), lines
    assert [record.name[:6] for record in Ledger(tmp_path / "clients.sqlite").records()] == ["CN=Ada"]


class Authority:
    """One that can name several clients."""

    def __init__(self, folder):
        """folder: gets the server's files too, for localhost."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name.from_rfc4514_string("CN=an authority")
        folder.mkdir()
        extension = x509.BasicConstraints(ca=True, path_length=0)
        own = self._signed(self.name, self.key.public_key()).add_extension(extension, True)
        (folder / "ca.pem").write_bytes(own.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.issue(folder, "CN=a server", "server")
        self.issue(folder, "CN=Ada,O=Clinic")

    def issue(self, folder, subject, party="client"):
        folder.mkdir(exist_ok=True)
        key, names = ec.generate_private_key(ec.SECP256R1()), x509.SubjectAlternativeName([x509.DNSName("localhost")])
        builder = self._signed(x509.Name.from_rfc4514_string(subject), key.public_key()).add_extension(names, False)
        pem = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (folder / f"{party}.pem").write_bytes(pem)
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{party}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))

    def _signed(self, subject, key):
        now = datetime.datetime.now(datetime.UTC)
        dates = now - datetime.timedelta(hours=1), now + datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(dates[0]).not_valid_after(dates[1])


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_clients_that_vanish_leave_nothing_behind(certificates):
    with serving(certificates, timeout=1.0) as (server, lines):
        with Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client:
            client.predict(IMAGES[:1])
        assert until(lambda: len(lines) == 1)
        before, threads = descriptors(), threading.active_count()
        for number in range(24):
            try:
                client = Client(
                    "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
                )
                if number % 3:
                    client.prepare()
                if number % 3 == 2:
                    client.session.channel.send("comd", b"infr" + (1).to_bytes(4, "little"))
                    client.session.channel.send("inpt", np.zeros(36, np.uint64))
            finally:
                client.session.channel.close()  # without a good-bye
        with socket.create_connection(("127.0.0.1", server.port)) as probe:
            probe.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert until(lambda: len(lines) == 26)
        assert until(lambda: descriptors() <= before and threading.active_count() <= threads)
        assert not [line for line in lines if "internal error" in line]
        with Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client:
            assert client.predict(IMAGES).shape == (3, 5)


def test_a_silent_client_is_dropped():
    with serving(timeout=0.2) as (server, lines), socket.create_connection(("127.0.0.1", server.port)) as client:
        assert until(lambda: lines)
        assert "silent for 0.2 seconds" in lines[0]
        assert client.recv(300)


def test_packages_are_prepared_ahead_and_handed_out_once(certificates):
    with serving(certificates, ahead=3) as (server, _):
        assert server.prepared.wait(3, 10)
        waiting = list(server.prepared._packages)
        with Client(
            "localhost", server.port, certificates, offline=server.mode.name, relu=server.model.terms.relu.name
        ) as client:
            client.prepare(2)
            assert not {id(p) for p in waiting[:2]} & {id(p) for p in server.prepared._packages}
            masks = {m._content.mask.tobytes() for m in client.session.prepared}
            assert len(masks) == 2
            client.predict(IMAGES[:2])
        assert server.prepared.wait(3, 10)
    with pytest.raises(UserError, match="give --stock-dir"), serving(ahead=1, offline="seal"):
        pass


def test_keys_that_nobody_makes_are_refused_before_listening(monkeypatch):
    monkeypatch.setattr(HomomorphicEncryption, "most_bits", 8)
    message = "ReLU fss needs keys for m = .*; offline mode seal makes them up to 8"
    with pytest.raises(UserError, match=message), serving(relu="fss", offline="seal"):
        pass


def test_a_server_killed_between_preparing_and_using_repeats_nothing():
    """Material lives in memory, from fresh seeds: after a kill, another process (this one) makes other material."""
    import subprocess
    import sys

    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from two_parties import *\n"
        "from parelu.private.offline.dealer import Dealt\n"
        "lowered = lowered_of(ready(Residual(), (1, 6, 6)))\n"
        "package = Dealt().package(Model(lowered, relus()['sign'], reveal_of('exact')))\n"
        "print(package.dealer.mirror.seed.hex(), package.dealer.seed.hex(), package.dealer.key.hex(), flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    seeds = process.stdout.readline().split()
    process.kill()
    process.wait()
    process.stdout.close()
    dealer = (
        Dealt().package(Model(lowered_of(ready(Residual(), (1, 6, 6))), relus()["sign"], reveal_of("exact"))).dealer
    )
    seeds += [secret.hex() for secret in (dealer.mirror.seed, dealer.seed, dealer.key)]
    assert len(seeds) == len(set(seeds)) == 6
    assert all(len(seed) == 32 for seed in seeds)


def test_no_secret_comes_from_anything_but_the_operating_system():
    """Every seed is `os.urandom`: with it held still, two packages are the same; nothing else moves them."""
    from parelu.private.crypto import prg
    from parelu.private.offline.dealer import Dealt

    def package(source, relu):
        original, os.urandom = os.urandom, source
        try:
            dealt = Dealt().package(Model(LOWERED, relus()[relu], Exact()))
        finally:
            os.urandom = original
        tables = b"".join(tables.tobytes() for _, tables in dealt.dealer.outgoing)
        return dealt.dealer.mirror.seed, dealt.dealer.key, *([] if relu == "sign" else [tables])

    def still(count):
        return bytes(count)

    assert prg.os is os
    for relu in relus():
        assert package(still, relu) == package(still, relu)
        one, other = package(os.urandom, relu), package(os.urandom, relu)
        assert all(ours != theirs for ours, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("reveal", "budget"), [("label 2^3", 10_000), ("logits 2^3", 10_000), ("label", 300), ("exact", 300)]
)
def test_a_budget_is_smaller_where_answers_are_not_dithered(reveal, budget):
    model = Model(LOWERED, relus()["sign"], reveal_of(reveal))
    for asked, expected in ((None, budget), (7, 7), (0, 0)):
        server = Server(Served(model, modes()["dealer"], ServerOptions(budget=asked)), ("127.0.0.1", 0))
        assert server.budget == expected
        server.close()


def test_an_answer_that_is_none_ends_no_images_before_the_last(monkeypatch):
    """Where a client stopped would tell a server that deviates what it has answered."""
    asked, real = [], Exact.check_answer

    def check(self, program, answer):
        asked.append(answer)
        real(self, program, answer + (len(asked) == 2) * (1 << program.output_bits))

    monkeypatch.setattr(Exact, "check_answer", check)
    with (
        deployed(LOWERED) as (server, _),
        Client("127.0.0.1", server.port, offline="dealer") as client,
        pytest.raises(NoResult, match="is no result: a logit of"),
    ):
        client.predict(images_of(4, (1, 6, 6)))
    assert len(asked) == 4
