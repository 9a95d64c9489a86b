"""Mutual TLS 1.3: contexts for both ends, and certificates for tests."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from parelu.errors import ProtocolError, UserError
from parelu.network.storage import check_secret

SINCE, DAYS = datetime.timedelta(hours=-1), 365  # from now on: clocks differ
AUTHORITY, SERVER, CLIENT = "ca", "server", "client"


def server_context(folder: Path) -> ssl.SSLContext:
    """From ca.pem, server.pem and server.key: clients need a certificate of the authority."""
    context = _context(folder, SERVER, ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    return context


def client_context(folder: Path) -> ssl.SSLContext:
    """From ca.pem, client.pem and client.key: the server needs a certificate of the authority for its name."""
    return _context(folder, CLIENT, ssl.PROTOCOL_TLS_CLIENT)


def _context(folder: Path, party: str, protocol: int) -> ssl.SSLContext:
    files = [folder / name for name in (f"{AUTHORITY}.pem", f"{party}.pem", f"{party}.key")]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing; make test certificates with `parelu certs {folder}`")
    check_secret(files[2])
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(files[0])
        context.load_cert_chain(files[1], files[2])
    except (ssl.SSLError, OSError) as error:
        raise UserError(f"{folder}: its certificates cannot be used ({error})") from error
    return context


def handshake(context: ssl.SSLContext, connection: socket.socket, server_hostname: str | None = None) -> ssl.SSLSocket:
    """TLS over a connected socket, which is closed where the handshake fails; server_hostname: of a client only."""
    try:
        connection.getpeername()  # ssl leaves the socket of a peer that is gone already to the garbage collector
    except OSError:
        connection.close()
        raise
    wrapped = context.wrap_socket(
        connection, server_side=server_hostname is None, do_handshake_on_connect=False, server_hostname=server_hostname
    )
    try:
        wrapped.do_handshake()
    except BaseException as error:
        _hear_out(wrapped, REFUSAL if _speaks_no_tls(error) else b"")
        wrapped.close()
        raise
    return wrapped


def _hear_out(connection: socket.socket, last: bytes) -> None:
    """Say this and read what the peer has sent: to close before would reset the connection, and it would not learn
    why."""
    with contextlib.suppress(OSError):
        connection.settimeout(QUIET)
        socket.socket.send(connection, last)
        socket.socket.shutdown(connection, socket.SHUT_WR)
        for _ in range(MOST_HEARD):
            if not socket.socket.recv(connection, 1 << 16):
                break


def check_is_plain(start: bytes | bytearray) -> None:
    """Raises ProtocolError where the first bytes of a message are those of TLS."""
    if len(start) >= 3 and start[0] in (ALERT, HANDSHAKE) and start[1] == 3:
        raise ProtocolError("the peer speaks TLS, and this side does not; give --tls DIR on both sides")


# What a peer's alert says of this side's certificate: OpenSSL's reason → in words.
ALERTS = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer refused this side's certificate: it has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refused this side's certificate: it is not yet valid, or damaged",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refused this side's certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer refused this side's certificate: its authority is not the peer's ca.pem",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer asks for a certificate of this side",
}
NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}  # as OpenSSL 1.1 to 3.5 have it
ALERT, HANDSHAKE = 21, 22  # content types: RFC 8446, section 5.1
REFUSAL = bytes([ALERT, 3, 3, 0, 2, 2, 70])  # protocol_version, fatal; OpenSSL says nothing where it reads no TLS
QUIET, MOST_HEARD = 0.2, 16  # seconds, and parts
# OpenSSL's number of what is wrong with the peer's certificate → what helps.
REMEDIES = {
    9: "wait, or set the clocks of both machines",
    10: "make a new one, or set this machine's clock",
    62: "connect by a name that it has, or make one for this name (parelu certs DIR --hosts NAME)",
    64: "connect by an address that it has, or make one for this address (parelu certs DIR --hosts ADDRESS)",
}


def reason(error: BaseException) -> str:
    """Why a TLS connection failed, in a line: which certificate, what of it, and what helps."""
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = REMEDIES.get(error.verify_code, "use the ca.pem of the authority that signed it")
        return f"the peer's certificate is refused: {error.verify_message.rstrip('.')}; {remedy}"
    if isinstance(error, (ssl.SSLEOFError, ConnectionResetError)):
        return "the peer closed it; it may be overloaded or stopping: try again later"
    if not isinstance(error, ssl.SSLError):
        return str(error)
    if _speaks_no_tls(error):
        return "the peer does not speak TLS; give --tls DIR on both sides"
    code = str(error.reason or error)
    return ALERTS.get(code, code)


def _speaks_no_tls(error: BaseException) -> bool:
    return isinstance(error, ssl.SSLError) and error.reason in NO_TLS


def peer_of(connection: socket.socket) -> str:
    """The subject that the authority named in the peer's certificate, and the authority; "" without TLS.

    A renewed certificate keeps it. One without a subject is known by its key.
    """
    encoded = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLSocket) else None
    if not encoded:
        return ""
    certificate = x509.load_der_x509_certificate(encoded)
    subject = certificate.subject.rfc4514_string()
    if not subject:
        key = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        subject = f"key {hashlib.sha256(key).hexdigest()}"
    name = f"{subject}; by {certificate.issuer.rfc4514_string()}"
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def check_plain(host: str, certificates: Path | None) -> None:
    """Raises UserError where a plain connection would leave this machine."""
    if certificates is None and not is_loopback(host):
        raise UserError(f"{host} is not this machine's own address, and needs TLS: give --tls DIR (parelu certs DIR)")


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_certificates(
    folder: Path, hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1"), authority_key: Path | None = None
) -> None:
    """Write an authority, a server for `hosts` and a client, each NAME.pem and NAME.key, valid for a year.

    authority_key: the file that keeps the authority's key and certificate, with which `issue_client` makes further
    clients; None throws the key away: nobody can add a client later. For tests and first steps.
    Raises UserError where one of the files is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = [folder / f"{name}{end}" for name in (AUTHORITY, SERVER, CLIENT) for end in (".pem", ".key")]
    if any(file.exists() for file in there):
        raise UserError(f"{folder} has certificates already; give another folder, or remove them first")
    if authority_key and authority_key.exists():
        raise UserError(f"{authority_key} is there already; give another file, or remove it first")
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(key)
    _write(folder / f"{AUTHORITY}.pem", _pem(authority), 0o644)
    if authority_key:
        _write(authority_key, _secret(key) + _pem(authority), 0o600)
    names = x509.SubjectAlternativeName(list(map(_host, hosts)))
    _issue(folder, SERVER, "parelu test server", authority, key, ExtendedKeyUsageOID.SERVER_AUTH, names)
    _issue(folder, CLIENT, "parelu test client", authority, key, ExtendedKeyUsageOID.CLIENT_AUTH)


