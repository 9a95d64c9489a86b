"""The commands of the client of a deployed pair, and what goes with it: infer, prepare, clients, certs.

None of them needs torch, nor imports it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from parelu.cli.output import say
from parelu.errors import NoResult, ProtocolError, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from parelu.client import Client

    Pixels = NDArray[np.uint8]

A_CONNECTION = 4  # inferences that `parelu prepare` makes before it reports and connects again
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LEDGER = "clients.sqlite"


def resolve() -> None:
    """No type of its options is read off a registry."""


@dataclasses.dataclass(frozen=True)
class Infer:
    """Classify images by a server that does not see them.

    parelu infer localhost:7000 shirt.png shoe.png --tls certs --pin 1f3a…

    parelu prepare localhost:7000 50 --stock-dir stock && parelu infer localhost:7000 shirt.png --stock-dir stock
    """

    address: tyro.conf.Positional[str]
    """HOST:PORT"""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files"""
    tls: Path | None = None
    """folder with ca.pem, client.pem and client.key"""
    pin: str | None = None
    """what the operator publishes: the server must have this program, these weights, and all that is named below"""
    stock_dir: Path | None = None
    """folder that `parelu prepare` filled; what is missing is prepared now"""
    relu: str | None = None
    """what the server must offer; left out, sign, which a server that deviates learns nothing by"""
    offline: str | None = None
    """what the server must offer; left out, any that trusts no third party"""
    reveal: str | None = None
    """what the server must offer; left out, the server chooses"""
    truncation: str | None = None
    """what the server must offer; left out, the server chooses"""
    model: str | None = None
    """which of the server's models, where it has several"""
    json: bool = False
    """print JSON: a row for each image"""

    def __call__(self) -> None:
        if not self.images:
            raise UserError("no image given; name one or more image files")
        with client_of(self, len(self.images)) as client:
            images = [client.read(path) for path in self.images]  # all of them, before any is asked for
            client.session.check_budget(len(images))
            rows: list[dict[str, Any]] = []
            try:
                self._ask(client, images, rows)
            except ProtocolError as error:
                raise type(error)(f"{error}; {len(rows)} of {len(images)} images have an answer") from error
            finally:
                if self.json:
                    print(json.dumps(rows, indent=1))
            offline = sum(row["offline_seconds"] for row in rows)
            trust = client.session.mode.trust(client.session.terms.relu)
        say(f"{sum(row['prepared'] for row in rows)} prepared in {offline:.2f} s; {trust}")

    def _ask(self, client: Client, images: list[Pixels], rows: list[dict[str, Any]]) -> None:
        """One after another, each printed when it is there; what has no answer is told when all were asked for.

        To stop there would tell a server that deviates what it has answered.
        """
        refused: list[NoResult] = []
        for path, image in zip(self.images, images, strict=True):
            try:
                rows.append(_row(client, path, image))
            except NoResult as error:
                refused.append(NoResult(f"{path}: {error}"))
            else:
                if not self.json:
                    print(_line(rows[-1]), flush=True)
        if refused:
            raise refused[0]


def _row(client: Client, path: Path, image: Pixels) -> dict[str, Any]:
    """Of one image; what is not in stock is prepared for it."""
    started = time.perf_counter()
    is_missing = not client.session.in_stock
    if is_missing:
        client.prepare()
    ready = time.perf_counter()
    (result,) = client.predict(image)
    is_label = result.ndim == 0
    return {
        "image": str(path),
        "label": int(result if is_label else result.argmax()),
        "logits": None if is_label else result.tolist(),
        "seconds": time.perf_counter() - ready,
        "prepared": int(is_missing),
        "offline_seconds": ready - started,
    }


