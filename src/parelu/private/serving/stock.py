"""Offline material on disk: encrypted, taken once, and dropped where the other party has lost its half.

A client and a server that prepare inferences ahead put the halves into stocks, under one random name. Whoever uses one
first removes it from the disk, and only then from its memory: a killed party has no half of it left. When they
connect the client says which names it has, and uses those alone that the server has too. While nobody fills the
client's stock, each also drops what the other lacks. So a party that is restored from an old copy finds that the other
one knows what was spent. A piece is used when the server has said that it took its half.

FOLDER.key beside the folder has the key, so that a copy of the folder alone is of no use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from parelu.errors import UserError
from parelu.network.storage import check_secret, drop_abandoned, write_atomic
from parelu.private.crypto.prg import derive

NAME_BYTES = 16
NONCE_BYTES = 12
KEY_BYTES = 32
STOCKS = 16  # of one client's name
UNUSED, IDLE = 30 * 86400.0, 3600.0  # seconds after which a stock makes room for another, and an empty one


def key_of(folder: Path) -> bytes:
    """The key beside a folder, made where there is none; raises UserError where it is not a key."""
    path = folder.with_name(folder.name + ".key")
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # of two processes that make one, one wins
            os.link(fresh, path)
        fresh.unlink()
    drop_abandoned(path.parent, f"{path.name}.*")
    check_secret(path)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise UserError(f"{path} is not a key of a stock; remove it and {folder}, and prepare again")
    return key


class Stock:
    """One party's halves, a file each.

    use: what the material is for; part of what is authenticated, so that no other material can take its place.
    """

    def __init__(self, folder: Path, key: bytes, use: str) -> None:
        self.folder, self._use = folder, use.encode()
        drop_abandoned(folder, f".{'?' * 2 * NAME_BYTES}.*")
        self._cipher = AESGCM(derive(key, "stock", use) + derive(key, "stock, second half", use))

    def names(self) -> list[bytes]:
        """Of what is there, the oldest first."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        found = [path for path in there if len(path.name) == 2 * NAME_BYTES and _is_hex(path.name)]
        return [bytes.fromhex(path.name) for path in sorted(found, key=_age)]

    def put(self, name: bytes, content: bytes) -> None:
        """Raises OSError where the disk is full: then nothing is left behind."""
        nonce = os.urandom(NONCE_BYTES)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(name), nonce + self._cipher.encrypt(nonce, content, self._use + name))
        self._sync()

    def take(self, name: bytes) -> bytes:
        """The content, gone from the disk before it is returned; raises KeyError where it is not there, or damaged."""
        return self.decrypt(name, self.remove(name))

    def remove(self, name: bytes) -> bytes:
        """The encrypted content, gone from the disk before it is returned; raises KeyError where it is not there."""
        try:
            body = self._path(name).read_bytes()
            self._path(name).unlink()  # of two that race, one fails here
        except FileNotFoundError:
            raise KeyError(name.hex()) from None
        self._sync()
        return body

    def decrypt(self, name: bytes, body: bytes) -> bytes:
        """What `remove` returned; raises KeyError where it is damaged."""
        try:
            return self._cipher.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], self._use + name)
        except (InvalidTag, ValueError):
            raise KeyError(f"{name.hex()} is damaged") from None

    def drop_others(self, names: Collection[bytes]) -> None:
        """Leave these alone in the stock."""
        others = set(self.names()) - set(names)
        for name in others:
            self._path(name).unlink(missing_ok=True)
        if others:
            self._sync()

    def _path(self, name: bytes) -> Path:
        return self.folder / name.hex()

    def _sync(self) -> None:
        """The folder's entries, onto the disk."""
        directory = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class ClientStocks:
    """A client's folder: an identity, and a `Stock` for each server and program that it was used with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._key = folder, key_of(folder)
        self.identity = derive(self._key, "identity").hex()

    def of(self, use: str) -> Stock:
        return Stock(self.folder / hashlib.sha256(use.encode()).hexdigest()[:32], self._key, f"client {use}")

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """While material is being made: nobody may compare stocks."""
        with (self.folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def comparing(self) -> Iterator[bool]:
        """Whether the stocks may be compared now, as nobody is making material."""
        with (self.folder / ".lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


class ServerStocks:
    """The server's folder: a `Stock` for each client and client's stock. size: inferences that each may hold."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self._key = folder, size, key_of(folder)
        self.identity = derive(self._key, "server's identity").hex()

    @property
    def held(self) -> int:
        """Inferences whose halves are there, of all clients."""
        return sum(len(path.name) == 2 * NAME_BYTES and _is_hex(path.name) for path in self.folder.glob("*/*/*"))

    def of(self, client: str, identity: str, use: str) -> Stock | None:
        """client: its name; identity: of its stock. None where so many other stocks of this client are in use."""
        own = self.folder / hashlib.sha256(client.encode()).hexdigest()[:32]
        folder = own / hashlib.sha256(f"{identity} {use}".encode()).hexdigest()[:32]
        if not folder.exists() and not _has_room(own):
            return None
        return Stock(folder, self._key, f"server {client} {identity} {use}")


def _has_room(own: Path) -> bool:
    """For one more stock of a client; those that are empty, or were not used for long, make it."""
    stocks = [path for path in own.iterdir() if path.is_dir()] if own.is_dir() else []
    now = time.time_ns()
    idle = [path for path in stocks if now - _age(path) > 1e9 * (UNUSED if any(path.iterdir()) else IDLE)]
    for path in sorted(idle, key=_age)[: max(0, len(stocks) - STOCKS + 1)]:
        shutil.rmtree(path, ignore_errors=True)
    return sum(path.is_dir() for path in stocks) < STOCKS


def _age(path: Path) -> int:
    """When it was changed, in nanoseconds; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in text)
