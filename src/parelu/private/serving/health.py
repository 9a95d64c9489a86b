"""How a server is, over HTTP on a port of its own: /healthz, /readyz, /metrics."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable

from parelu.errors import UserError
from parelu.private.transport.channel import address_text

TIMEOUT = 5.0  # seconds that a request may take to come
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    """Answers in a thread of its own.

    alive, ready: say what is wrong, "" for nothing; metrics: the page for Prometheus. Raises UserError where it cannot
    listen.
    """

    def __init__(
        self, host: str, port: int, alive: Callable[[], str], ready: Callable[[], str], metrics: Callable[[], bytes]
    ) -> None:
        pages = {"/healthz": lambda: _state(alive()), "/readyz": lambda: _state(ready())}
        pages["/metrics"] = lambda: (200, METRICS_TYPE, metrics())

        class Handler(_Handler):
            answers = pages

        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            kind = type("Listener", (http.server.ThreadingHTTPServer,), {"address_family": family})
            self._server = kind((host, port), Handler)
        except (OSError, OverflowError) as error:
            where = address_text(host, port)
            raise UserError(f"{where}: no metrics there ({error}); give another --metrics-port") from error
        self._server.daemon_threads = True
        self.address = address_text(host, self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of the pages; nothing of a request is logged."""

    answers: dict[str, Callable[[], tuple[int, str, bytes]]]
    timeout = TIMEOUT
    server_version, sys_version = "parelu", ""

    def do_GET(self) -> None:
        page = self.answers.get(self.path.partition("?")[0])
        status, kind, body = page() if page else (404, "text/plain", b"/healthz, /readyz, /metrics\n")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *_: object) -> None: ...


def _state(wrong: str) -> tuple[int, str, bytes]:
    return (503 if wrong else 200), "text/plain; charset=utf-8", f"{wrong or 'ok'}\n".encode()
