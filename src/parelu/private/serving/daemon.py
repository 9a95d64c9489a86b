"""A server as a service: signals, reloads, an orderly end, the other processes, how it is.

SIGTERM and SIGINT let the sessions end, the second one cuts them; SIGHUP reads certificates and models again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import queue
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from types import FrameType
from typing import Any

import parelu
from parelu.errors import UserError
from parelu.private.serving import log as logs
from parelu.private.serving.deployment import Deployment
from parelu.private.serving.health import Health
from parelu.private.serving.log import LOG
from parelu.private.serving.metrics import Metrics, Snapshot, Values, gauges, text
from parelu.private.serving.server import Server
from parelu.private.serving.workers import FIGURES, READY, RELOAD, RELOADED, Workers, pins

STOP = "stop"
HOUR, SOON = 3600.0, datetime.timedelta(days=14)
EVERY = 1.0  # seconds between what a process tells of its figures
CHANGED = "what is on disk is not what this server serves; SIGHUP reads it anew, for all of its processes"


@dataclasses.dataclass(frozen=True)
class Service:
    """How a server runs.

    address: (host, port) of it. drain: seconds that sessions have to end. metrics: (host, port) of its health, if it is
    anywhere. log: format and level, as `log.configure` has them.
    """

    address: tuple[str, int]
    processes: int = 1
    drain: float = 30.0
    metrics: tuple[str, int] | None = None
    log: tuple[str, str] = ("text", "info")


class Running:
    """One process: a server whose clients are accepted in a thread, and `events`, what is to be done with it."""

    def __init__(self, deployment: Deployment, listeners: Sequence[socket.socket], service: Service) -> None:
        self.deployment, self.service = deployment, service
        self.metrics = Metrics(lambda: self.server.standing)
        certificates, options = deployment.certificates, deployment.options
        self.server = Server(
            deployment.load(),
            service.address,
            certificates,
            options,
            watcher=self.metrics,
            allowed=deployment.allowed(),
            listeners=listeners,
        )
        self.events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self.server.run, name="accept")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() or self.server.is_draining

    def start(self) -> None:
        self._thread.start()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.server.is_draining:
            self._hurry.set()
        self.events.put((STOP,))

    def reload(self, deployment: Deployment, expected: dict[str, str] | None = None) -> str:
        """Why not, "" where it is served from now on; expected: name → pin, if another process has loaded it."""
        try:
            models = deployment.since(self.deployment).load()
            if expected not in (None, pins(models)):
                raise UserError(CHANGED)
            self.server.reload(models, deployment.certificates, deployment.allowed())
        except Exception as error:  # of whatever a file holds: the old one serves on
            return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.deployment = deployment
        return ""

    def drain(self) -> bool:
        """Whether all sessions ended by themselves."""
        count, seconds = len(self.server.sessions), self.service.drain
        LOG.info("stopping; clients that are served: %d, which have %g s", count, seconds)
        cut = self.server.drain(seconds, self._hurry)
        for one in cut:
            LOG.error("cut: %s", one)
        self._thread.join()
        return not cut


def serve(
    deployment: Deployment,
    reread: Callable[[], Deployment],
    listeners: Sequence[socket.socket],
    service: Service,
    announce: Callable[[Server], None] = lambda server: None,
) -> int:
    """Serve until a signal ends it; returns 0 where no client was cut, else 1.

    reread: what a reload is to serve. announce: called before the first client is.
    """
    running = Running(deployment, listeners, service)
    signal.signal(signal.SIGHUP, lambda *_: running.events.put((RELOAD,)))
    with contextlib.ExitStack() as stack:
        others = Workers(service.processes - 1, work, lambda: _job(running, listeners), LOG)
        if service.metrics:
            stack.callback(_health(running, others, service.metrics).close)
        announce(running.server)
        running.start()
        if soon := _expires(running):
            LOG.warning("%s; renew it, and SIGHUP", soon)
        while (event := _next(running)) != STOP:
            if event == RELOAD:
                _reload(running, reread, others)
            if soon := _expires(running):
                LOG.warning("%s; renew it, and SIGHUP", soon)
        others.stop()
        is_drained = running.drain()
        return 0 if others.join(service.drain) and is_drained else 1


def _next(running: Running) -> str:
    """What is to be done, or "" after an hour."""
    try:
        return running.events.get(timeout=HOUR)[0]
    except queue.Empty:
        return ""


def _expires(running: Running, within: datetime.timedelta = SOON) -> str:
    """That the server's certificate expires so soon, in words; "" where it does not."""
    expiry = running.server.expiry
    if expiry is None or expiry - datetime.datetime.now(datetime.UTC) > within:
        return ""
    return f"the server's certificate expires at {expiry:%Y-%m-%d %H:%M} UTC"