def issue_client(folder: Path, name: str, authority_key: Path) -> str:
    """Write ca.pem, client.pem and client.key of one more client, CN=`name`, valid for a year; returns its subject.

    Raises UserError where the authority's key is none, the name cannot be one, or one of the files is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = [folder / file for file in (f"{AUTHORITY}.pem", f"{CLIENT}.pem", f"{CLIENT}.key")]
    if any(file.exists() for file in there):
        raise UserError(f"{folder} has certificates already; give another folder, or remove them first")
    try:
        kept = authority_key.read_bytes()
        key, authority = serialization.load_pem_private_key(kept, None), x509.load_pem_x509_certificate(kept)
    except (OSError, ValueError, TypeError) as error:
        remedy = "`parelu certs DIR --authority-key FILE` writes one"
        raise UserError(f"{authority_key} has no authority's key and certificate ({remedy})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise UserError(f"{authority_key}: its key is not that of its certificate")
    if not (name.isprintable() and 1 <= len(name) <= 64):
        raise UserError(f"{name[:80]!r} is no name of a client: 1 to 64 letters")
    _write(there[0], _pem(authority), 0o644)
    return _issue(folder, CLIENT, name, authority, key, ExtendedKeyUsageOID.CLIENT_AUTH)


def expiry(folder: Path) -> datetime.datetime:
    """When the server's certificate ends; raises UserError where it cannot be read."""
    file = folder / f"{SERVER}.pem"
    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no certificate ({error})") from error


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "parelu test authority")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def _issue(
    folder: Path,
    party: str,
    name: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    purpose: x509.ObjectIdentifier,
    hosts: x509.SubjectAlternativeName | None = None,
) -> str:
    """Write a party's certificate and key; returns its subject."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        _builder(subject, authority.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(identifier, critical=False)
    )
    if hosts:
        builder = builder.add_extension(hosts, critical=False)
    _write(folder / f"{party}.pem", _pem(builder.sign(authority_key, hashes.SHA256())), 0o644)
    _write(folder / f"{party}.key", _secret(key), 0o600)
    return subject.rfc4514_string()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + SINCE)
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
