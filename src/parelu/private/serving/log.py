"""What a server logs: a line an event, each in one write, as text or as JSON, with the connection that it is about.

Lines name connections, addresses, certificates, counts and reasons. Nothing of a message's body, of material or of a
key is ever handed to a logger.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
import os
from collections.abc import Callable, Iterator

from parelu.errors import UserError

LOG = logging.getLogger("parelu.serving")
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
LONGEST = 2000  # characters of a message
CONNECTION: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("connection")


@contextlib.contextmanager
def about(**fields: str) -> Iterator[dict[str, str]]:
    """All that this thread logs meanwhile is about this connection; fields may be added as they become known."""
    known = dict(fields)
    token = CONNECTION.set(known)
    try:
        yield known
    finally:
        CONNECTION.reset(token)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What a record has beside its message: of its connection, and `extra={"fields": {…}}` of the call."""
    return {**CONNECTION.get({}), **getattr(record, "fields", {})}


def line_of(record: logging.LogRecord) -> str:
    """The message, printable and on one line."""
    text = "".join(letter if letter.isprintable() else " " for letter in record.getMessage())
    return " ".join(text.split())[:LONGEST]


def time_of(record: logging.LogRecord) -> str:
    """In UTC, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Text(logging.Formatter):
    """TIME LEVEL CONNECTION PEER: MESSAGE, for people; connection and peer where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        where = f"{fields['connection']} {fields['peer']}: " if "peer" in fields else ""
        return f"{time_of(record)} {record.levelname.lower()} {where}{line_of(record)}"


class Json(logging.Formatter):
    """An object a line."""

    def format(self, record: logging.LogRecord) -> str:
        head = {"time": time_of(record), "level": record.levelname.lower(), "message": line_of(record)}
        return json.dumps({**head, "process": os.getpid(), **fields_of(record)})


class Lines(logging.Handler):
    """Writes each line at once, so that those of several threads and processes do not run into each other. Where the
    disk is full lines are lost and the server goes on; the next one that can be written says how many."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._lost = descriptor, 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                lost = logging.LogRecord(record.name, logging.WARNING, "", 0, f"{self._lost} lines were lost", (), None)
                self._write(self.format(lost))
                self._lost = 0
            self._write(self.format(record))
        except OSError:
            self._lost += 1

    def _write(self, line: str) -> None:
        left = f"{line}\n".encode()
        while left:
            left = left[os.write(self._descriptor, left) :]


class Told(logging.Handler):
    """Calls a function with "PEER: MESSAGE"."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        peer = fields_of(record).get("peer")
        self._tell(f"{peer}: {line_of(record)}" if peer else line_of(record))


def telling(tell: Callable[[str], None], level: int = logging.INFO) -> logging.Logger:
    """A logger of its own that calls the function with each line."""
    logger = logging.Logger("parelu.serving.told", level)
    logger.addHandler(Told(tell))
    return logger


def configure(form: str, level: str, descriptor: int = 2) -> None:
    """Log to a descriptor from here on. Raises UserError for an unknown form or level."""
    if form not in FORMATS or level not in LEVELS:
        raise UserError(f"give --log-format {' or '.join(FORMATS)}, and --log-level {', '.join(LEVELS)}")
    handler = Lines(descriptor)
    handler.setFormatter(Json() if form == "json" else Text())
    LOG.handlers[:], LOG.propagate = [handler], False
    LOG.setLevel(level.upper())
