"""The commands of a deployed pair: serve, infer, prepare, clients, certs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from parelu.cli.output import say
from parelu.cli.own import Taken
from parelu.errors import NoResult, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from parelu.api import Client

    ReluName = OfflineName = RevealName = TruncationName = str

A_CONNECTION = 4  # inferences that `parelu prepare` makes before it reports and connects again
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LEDGER = "clients.sqlite"


def resolve() -> None:
    """Make the types that are read off a registry, which costs a second: what an option may be."""
    from parelu import api

    names = {"ReluName": api.relus(), "OfflineName": api.modes(), "RevealName": api.REVEALS}
    names["TruncationName"] = api.TRUNCATIONS
    globals().update({name: Literal[tuple(known)] for name, known in names.items()})


@dataclasses.dataclass(frozen=True)
class Serve(Taken):
    """Serve a candidate, or any trained network, to clients that keep their images secret.

    parelu certs certs && parelu serve runs/quickstart/candidates/teacher --port 7000 --tls certs

    parelu serve runs/quickstart/candidates/teacher --tls certs --stock 50 --stock-dir stock --processes 2

    parelu serve net.py:build --weights net.safetensors --data digits
    """

    candidate: tyro.conf.Positional[str]
    """the candidate's folder; or the name of a network with --weights and --data"""
    input: str | None = None
    """of a network's name: channels x height x width; left out, the data set's own or a file's"""
    port: int = 7000
    host: str = "127.0.0.1"
    """the address to listen on; 0.0.0.0 for all"""
    tls: Path | None = None
    """folder with ca.pem, server.pem and server.key; needed unless the address is this machine's own"""
    reveal: RevealName = "label"
    """what a client learns; label: the arg-max; logits: in steps; exact: all bits of the logits, for your own data.
    Labels and steps are dithered"""
    step: float | None = None
    """of labels and logits: a label whose margin exceeds it does not change; left out, 1/64 to 1/32 of the largest
    logit; 0: labels without a dither"""
    relu: ReluName = "sign"
    """as bench has them; fss without a dealer up to m = 16 bits"""
    offline: OfflineName = "hints"
    """hints: no third party; made at the first start, kept beside the candidate, sent once to each client; seal: no
    third party and nothing once, slower; dealer: for development, no privacy against this process"""
    truncation: TruncationName = "local"
    """as bench has them; exact keeps from clients what local truncation tells of the weights"""
    stock: int = 0
    """inferences whose offline material is prepared ahead; with --stock-dir, for each client (parelu prepare)"""
    stock_dir: Path | None = None
    """where material that clients prepare is kept, encrypted; its key is DIR.key"""
    clients: int = 16
    """served at once, by each process"""
    processes: int = 1
    """that share the port; a client is served by one"""
    budget: int | None = None
    """inferences of each client, by the name in its certificate, and the offline phases that they need; 0: no limit;
    left out, 10000 where what is revealed is dithered, else 300"""
    ledger: Path | None = None
    """the file that counts them, for several servers of this machine; left out, CANDIDATE/clients.sqlite"""
    audit: float = 0.1
    """the share of offline phases that are opened and checked; who is caught is barred (parelu clients)"""

    def __call__(self) -> None:
        if not (0 <= self.stock <= 10_000 and 1 <= self.clients <= 1_000 and 0 <= self.port <= 65535):
            raise UserError("give --stock from 0 to 10000, --clients from 1 to 1000, --port from 0 to 65535")
        if not 1 <= self.processes <= 64 or (self.processes > 1 and not self.port):
            raise UserError("give --processes from 1 to 64, and with more than one a --port of your own")
        folder = Path(self.candidate)
        if not (folder / "candidate.json").exists() and not folder.is_dir():
            folder = self.take(self.candidate, self.input) or folder
        dataclasses.replace(self, candidate=str(folder))._serve(others=self.processes - 1)

    def _serve_beside(self) -> None:
        """Serve in a process that was started by another, until that ends, however it does."""
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            dataclasses.replace(self, calibrate=None)._serve(others=-1)

    def _serve(self, others: int) -> None:
        """Serve in this process, and in so many others; less than 0 for one of these."""
        from parelu import api
        from parelu.report.private import hints_text

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        folder = Path(self.candidate)
        server = api.server_of(
            folder,
            (self.host.strip("[]"), self.port),
            self.tls,
            api.ServerOptions(
                ahead=self.stock,
                stock=self.stock_dir,
                clients=self.clients,
                shared=self.processes > 1,
                budget=self.budget,
                ledger=self.ledger or folder / LEDGER,
                audit=self.audit,
            ),
            relu=self.relu,
            offline=self.offline,
            reveal=self.reveal,
            step=self.step,
            truncation=self.truncation,
            data_folder=self.data_folder,
            calibrate=self.calibrate,
            log=say,
        )
        spawn = multiprocessing.get_context("spawn")
        started = [spawn.Process(target=self._serve_beside, daemon=True) for _ in range(others)]
        for process in started:
            process.start()
        if others >= 0:
            terms, budget = server.model.terms, f"{server.budget:,} inferences" if server.budget else "no budget"
            say(f"pin {server.offer.pin}: publish it, clients check it (--pin)")
            if server.offer.hints:
                say(hints_text(server.offer.hints, server.mode.sizes(server.model)))
            say(f"{terms.program.relus:,} ReLUs; {server.mode.trust(terms.relu)}")
            say(f"reveals {server.offer.reveal}; {budget} for each certificate")
            say(f"{terms.truncation} truncation: {terms.truncated_locally:,} values are truncated locally")
            say(f"listening on {server.address}" + ("" if self.tls else ", without TLS"))
        try:
            server.run()
        except KeyboardInterrupt:
            if others >= 0:
                say("parelu: stopping")
        finally:
            for process in started:
                process.terminate()
            server.close()
            for process in started:
                process.join()