def _line(row: dict[str, Any]) -> str:
    top = "" if row["logits"] is None else f"   logit {max(row['logits']):.3f}"
    return f"{row['image']}: class {row['label']}{top}   {1000 * row['seconds']:.0f} ms online"


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Run the offline phase of inferences ahead, into a stock on disk on both sides.

    parelu prepare localhost:7000 50 --stock-dir stock --tls certs --jobs 2
    """

    address: tyro.conf.Positional[str]
    """HOST:PORT of a server with --stock-dir"""
    count: tyro.conf.Positional[int]
    """inferences that the stock is to hold"""
    stock_dir: Path
    """this client's folder; its material is encrypted with DIR.key"""
    jobs: int = 1
    """processes, each with a connection"""
    tls: Path | None = None
    """folder with ca.pem, client.pem and client.key"""
    pin: str | None = None
    """what the operator publishes"""
    relu: str | None = None
    """what the server must offer; left out, sign, which a server that deviates learns nothing by"""
    offline: str | None = None
    """what the server must offer; left out, any that trusts no third party"""
    reveal: str | None = None
    """what the server must offer; left out, the server chooses"""
    truncation: str | None = None
    """what the server must offer; left out, the server chooses"""
    model: str | None = None
    """which of the server's models, where it has several"""

    def __call__(self) -> None:
        if not (1 <= self.count <= 10_000 and 1 <= self.jobs <= 64):
            raise UserError("give a count from 1 to 10000 and --jobs from 1 to 64")
        from parelu import client as verbs
        from parelu.report.private import duration

        with client_of(self, self.count) as client:
            kept, room, trust = (
                client.session.in_stock,
                client.session.room,
                client.session.mode.trust(client.session.terms.relu),
            )
        if self.count > room:
            raise UserError(
                f"the server keeps {room} inferences for a client; give {room} or fewer"
                if room
                else "the server keeps no stock; it needs --stock and --stock-dir"
            )
        missing = max(0, self.count - kept)
        started = time.perf_counter()
        made = 0
        with verbs.bar(f"{missing} inferences", missing) as progress:
            try:
                for done in self._shares(missing):
                    made += done
                    progress(done)
            except (ProtocolError, UserError) as error:
                raise type(error)(f"{error}; {made} of {missing} were made, and the same command goes on") from error
        say(f"{self.count} in {self.stock_dir}, {missing} made in {duration(time.perf_counter() - started)}; {trust}")

    def _shares(self, missing: int) -> Iterator[int]:
        """Make them, a few by each connection; gives the number of each, when they are in the stock."""
        if missing:
            yield self._make(1)  # with it come the hints, once for all processes
        shares = [min(A_CONNECTION, missing - first) for first in range(1, missing, A_CONNECTION)]
        with contextlib.ExitStack() as stack:
            spread = map
            if self.jobs > 1:
                context = multiprocessing.get_context("spawn")
                spread = stack.enter_context(ProcessPoolExecutor(self.jobs, context)).map
            yield from spread(self._make, shares)

    def _make(self, share: int) -> int:
        with client_of(self, self.count) as client:
            for _ in range(share):
                client.session.add_to_stock()
        return share


@dataclasses.dataclass(frozen=True)
class Clients:
    """What each client of a server has used, and whether it is barred.

    parelu clients runs/quickstart/candidates/teacher

    parelu clients runs/quickstart/candidates/teacher --forget "CN=Ada,O=Clinic; by CN=an authority"
    """

    candidate: tyro.conf.Positional[Path]
    """the served candidate's folder, or the server's --ledger file"""
    forget: str | None = None
    """a client's name as it is listed: it starts again with a full budget, and is not barred"""
    json: bool = False
    """print JSON: a row for each client"""

    def __call__(self) -> None:
        from parelu import client as verbs
        from parelu.report.private import clients_text

        file = self.candidate / LEDGER if self.candidate.is_dir() else self.candidate
        if not file.is_file():
            raise UserError(f"{file}: nobody has been served from there")
        ledger = verbs.Ledger(file)
        if self.forget is not None and not ledger.forget(self.forget):
            raise UserError(f"{file} has no client {self.forget!r}; `parelu clients {self.candidate}` lists them")
        rows = ledger.records()
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) if self.json else clients_text(rows))


@dataclasses.dataclass(frozen=True)
class Certs:
    """Make certificates for tests: an authority, a server and a client that trust each other.

    parelu certs certs --hosts localhost 127.0.0.1 --authority-key authority.key

    parelu certs ada --client Ada --authority-key authority.key     # one more client
    """

    folder: tyro.conf.Positional[Path]
    hosts: tuple[str, ...] = LOOPBACK
    """names and addresses that clients reach the server by"""
    authority_key: Path | None = None
    """a file that keeps the authority's key, to make more clients with; left out, the key is thrown away"""
    client: str | None = None
    """make one more client of this name, with --authority-key"""

    def __call__(self) -> None:
        from parelu import client as verbs

        if self.client is not None:
            if self.authority_key is None:
                raise UserError("--client needs --authority-key FILE, of the authority that is to name the client")
            subject = verbs.issue_client(self.folder, self.client, self.authority_key)
            say(f"{self.folder}: ca.pem, client.pem and .key of {subject}")
            return
        verbs.make_certificates(self.folder, self.hosts, self.authority_key)
        say(f"{self.folder}: ca.pem, server.pem and .key, client.pem and .key; a party needs ca.pem and its own two")


@contextlib.contextmanager
def client_of(command: Infer | Prepare, queries: int) -> Iterator[Client]:
    """A connection to the command's HOST:PORT, for so many inferences."""
    from parelu import client as verbs

    host, port = parse_address(command.address)
    folder = verbs.hints_folder()
    with verbs.share("hints from the server, once", f", for {folder or 'this command'}") as progress:
        keep = verbs.Keep(queries, folder, progress=progress, notice=say, loaded=loaded_hints())
        with verbs.Client(
            host,
            port,
            command.tls,
            command.pin,
            offline=command.offline,
            relu=command.relu,
            reveal=command.reveal,
            truncation=command.truncation,
            model=command.model,
            stock=command.stock_dir,
            keep=keep,
            waiting=lambda before: say(f"{command.address} is busy: {before} wait before this client"),
        ) as client:
            yield client


@functools.cache
def loaded_hints() -> dict[str, Any]:
    """What this process has in memory, for its next connections."""
    return {}


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) from "host:port" or "[::1]:port"."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UserError(f"address {text!r} is not HOST:PORT; write localhost:7000")
    return host.strip("[]"), int(port)


COMMANDS: dict[str, type[Any]] = {"infer": Infer, "prepare": Prepare, "clients": Clients, "certs": Certs}
