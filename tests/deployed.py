"""A server that listens on this machine, for as long as a test needs it."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parelu.private.lowering.lowered import Lowered
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.serving.log import telling
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.serving.watcher import NOBODY, Watcher


@contextlib.contextmanager
def deployed(
    lowered: Lowered,
    certificates: Path | None = None,
    offline: str = "dealer",
    reveal: str = "exact",
    relu: str = "sign",
    keep: Keep | None = None,
    host: str = "127.0.0.1",
    truncation: str = "local",
    log: logging.Logger | None = None,
    watcher: Watcher = NOBODY,
    **options: Any,
) -> Iterator[tuple[Server, list[str]]]:
    """(the server, the lines that it logs); options: of `ServerOptions`."""
    lines: list[str] = []
    model, mode = Model(lowered, relus()[relu], reveal_of(reveal), truncation), modes()[offline]
    if keep:
        mode.make(model, keep)
    chosen = ServerOptions(**options)
    server = Server(
        Served(model, mode, chosen), (host, 0), certificates, chosen, log=log or telling(lines.append), watcher=watcher
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server, lines
    finally:
        server.close()
        thread.join()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What the condition says at last: true, or so many seconds were over."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