def _stop_with_parent() -> None:
    """A parent that is killed can stop nobody, and a server left behind would go on answering at its port."""
    parent = multiprocessing.parent_process()
    assert parent, "of a process that was started by another"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


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
    json: bool = False
    """print JSON: a row for each image"""

    def __call__(self) -> None:
        if not self.images:
            raise UserError("no image given; name one or more image files")
        from parelu import api

        with client_of(self, len(self.images)) as client:
            images = [api.read_image(path, client.image_shape, client.middle) for path in self.images]
            ready = [client.fit(image) for image in images]
            started = time.perf_counter()
            missing = max(0, len(ready) - client.session.in_stock)
            prepared = min(missing, client.session.terms.most_prepared)
            if prepared:
                client.prepare(prepared)
            offline = time.perf_counter() - started
            rows, refused = self._rows(client, ready)
        if self.json:
            print(json.dumps(rows, indent=1))
        else:
            for row in rows:
                top = "" if row["logits"] is None else f"   logit {max(row['logits']):.3f}"
                print(f"{row['image']}: class {row['label']}{top}   {1000 * row['seconds']:.0f} ms online")
            trust = client.session.mode.trust(client.session.terms.relu)
            say(f"{prepared} prepared in {offline:.2f} s; {trust}")
        if refused:
            raise refused[0]

    def _rows(self, client: Any, images: list[Tensor]) -> tuple[list[dict[str, Any]], list[Exception]]:
        """Of each image a row, or why it has no answer. All are asked for: the server would see where that ends."""
        rows, refused = [], []
        for path, image in zip(self.images, images, strict=True):
            try:
                rows.append(self._row(client, path, image))
            except NoResult as error:
                refused.append(NoResult(f"{path}: {error}"))
        return rows, refused

    def _row(self, client: Any, path: Path, image: Tensor) -> dict[str, Any]:
        started = time.perf_counter()
        (result,) = client.predict(image)
        seconds = time.perf_counter() - started
        is_label = result.ndim == 0
        return {
            "image": str(path),
            "label": int(result if is_label else result.argmax()),
            "logits": None if is_label else result.tolist(),
            "seconds": seconds,
        }


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

    def __call__(self) -> None:
        if not (1 <= self.count <= 10_000 and 1 <= self.jobs <= 64):
            raise UserError("give a count from 1 to 10000 and --jobs from 1 to 64")
        from parelu import api
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
        first = self._make(1) if missing else 0  # with it come the hints, once for all processes
        with api.bar(f"{missing} inferences", missing) as progress:
            progress(first)
            self._fill(missing - first, progress)
        say(f"{self.count} in {self.stock_dir}, {missing} made in {duration(time.perf_counter() - started)}; {trust}")

    def _fill(self, missing: int, progress: Callable[[int], None]) -> None:
        shares = [min(A_CONNECTION, missing - first) for first in range(0, missing, A_CONNECTION)]
        with contextlib.ExitStack() as stack:
            spread = map
            if self.jobs > 1:
                context = multiprocessing.get_context("spawn")
                spread = stack.enter_context(ProcessPoolExecutor(self.jobs, context)).map
            for done in spread(self._make, shares):
                progress(done)

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
        from parelu import api
        from parelu.report.private import clients_text

        file = self.candidate / LEDGER if self.candidate.is_dir() else self.candidate
        if not file.is_file():
            raise UserError(f"{file}: nobody has been served from there")
        ledger = api.Ledger(file)
        if self.forget is not None and not ledger.forget(self.forget):
            raise UserError(f"{file} has no client {self.forget!r}; `parelu clients {self.candidate}` lists them")
        rows = ledger.records()
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) if self.json else clients_text(rows))


@dataclasses.dataclass(frozen=True)
class Certs:
    """Make certificates for tests: an authority, a server and a client that trust each other.

    parelu certs certs --hosts localhost 127.0.0.1
    """

    folder: tyro.conf.Positional[Path]
    hosts: tuple[str, ...] = LOOPBACK
    """names and addresses that clients reach the server by"""

    def __call__(self) -> None:
        from parelu import api

        api.make_certificates(self.folder, self.hosts)
        say(f"{self.folder}: ca.pem, server.pem and .key, client.pem and .key; a party needs ca.pem and its own two")


@contextlib.contextmanager
def client_of(command: Infer | Prepare, queries: int) -> Iterator[Client]:
    """A connection to the command's HOST:PORT, for so many inferences."""
    from parelu import api

    host, port = parse_address(command.address)
    folder = api.cache_folder() / "hints"
    with api.share("hints from the server, once", f", for {folder}") as progress:
        keep = api.Keep(queries, folder, progress=progress, notice=say, loaded=loaded_hints())
        with api.Client(
            host,
            port,
            command.tls,
            command.pin,
            offline=command.offline,
            relu=command.relu,
            reveal=command.reveal,
            truncation=command.truncation,
            stock=command.stock_dir,
            keep=keep,
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


COMMANDS: dict[str, type[Any]] = {
    "serve": Serve,
    "infer": Infer,
    "prepare": Prepare,
    "clients": Clients,
    "certs": Certs,
}