def _job(running: Running, listeners: Sequence[socket.socket]) -> tuple[Any, ...]:
    """What another process is to serve: exactly what this one does."""
    now = running.deployment
    return now.since(now), pins(running.server.models), listeners, running.service


def _reload(running: Running, reread: Callable[[], Deployment], others: Workers) -> None:
    try:
        deployment = reread()
    except UserError as error:
        LOG.error("not reloaded, and served on as before: %s", error)
        return
    if wrong := running.reload(deployment):
        LOG.error("not reloaded, and served on as before: %s", wrong)
        return
    now = pins(running.server.models)
    others.tell(RELOAD, deployment.since(deployment), now)
    LOG.info("reloaded: %s", ", ".join(f"{name} {pin}".strip() for name, pin in now.items()))


def _health(running: Running, others: Workers, place: tuple[str, int]) -> Health:
    def alive() -> str:
        return "" if running.is_alive else "no connection is accepted any more"

    def ready() -> str:
        if running.server.is_draining:
            return "stopping"
        if expired := _expires(running, datetime.timedelta()):
            return expired
        return "" if running.server.is_ready else "not serving yet"

    def metrics() -> bytes:
        return text([*others.figures(), running.metrics.snapshot(), _standing(running, others, not ready())])

    health = Health(*place, alive, ready, metrics)
    LOG.info("health and metrics at http://%s", health.address)
    return health


def _standing(running: Running, others: Workers, is_ready: bool) -> Snapshot:
    server = running.server
    stocked = {(("model", name),): float(s.stocks.held) for name, s in server.models.items() if s.stocks}
    expiry = {(): server.expiry.timestamp()} if server.expiry else {}
    return of_all(is_ready, 1 + others.ready, others.restarts, stocked, expiry)


def of_all(is_ready: bool, processes: int, restarts: int, stocked: Values, expiry: Values) -> Snapshot:
    """What the first process knows for all."""
    return gauges(
        {
            "ready": ("1 where clients are served.", {(): float(is_ready)}),
            "processes": ("Processes that serve.", {(): float(processes)}),
            "restarts": ("Processes that died and were replaced.", {(): float(restarts)}),
            "stock": ("Inferences that clients prepared, on disk.", stocked),
            "certificate_expiry_seconds": ("When the certificate ends, in Unix time.", expiry),
            "build_info": ("1, of this version.", {(("version", parelu.__version__),): 1.0}),
        }
    )


def work(
    pipe: Pipe,
    deployment: Deployment,
    expected: dict[str, str],
    listeners: Sequence[socket.socket],
    service: Service,
) -> None:
    """A further process, until the first one ends or says so; exits with 1 where clients were cut."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the first process reads for all
    logs.configure(*service.log)
    try:
        running = Running(deployment, listeners, service)
        if pins(running.server.models) != expected:
            raise UserError(CHANGED)
    except UserError as error:
        LOG.error("%s", error)
        raise SystemExit(1) from None
    running.start()
    _tell(pipe, READY, len(expected))
    for loop in (functools.partial(_hear, pipe, running), functools.partial(_report, pipe, running)):
        threading.Thread(target=loop, daemon=True).start()
    while (event := running.events.get())[0] != STOP:
        _tell(pipe, RELOADED, running.reload(*event[1:]))
    is_drained = running.drain()
    _tell(pipe, FIGURES, running.metrics.snapshot())
    raise SystemExit(0 if is_drained else 1)


def _hear(pipe: Pipe, running: Running) -> None:
    """What the first process says; where it is gone, and be it killed, this one ends too."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            running.events.put(pipe.recv())
    running.events.put((STOP,))


def _report(pipe: Pipe, running: Running) -> None:
    while not running.server.is_draining:
        _tell(pipe, FIGURES, running.metrics.snapshot())
        threading.Event().wait(EVERY)


def _tell(pipe: Pipe, *message: Any) -> None:
    """The first process, where it still listens."""
    with contextlib.suppress(OSError), _telling:
        pipe.send(message)


_telling = threading.Lock()
