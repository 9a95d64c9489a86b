"""The page's server, in the client's process: on loopback, for whoever has its address with the token."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import importlib.resources
import json
import queue
import re
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from torch import Tensor

from parelu.demo.parties import HOST
from parelu.demo.show import Demonstration
from parelu.errors import UserError

PATIENCE = 10.0  # seconds in which a request has to come, and what is sent has to be taken
HEARTBEAT = 5.0  # seconds of silence, after which a page is asked whether it is still there
IMAGES = 20  # on a page of them
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address has the token
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src {style}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
FILES = {"": ("page.html", "text/html"), "page.js": ("page.js", "text/javascript")}


class Page(ThreadingHTTPServer):
    """Serves the page of a demonstration until it is closed.

    Attributes:
        address: to open; who does not have its token is told nothing.
    """

    daemon_threads = True

    def __init__(self, show: Demonstration, images: Tensor, labels: Tensor, port: int = 0) -> None:
        """images: uint8 (N, 3, H, W) to choose from, with their labels; port: 0 for a free one.

        Raises UserError where it is in use.
        """
        self.show, self.images, self.labels = show, images, labels
        self.token = secrets.token_urlsafe(18)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"{HOST}:{port}: cannot listen ({error}); give another --port") from error
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"
        self._closing = threading.Event()

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def close(self) -> None:
        """Stop `serve_forever`, and all that is still being sent."""
        self._closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed in the middle is no error."""

    def batch(self, number: int) -> dict[str, Any]:
        """`IMAGES` of the images, and their labels; after the last come the first again."""
        chosen = [(number * IMAGES + index) % len(self.images) for index in range(IMAGES)]
        pixels = self.images[chosen].permute(0, 2, 3, 1).contiguous().numpy()
        return {
            "shape": list(pixels.shape[1:]),
            "images": [base64.b64encode(one.tobytes()).decode() for one in pixels],
            "labels": self.labels[chosen].tolist(),
        }


class _Handler(BaseHTTPRequestHandler):
    """One request. Whatever is not of the page itself is refused before anything is done."""

    server: Page  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = PATIENCE
    server_version, sys_version = "parelu", ""

    def do_GET(self) -> None:
        path = self._path()
        if path in FILES:
            name, kind = FILES[path]
            self._send(200, _asset(name), f"{kind}; charset=utf-8")
        elif path is not None and path.startswith("images/") and (number := path.removeprefix("images/")).isdecimal():
            self._send(200, json.dumps(self.server.batch(int(number[:6]))).encode(), "application/json")
        elif path == "events":
            self._events()
        elif path is not None:
            self._refuse(404, "there is nothing here")

    def do_POST(self) -> None:
        path = self._path(changes=True)
        if path == "ask":
            self._ask()
        elif path is not None:
            self._refuse(404, "there is nothing here")

    def _ask(self) -> None:
        _, channels, height, width = self.server.images.shape
        size = channels * height * width
        if self.headers.get("Content-Length") != str(size):
            self._refuse(400, f"an image has {size} bytes: rows of pixels of {channels}")
        elif len(body := self.rfile.read(size)) != size:
            self._refuse(400, "the image broke off")
        elif self.server.show.ask(np.frombuffer(body, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)):
            self._send(202, b"asked\n", "text/plain")
        else:
            self._refuse(409, "the networks are not ready")

    def _path(self, *, changes: bool = False) -> str | None:
        """What is asked for below the token; None where the request is refused, which it has been told then.

        A page of another site reaches this port by its user's browser: it does not know the token, its requests name
        another origin, and a name of its own that it lets point here is no host of this server.
        """
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        is_ours = origin == f"http://{host}" or (origin is None and not changes)
        is_ours = is_ours and self.headers.get("Sec-Fetch-Site") in (None, "none", "same-origin")
        _, token, *below = f"{self.path}//".split("/", 2)
        if host not in self.server.hosts or not is_ours:
            self._refuse(403, "this is for a page of this machine alone")
        elif not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(404, "open the address that `parelu demo` printed")
        else:
            return below[0].removesuffix("//")
        return None

    def _events(self) -> None:
        """Server-sent events, until the page is closed."""
        try:
            with self.server.show.events.listening() as told:
                self._begin(200, "text/event-stream; charset=utf-8")
                while not self.server.is_closing:
                    try:
                        name, content = told.get(timeout=HEARTBEAT)
                    except queue.Empty:
                        self.wfile.write(b": still here\n\n")
                        continue
                    self.wfile.write(f"event: {name}\ndata: {json.dumps(content)}\n\n".encode())
        except UserError as error:
            self._refuse(503, str(error))

    def _refuse(self, status: int, reason: str) -> None:
        self._send(status, f"parelu demo: {reason}\n".encode(), "text/plain; charset=utf-8")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self._begin(status, kind, len(body))
        self.wfile.write(body)

    def _begin(self, status: int, kind: str, length: int | None = None) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value.format(style=_style()))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line would have the token."""


def _asset(name: str) -> bytes:
    return (importlib.resources.files("parelu.demo") / name).read_bytes()


@functools.cache
def _style() -> str:
    """The page's own style sheet, by its digest: what somebody could slip into the page would have another."""
    sheet = re.search(rb"<style>(.*?)</style>", _asset("page.html"), re.DOTALL)
    assert sheet
    return f"'sha256-{base64.b64encode(hashlib.sha256(sheet[1]).digest()).decode()}'"
