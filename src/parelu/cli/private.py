"""The command of the server of a deployed pair."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from parelu.cli.output import say
from parelu.cli.own import Taken
from parelu.errors import UserError

if TYPE_CHECKING:
    ReluName = OfflineName = RevealName = TruncationName = str

LEDGER = "clients.sqlite"


def resolve() -> None:
    """Make the types that are read off a registry, which costs a second: what an option may be."""
    from parelu import client

    names = {"ReluName": client.relus(), "OfflineName": client.modes(), "RevealName": client.REVEALS}
    names["TruncationName"] = client.TRUNCATIONS
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


COMMANDS: dict[str, type[Any]] = {"serve": Serve}
