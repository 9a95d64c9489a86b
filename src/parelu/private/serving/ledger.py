"""What each client has used of a server: counted on disk, before it is given, and kept across restarts.

An inference tells something of the weights, and an offline phase of a client that deviates tells more (see
docs/threat-model.md), so both have a budget. Which phases the server opens stands here when they are over and not
before: any answer of the server to the same client could tell it. A client that goes away in a phase that was to be
opened has a mark against it, and after `MOST_UNANSWERED` marks it is barred, as is one that was caught.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parelu.errors import ProtocolError, Refused, UserError
from parelu.private.serving.quotas import NO_QUOTA, Quota

MOST_UNANSWERED = 3
INFERENCES, PHASES, OPENED = "inferences", "offline phases", "opened"
FAULTS = (sqlite3.Error, UnicodeDecodeError)  # the latter where SQLite's message quotes a file that is no text
SPARE = 16  # offline phases beyond a tenth more than are needed: for those that are cut off or not used
WAIT = 30.0  # seconds for another process that writes
TABLE = """CREATE TABLE IF NOT EXISTS clients (
    name TEXT PRIMARY KEY, inferences INTEGER NOT NULL DEFAULT 0, phases INTEGER NOT NULL DEFAULT 0,
    opened INTEGER NOT NULL DEFAULT 0, answered INTEGER NOT NULL DEFAULT 0, caught TEXT NOT NULL DEFAULT '')"""
PERIODS = """CREATE TABLE IF NOT EXISTS periods (
    name TEXT PRIMARY KEY, start INTEGER NOT NULL, inferences INTEGER NOT NULL)"""
ROWS = "SELECT name, inferences, phases, opened, answered, caught FROM clients"


@dataclasses.dataclass(frozen=True)
class Record:
    """Of one client. opened, answered: offline phases that are over and were to be opened, and those among them that
    the client showed. caught: in what, "" for nothing."""

    name: str
    inferences: int
    phases: int
    opened: int
    answered: int
    caught: str

    @property
    def barred(self) -> str:
        """Why, "" where it is not."""
        if self.caught:
            return f"caught: {self.caught}"
        unanswered = self.opened - self.answered
        return f"{unanswered} offline phases were not shown" if unanswered >= MOST_UNANSWERED else ""


class Ledger:
    """Of all clients of a server; several processes may share the file, and threads this object.

    file: on a disk of this machine; None keeps it in memory. inferences: the budget of each client, 0 for no limit;
    audit: the share of phases that are opened, which its budget of offline phases makes up for.
    """

    def __init__(self, file: Path | None = None, inferences: int = 0, audit: float = 0.0) -> None:
        self.inferences, self._file, self._lock = inferences, file, threading.Lock()
        self.asked: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by name: one phase at a time
        self.phases = math.ceil(1.1 * inferences / (1 - audit)) + SPARE if inferences else 0
        try:
            self._database = sqlite3.connect(
                file or ":memory:", timeout=WAIT, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(TABLE)
            self._database.execute(PERIODS)
        except FAULTS as error:
            place = isinstance(error, sqlite3.OperationalError)  # no damage: it cannot be opened, or not written to
            elsewhere = "; `parelu serve --ledger FILE` counts elsewhere" if place else ""
            raise UserError(f"{self._refused(error)}{elsewhere}") from error
        self.records()

    def account(self, name: str, quota: Quota = NO_QUOTA) -> Account:
        """Of one client, by the name in its certificate."""
        return Account(self, name, quota)

    def in_period(self, name: str, start: int) -> int:
        """Inferences of a client in the period of its quota that started then; raises UserError likewise."""
        with self._asking() as database:
            return _in_period(database, name, start)

    def records(self) -> list[Record]:
        """By name; raises UserError where the file cannot be read, or has rows of another kind."""
        with self._asking() as database:
            return [_record(row) for row in database.execute(f"{ROWS} ORDER BY name")]

    def record(self, name: str) -> Record:
        """Of one client; raises UserError where the file cannot be read."""
        with self._asking() as database:
            row = database.execute(f"{ROWS} WHERE name = ?", (name,)).fetchone()
            return _record(row) if row else Record(name, 0, 0, 0, 0, "")

    def forget(self, name: str) -> bool:
        """Let a client start again; returns whether there was one. Raises UserError where the file is not writable."""
        with self._asking() as database:
            database.execute("DELETE FROM periods WHERE name = ?", (name,))
            return database.execute("DELETE FROM clients WHERE name = ?", (name,)).rowcount > 0

    @contextlib.contextmanager
    def _asking(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._database
        except FAULTS as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> UserError:
        return UserError(f"{self._file}: cannot count what clients use there ({_line(error)})")

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[tuple[sqlite3.Connection, Record]]:
        """One transaction on a client's row."""
        try:
            with self._lock, self._database as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT OR IGNORE INTO clients (name) VALUES (?)", (name,))
                yield database, _record(database.execute(f"{ROWS} WHERE name = ?", (name,)).fetchone())
        except FAULTS as error:
            raise ProtocolError(f"the server cannot count what its clients use ({_line(error)})") from error


