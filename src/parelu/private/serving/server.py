"""The server's side of a deployed pair: TLS, several clients at once, material prepared ahead.

Where material can be made without a client, it waits prepared in memory; where it cannot, clients fill stocks on disk
(`stock.py`), while others are served.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from parelu.errors import ProtocolError, UserError
from parelu.private.offline.mode import Mode, Package
from parelu.private.protocol.delphi import Model
from parelu.private.serving import session
from parelu.private.serving.greeting import Offer
from parelu.private.serving.ledger import Account, Ledger
from parelu.private.serving.stock import ServerStocks
from parelu.private.transport import tls
from parelu.private.transport.channel import TIMEOUT, Channel, address_text, tcp
from parelu.private.transport.link import LINKS, Link, shaped
from parelu.private.transport.traffic import Traffic

Traffics = Mapping[tuple[str, str], Traffic]
HANDSHAKE_TIMEOUT = 10.0  # seconds
BUDGET, PLAIN_BUDGET = 10_000, 300  # inferences of a client where what is revealed is dithered, and where it is not
AUDIT, MOST_AUDITED = 0.1, 0.5  # of the offline phases
WAIT = 0.2  # seconds before the next try, where the system has no room for a connection
STRANGERS = 64  # connections beyond the clients served: so many may be shaking hands


class Prepared:
    """Packages made ahead by a thread of its own, each handed out once. They live in memory only: a killed server
    leaves none behind that could be used twice."""

    def __init__(self, model: Model, mode: Mode, size: int) -> None:
        self.size = size
        self._make = lambda: mode.package(model)
        self._packages: deque[Package] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fill, name="prepare", daemon=True)
        if size:
            self._thread.start()

    def __len__(self) -> int:
        return len(self._packages)

    def take(self) -> Package | None:
        """One package, gone from here; None where there is none."""
        with self._changed:
            package = self._packages.popleft() if self._packages else None
            self._changed.notify_all()
        return package

    def wait(self, count: int, timeout: float) -> bool:
        """Until `count` packages are there."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._packages) >= count, timeout)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._packages.clear()
            self._changed.notify_all()
        if self.size:
            self._thread.join()

    def _fill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._packages) < self.size)
                if self._closed:
                    return
            package = self._make()
            assert package is not None
            with self._changed:
                if not self._closed:
                    self._packages.append(package)
                self._changed.notify_all()


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How a server works.

    ahead: inferences prepared ahead: in memory, or with `stock`, a folder, on disk for each client.
    clients: how many are served at once; one more is told to come back.
    shared: let other processes listen on the same port.
    link: what connections are shaped to; timeout: seconds of silence that end one.
    budget: inferences of each client, by the name in its certificate; 0 for no limit, None for 10,000 where what is
    revealed is dithered and 300 where it is not (benchmarks/leakage.py). ledger: the file that counts them
    and the offline phases; None counts in memory. audit: the share of offline phases that are opened.
    """

    ahead: int = 0
    stock: Path | None = None
    clients: int = 16
    shared: bool = False
    link: Link = LINKS["loopback"]
    timeout: float = TIMEOUT
    budget: int | None = None
    ledger: Path | None = None
    audit: float = AUDIT

    def check(self, mode: Mode) -> None:
        """Raises UserError where the offline mode cannot do this."""
        if self.ahead and not mode.packages and not self.stock:
            raise UserError(f"offline mode {mode.name} needs the client: give --stock-dir, or leave --stock out")
        if self.stock and not self.ahead:
            raise UserError("--stock-dir needs --stock N, the inferences kept for each client")
        if not 0 <= self.audit <= MOST_AUDITED:
            raise UserError(f"--audit {self.audit:g} is not a share from 0 to {MOST_AUDITED:g}")
        if self.budget is not None and self.budget < 0:
            raise UserError(f"--budget {self.budget} is not a number of inferences, or 0 for no limit")


class Server:
    """Serves one model to many clients, a thread each.

    Args:
        address: (host, port); port 0 takes a free one, `port` says which.
        certificates: folder with ca.pem, server.pem and server.key; None for plain connections on this machine.
        log: called with one line for each connection that ends.
        finished: called with a connection's traffic after each inference; the traffic is cleared then.
    """

    def __init__(
        self,
        model: Model,
        mode: Mode,
        address: tuple[str, int],
        certificates: Path | None = None,
        options: ServerOptions = ServerOptions(),
        *,
        log: Callable[[str], None] = lambda line: None,
        finished: Callable[[Traffics], None] = lambda traffic: None,
    ) -> None:
        tls.check_plain(address[0], certificates)
        self.model, self.mode, self.options, self.log, self.finished = model, mode, options, log, finished
        self._tls = tls.server_context(certificates) if certificates else None
        self._free = threading.Semaphore(options.clients)
        self._connections: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closing = False
        mode.check_terms(model.terms.program, model.terms.relu)
        mode.check(model)
        options.check(mode)
        self._stocks = ServerStocks(options.stock, options.ahead) if options.stock else None
        default = BUDGET if model.terms.reveal.cut else PLAIN_BUDGET
        self.budget = default if options.budget is None else options.budget
        self.offer, self._ledger = Offer.of(model, mode), Ledger(options.ledger, self.budget, options.audit)
        try:
            family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            self._listener = socket.create_server(address, family=family, backlog=64, reuse_port=options.shared)
        except (OSError, OverflowError) as error:
            raise UserError(f"{address_text(*address)}: cannot listen ({error}); give another --port") from error
        self.port: int = self._listener.getsockname()[1]
        self.address = address_text(address[0], self.port)
        self.prepared = Prepared(model, mode, 0 if options.stock else options.ahead)

    def run(self, connections: int | None = None) -> None:
        """Accept clients until `close`, or serve so many and return when the last has ended."""
        accepted: list[threading.Thread] = []
        while connections is None or len(accepted) < connections:
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if self._closing:
                    return
                self.log(f"a connection was not accepted: {error}")
                time.sleep(WAIT)  # out of descriptors: to ask again at once would keep a core busy
                continue
            if len(self._threads) >= self.options.clients + STRANGERS:
                connection.close()
                continue
            thread = threading.Thread(target=self._serve, args=(connection, address_text(*address[:2])), daemon=True)
            with self._lock:
                self._connections.add(connection)
                self._threads.add(thread)
            thread.start()
            if connections is not None:
                accepted.append(thread)
        for thread in accepted:
            thread.join()

    def close(self) -> None:
        """Stop listening, end every connection, wait for the threads."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections, threads = list(self._connections), list(self._threads)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        self.prepared.close()
        self._ledger.close()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        try:
            self.log(f"{peer}: {self._talk(connection)}")
        except (ssl.SSLError, ProtocolError, UserError, OSError) as error:
            self.log(f"{peer}: {' '.join(tls.reason(error).split())}")
        except Exception as error:  # one client's trouble must not end the others
            self.log(f"{peer}: internal error {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        finally:
            with contextlib.suppress(OSError):
                connection.close()
            with self._lock:
                self._connections.discard(connection)
                self._threads.discard(threading.current_thread())

    def _talk(self, connection: socket.socket) -> str:
        connection.settimeout(HANDSHAKE_TIMEOUT)
        tcp(connection)
        wrapped = tls.handshake(self._tls, connection) if self._tls else connection
        with self._lock:
            self._connections.discard(connection)
            self._connections.add(wrapped)
        channel = Channel(shaped(wrapped, self.options.link), self.options.timeout)
        is_free = self._free.acquire(blocking=False)
        try:
            if not is_free:
                channel.fail(f"{self.options.clients} clients are being served; try again later")
                return f"refused: {self.options.clients} clients are being served"
            account = self._ledger.account(tls.peer_of(wrapped))
            try:
                session.serve(channel, self.model, self.mode, self._service(account))
            except ProtocolError as error:
                channel.fail(str(error))
                raise ProtocolError(f"{error}; {account.used}") from error
            return account.used
        finally:
            if is_free:
                self._free.release()
            channel.close()
            with self._lock:
                self._connections.discard(wrapped)

    def _service(self, account: Account) -> session.Service:
        stocks = self._stocks
        return session.Service(
            package=self.prepared.take,
            stock=functools.partial(stocks.of, account.name) if stocks else session.no_stock,
            room=stocks.size if stocks else 0,
            identity=stocks.identity if stocks else "",
            account=account,
            audit=self.options.audit,
            is_closing=lambda: self._closing,
            finished=self.finished,
        )
