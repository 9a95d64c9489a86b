"""The server's side of a deployed pair: TLS, several models and clients at once, an end that loses nobody's work."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from parelu.errors import ProtocolError, Refused, UserError
from parelu.private.offline.mode import Mode
from parelu.private.protocol.delphi import Model
from parelu.private.serving import session
from parelu.private.serving.connections import Connection, Connections, Stopped, readable
from parelu.private.serving.greeting import Hello, Offer, read_hello, tell_place
from parelu.private.serving.ledger import Account
from parelu.private.serving.listening import listen
from parelu.private.serving.log import LOG, about
from parelu.private.serving.quotas import MOST, Allowed, Everybody, Quota
from parelu.private.serving.served import Prepared, Served, ServedOptions
from parelu.private.serving.turns import WAITING, Busy, Turns
from parelu.private.serving.watcher import (
    BUSY,
    CUT,
    INTERNAL,
    NOBODY,
    PROBE,
    PROTOCOL,
    REFUSED,
    SERVED,
    TLS,
    Standing,
    Watcher,
)
from parelu.private.transport import tls
from parelu.private.transport.channel import TIMEOUT, Channel, address_text, tcp
from parelu.private.transport.link import LINKS, Link, shaped

HANDSHAKE_TIMEOUT = 10.0  # seconds
WAIT = 0.2  # seconds before the next try, where the system has no room for a connection
YIELD = 0.05  # seconds that a full process leaves a connection to the others
STRANGERS = 64  # connections beyond the clients that are served and wait: so many may be shaking hands
PATIENCE = 30.0  # seconds that a client waits which is told nothing meanwhile: shorter than one may be silent


@dataclasses.dataclass(frozen=True)
class ServerOptions(ServedOptions):
    """How a server works, and how its model is served where it has one.

    clients: how many are served at once; others wait their turn, at most `wait` seconds.
    link: what connections are shaped to; timeout: seconds of silence that end one.
    """

    clients: int = 16
    wait: float = 60.0
    link: Link = LINKS["loopback"]
    timeout: float = TIMEOUT


DEFAULTS, EVERYBODY = ServerOptions(), Everybody()


class Server:
    """Serves models to many clients, a thread each.

    Args:
        models: name → one that is served; a single one for all, or for clients that name none.
        address: (host, port); port 0 takes a free one, `port` says which.
        certificates: folder with ca.pem, server.pem and server.key; None for plain connections on this machine.
        log: gets a line for each connection that ends.
        watcher: is told of all that is done.
        allowed: who may be served, and how much.
        listeners: sockets that listen at the address already, which this process shares with others.

    Raises:
        UserError: it cannot listen, the certificates are none, or a plain connection could leave this machine.
    """

    def __init__(
        self,
        models: Served | Mapping[str, Served],
        address: tuple[str, int],
        certificates: Path | None = None,
        options: ServerOptions = DEFAULTS,
        *,
        log: logging.Logger = LOG,
        watcher: Watcher = NOBODY,
        allowed: Allowed = EVERYBODY,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self.models = {"": models} if isinstance(models, Served) else dict(models)
        self.options, self.log, self.watcher, self._host = options, log, watcher, address[0]
        check_access(address[0], certificates, allowed)
        self.allowed, self._turns = allowed, Turns(options.clients)
        self._tls = tls.server_context(certificates) if certificates else None
        self.expiry = tls.expiry(certificates) if certificates else None
        self._listeners = list(listeners) or listen(*address)
        self._connections = Connections()
        self._closing, self._accepting, self._running = False, threading.Event(), threading.Lock()
        self.port: int = self._listeners[0].getsockname()[1]
        self.address = address_text(address[0], self.port)
        for served in self.models.values():
            served.prepared.start()

    @property
    def default(self) -> Served:
        """What a client gets that names no model, where there is one alone; of several the first."""
        return next(iter(self.models.values()))

    @property
    def model(self) -> Model:
        return self.default.model

    @property
    def mode(self) -> Mode:
        return self.default.mode

    @property
    def offer(self) -> Offer:
        return self.default.offer

    @property
    def budget(self) -> int:
        return self.default.budget

    @property
    def prepared(self) -> Prepared:
        return self.default.prepared

    @property
    def is_ready(self) -> bool:
        """Whether it takes clients now."""
        return self._accepting.is_set() and not self._connections.is_draining

    @property
    def is_encrypted(self) -> bool:
        return self._tls is not None

    @property
    def is_draining(self) -> bool:
        return self._connections.is_draining

    @property
    def sessions(self) -> list[Connection]:
        """Clients that are served now."""
        return self._connections.sessions

    @property
    def standing(self) -> Standing:
        sessions = self.sessions
        return Standing(
            clients=len(sessions),
            waiting=self._turns.waiting,
            material=sum(one.prepared for one in sessions),
            prepared={name: len(served.prepared) for name, served in self.models.items()},
        )

    def reload(self, models: Mapping[str, Served], certificates: Path | None, allowed: Allowed = EVERYBODY) -> None:
        """Serve these from now on; sessions go on with what they have, but of clients that are not allowed any more.

        Raises UserError where the certificates are none, or expired: then nothing has changed.
        """
        check_access(self._host, certificates, allowed)
        context = tls.server_context(certificates) if certificates else None
        expiry = tls.expiry(certificates) if certificates else None
        if expiry and expiry < datetime.datetime.now(datetime.UTC):
            raise UserError(f"{certificates}: the server's certificate has expired ({expiry:%Y-%m-%d %H:%M} UTC)")
        before, after = self.models, {}
        for name, served in models.items():
            known = before.get(name)
            is_same = known and (known.offer, known.options) == (served.offer, served.options)
            after[name] = known if known and is_same else served
        self._tls, self.expiry, self.models, self.allowed = context, expiry, after, allowed
        for name, served in models.items():
            if after[name] is served:
                served.prepared.start()
            else:
                served.close()
        for served in before.values():
            if served not in after.values():
                self._connections.when_left(served, served.close)

    def run(self, connections: int | None = None) -> None:
        """Accept clients until `drain` or `close`, or serve so many and return when the last has ended."""
        accepted: list[threading.Thread] = []
        with self._running, selectors.DefaultSelector() as selector:
            for listener in (*self._listeners, self._connections.woken):
                selector.register(listener, selectors.EVENT_READ, listener)
            self._accepting.set()
            while connections is None or len(accepted) < connections:
                ready = [key.data for key, _ in selector.select()]
                if self._connections.is_draining:
                    break
                if self._is_full():
                    time.sleep(YIELD)
                accepted += [thread for one in ready if (thread := self._accept(one))]
            self._accepting.clear()
            for listener in self._listeners:
                listener.close()
        if connections is not None:
            for thread in accepted:
                thread.join()

    def drain(self, seconds: float, hurry: threading.Event | None = None) -> list[str]:
        """Take no new client, and let those that are served end; returns what had to be cut after so many seconds,
        or with `hurry`.

        A client between two queries that has nothing prepared is told to connect again.
        """
        self._connections.drain()
        if self._connections.wait(seconds, hurry or threading.Event()):
            self.close()
            return []
        cut = [str(connection) for connection in self._connections.sessions]
        self.close()
        return cut

    def close(self) -> None:
        """Stop listening, end every connection, wait for the threads. Safe to call again."""
        if self._closing:
            return
        self._closing = True
        self._connections.drain()
        with self._running:  # until `run` has left the listeners
            for listener in self._listeners:
                listener.close()
        self._connections.cut()
        self._connections.close()
        for served in self.models.values():
            served.close()

    def _is_full(self) -> bool:
        return len(self._connections.sessions) >= self.options.clients

    def _accept(self, listener: socket.socket) -> threading.Thread | None:
        try:
            connection, address = listener.accept()
        except (BlockingIOError, InterruptedError):
            return None  # another process has it
        except OSError as error:
            if not self._closing:
                self.log.error("a connection was not accepted: %s", error)
                time.sleep(WAIT)  # out of descriptors: to ask again at once would keep a core busy
            return None
        if len(self._connections) >= self.options.clients + WAITING + STRANGERS:
            connection.close()
            return None
        peer, opened = address_text(*address[:2]), threading.Event()
        thread = threading.Thread(target=self._serve, args=(connection, peer, opened), daemon=True)
        thread.start()
        opened.wait()  # it counts from now on
        return thread

    def _serve(self, connection: socket.socket, peer: str, opened: threading.Event) -> None:
        with self._connections.open(connection, peer) as known:
            opened.set()
            with about(connection=f"{os.getpid()}.{known.number}", peer=peer) as fields:
                try:
                    how, level, message = self._outcome(known, fields)
                except Exception as error:  # one client's trouble must not end the others
                    name, text = type(error).__name__, " ".join(str(error).split())[:200]
                    how, level, message = INTERNAL, logging.ERROR, f"internal error {name}: {text}"
                self.watcher.ended(how)
                self.log.log(level, message, extra={"fields": {"end": how}})

    def _outcome(self, known: Connection, fields: dict[str, str]) -> tuple[str, int, str]:
        """(how it ended, of what level, in words)."""
        known.socket.settimeout(HANDSHAKE_TIMEOUT)
        try:
            if _is_probe(known.socket, min(HANDSHAKE_TIMEOUT, self.options.timeout)):
                return PROBE, logging.DEBUG, "connected and left without a word"
            tcp(known.socket)
            known.socket = tls.handshake(self._tls, known.socket) if self._tls else known.socket
        except OSError as error:
            return TLS, logging.WARNING, " ".join(tls.reason(error).split())
        try:
            return self._talk(known, fields)
        except Stopped as error:
            return SERVED, logging.INFO, str(error)
        except (ProtocolError, UserError, OSError) as error:
            refused = {Refused: REFUSED, Busy: BUSY}
            how = CUT if self._closing else refused.get(type(error), PROTOCOL)
            return how, logging.WARNING, " ".join(tls.reason(error).split())

    def _talk(self, known: Connection, fields: dict[str, str]) -> tuple[str, int, str]:
        channel = Channel(shaped(known.socket, self.options.link), self.options.timeout)
        try:
            known.client = fields["client"] = tls.peer_of(known.socket)
            quota, hello = self.allowed.quota(known.client), read_hello(channel)
            known.model, known.served = hello.model, self._chosen(hello.model)
            fields["model"] = known.model
            tell = functools.partial(tell_place, channel) if hello.waits else lambda before: None
            patience = self.options.wait if hello.waits else min(PATIENCE, self.options.wait)
            with self._turns.turn(tell, self._check_running, patience):
                return SERVED, logging.INFO, self._session(channel, known, hello, quota)
        except ProtocolError as error:
            channel.fail(str(error))
            raise
        finally:
            channel.close()

    def _session(self, channel: Channel, known: Connection, hello: Hello, quota: Quota) -> str:
        """What was given in it, and to whom."""
        served, known.is_session = known.served, True
        assert isinstance(served, Served)
        account = served.ledger.account(known.client, quota)
        try:
            session.serve(channel, served.model, served.mode, self._service(known, served, account), hello)
        except ProtocolError as error:
            channel.fail(str(error))
            raise type(error)(f"{error}; {account.used}") from error
        finally:
            self.watcher.passed(known.model, channel.traffic)
        return account.used

    def _chosen(self, name: str) -> Served:
        if not name and len(self.models) == 1:
            return self.default
        if name in self.models:
            return self.models[name]
        known = ", ".join(filter(None, self.models))
        has = f"has {known}; name one (--model)" if known else "has one that has no name; leave --model out"
        raise ProtocolError(f"this server has no model {name[:40]!r}: it {has}")

    def _check_running(self) -> None:
        if self._connections.is_draining:
            raise Stopped("the server stops; connect again")

    def _await_command(self, known: Connection, account: Account, prepared: int) -> None:
        self._connections.await_command(known, prepared, self.options.timeout, lambda: self._turns.waiting > 0)
        account.quota = self.allowed.quota(known.client)  # which may have been changed

    def _service(self, known: Connection, served: Served, account: Account) -> session.Service:
        stocks, watcher, model, quota = served.stocks, self.watcher, known.model, account.quota
        return session.Service(
            package=served.prepared.take,
            stock=functools.partial(stocks.of, account.name) if stocks else session.no_stock,
            room=min(stocks.size, MOST if quota.prepared is None else quota.prepared) if stocks else 0,
            identity=stocks.identity if stocks else "",
            account=account,
            audit=served.options.audit,
            is_closing=lambda: self._closing,
            await_command=functools.partial(self._await_command, known, account),
            prepared=functools.partial(watcher.prepared, model),
            inferred=functools.partial(watcher.inferred, model),
            passed=functools.partial(watcher.passed, model),
        )


def check_access(host: str, certificates: Path | None, allowed: Allowed) -> None:
    """Raises UserError where a plain connection would leave this machine, or clients could not be told apart."""
    tls.check_plain(host, certificates)
    if certificates is None and not isinstance(allowed, Everybody):
        raise UserError("--allow names clients by their certificates: give --tls DIR")


def _is_probe(connection: socket.socket, timeout: float) -> bool:
    """Whether the peer closes before it has sent anything, as those do that ask whether somebody listens."""
    if not readable(connection, timeout):
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except ConnectionResetError:
        return True