def _in_period(database: sqlite3.Connection, name: str, start: int) -> int:
    """Raises sqlite3.Error for what was not written here."""
    row = database.execute("SELECT start, inferences FROM periods WHERE name = ?", (name,)).fetchone()
    if row and not all(isinstance(number, int) and number >= 0 for number in row):
        raise sqlite3.DataError("a row is not of this program's")
    return row[1] if row and row[0] == start else 0


def _line(error: Exception) -> str:
    """SQLite's message, which may quote what lies in the file."""
    return "".join(letter for letter in str(error) if letter.isprintable())[:200]


def _record(row: tuple[Any, ...]) -> Record:
    """Raises sqlite3.Error for what was not written here: a table of SQLite's may hold anything."""
    record = Record(*row)
    counts = record.inferences, record.phases, record.opened, record.answered
    is_text = isinstance(record.name, str) and isinstance(record.caught, str) and record.caught.isprintable()
    if not is_text or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise sqlite3.DataError("a row is not of this program's")
    return record


class Account:
    """What one client may still have; every change is on disk when a method returns.

    name: in its certificate; "" for a client of this machine. quota: its own, which may be changed.
    """

    def __init__(self, ledger: Ledger, name: str, quota: Quota = NO_QUOTA) -> None:
        self._ledger, self.name, self.quota, self._given = ledger, name, quota, Counter[str]()

    @property
    def record(self) -> Record:
        return self._ledger.record(self.name)

    @property
    def used(self) -> str:
        """What was given through this object, and to whom, in words."""
        counts = [
            f"{self._given[what]} {what}"
            for what in (INFERENCES, PHASES, OPENED)
            if self._given[what] or what != OPENED
        ]
        return ", ".join(counts) + (f", {self.name}" if self.name else "")

    @property
    def left(self) -> int | None:
        """Inferences; None for no limit."""
        left = []
        if self._ledger.inferences:
            left.append(self._ledger.inferences - self.record.inferences)
        if self.quota.inferences is not None:
            left.append(self.quota.inferences - self._ledger.in_period(self.name, self._period()))
        return max(0, min(left)) if left else None

    def _period(self) -> int:
        """When the period of the quota began, in seconds of UTC."""
        return int(time.time()) // self.quota.seconds * self.quota.seconds

    def phase(self) -> None:
        """One offline phase begins. Raises Refused where the client may have none."""
        self._charge(PHASES, "phases", 1, self._ledger.phases)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One connection of this client at a time, in this process. Raises Refused where it is barred by now."""
        with self._ledger.asked[self.name]:
            if self.record.barred:
                raise Refused(f"this certificate is barred ({self.record.barred}); ask the operator")
            yield

    def may_have_phases(self) -> bool:
        """Whether `phase` would not raise now."""
        record, budget = self.record, self._ledger.phases
        return not record.barred and (not budget or record.phases < budget)

    def infer(self, count: int) -> None:
        """An online phase of so many begins. Raises Refused where the client may not have them."""
        self._charge(INFERENCES, "inferences", count, self._ledger.inferences, self._charge_period)

    def _charge_period(self, database: sqlite3.Connection, count: int) -> None:
        most, start = self.quota.inferences, self._period()
        if most is None:
            return
        used = _in_period(database, self.name, start)
        if used + count > most:
            raise Refused(
                f"the quota of this certificate is used up: {used} of {most} inferences a {self.quota.per}; wait, or "
                "ask the operator"
            )
        database.execute("INSERT OR REPLACE INTO periods VALUES (?, ?, ?)", (self.name, start, used + count))

    def opened(self, *, answered: bool) -> None:
        """A phase that was to be opened is over; answered: and was shown to be honest."""
        self._given[OPENED] += 1
        self._set("opened = opened + 1, answered = answered + ?", int(answered))

    def bar(self, reason: str) -> None:
        """For good: the client was caught."""
        self._set("caught = ?", reason)

    def _set(self, change: str, *values: object) -> None:
        with self._ledger.changing(self.name) as (database, _):
            database.execute(f"UPDATE clients SET {change} WHERE name = ?", (*values, self.name))

    def _charge(
        self,
        what: str,
        column: str,
        count: int,
        budget: int,
        also: Callable[[sqlite3.Connection, int], None] = lambda database, count: None,
    ) -> None:
        with self._ledger.changing(self.name) as (database, record):
            if record.barred:
                raise Refused(f"this certificate is barred ({record.barred}); ask the operator")
            used = getattr(record, column)
            if budget and used + count > budget:
                raise Refused(f"the budget of this certificate is used up: {used} of {budget} {what}; ask the operator")
            also(database, count)
            database.execute(f"UPDATE clients SET {column} = {column} + ? WHERE name = ?", (count, self.name))
        self._given[what] += count
