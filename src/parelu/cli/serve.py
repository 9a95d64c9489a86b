"""The command `serve`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from parelu.cli.client import LEDGER
from parelu.cli.output import duration_of
from parelu.cli.own import Taken
from parelu.errors import UserError

if TYPE_CHECKING:
    from parelu.api import Candidates, Server, Setting

    ReluName = OfflineName = RevealName = TruncationName = str

MOST_STOCK, MOST_CLIENTS, MOST_PROCESSES = 10_000, 1_000, 64


def resolve() -> None:
    """Make the types that are read off a registry, which costs a second: what an option may be."""
    from parelu import client

    names = {"ReluName": client.relus(), "OfflineName": client.modes(), "RevealName": client.REVEALS}
    names["TruncationName"] = client.TRUNCATIONS
    globals().update({name: Literal[tuple(known)] for name, known in names.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Taken):
    """How one model is served."""

    input: str | None = None
    """of a network's name: channels x height x width; left out, the data set's own or a file's"""
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
    budget: int | None = None
    """inferences of each client, by the name in its certificate, and the offline phases that they need; 0: no limit;
    left out, 10000 where what is revealed is dithered, else 300"""
    ledger: Path | None = None
    """the file that counts them, for several servers of this machine; left out, CANDIDATE/clients.sqlite"""
    audit: float = 0.1
    """the share of offline phases that are opened and checked; who is caught is barred (parelu clients)"""

    def setting(self, candidate: str) -> Setting:
        """Of a candidate's folder, or the name of a network with weights, which is taken into a run first."""
        from parelu import api

        if not 0 <= self.stock <= MOST_STOCK:
            raise UserError(f"give --stock from 0 to {MOST_STOCK}")
        folder = Path(candidate)
        if not (folder / "candidate.json").exists() and not folder.is_dir():
            folder = self.take(candidate, self.input) or folder
        options = api.ServedOptions(
            ahead=self.stock,
            stock=self.stock_dir,
            budget=self.budget,
            ledger=self.ledger or folder / LEDGER,
            audit=self.audit,
        )
        return api.Setting(
            folder=folder,
            relu=self.relu,
            offline=self.offline,
            reveal=self.reveal,
            step=self.step,
            truncation=self.truncation,
            data_folder=self.data_folder,
            calibrate=self.calibrate,
            options=options,
        )


@dataclasses.dataclass(frozen=True)
class Serve(Model):
    """Serve a candidate, or any trained network, to clients that keep their images secret.

    parelu certs certs && parelu serve runs/quickstart/candidates/teacher --port 7000 --tls certs

    parelu serve runs/quickstart/candidates/teacher --tls certs --stock 50 --stock-dir stock --processes 2

    parelu serve net.py:build --weights net.safetensors --data digits

    parelu serve --config serve.yaml
    """

    candidate: tyro.conf.Positional[str] = ""
    """the candidate's folder; or the name of a network with --weights and --data"""
    config: Path | None = None
    """a YAML file that has all options, by the names that they have here, and `models`: name → candidate and options of
    each, for several on one port"""
    port: int = 7000
    host: str = "127.0.0.1"
    """the address to listen on; 0.0.0.0 for all of IPv4, :: for all"""
    tls: Path | None = None
    """folder with ca.pem, server.pem and server.key; needed unless the address is this machine's own"""
    allow: Path | None = None
    """a YAML file with the clients that may be served, and their quotas; left out, all with a certificate"""
    clients: int = 16
    """served at once, by each process"""
    wait: str = "60s"
    """what a client waits at most for its turn: 60s, 5m; 0: one too many is refused"""
    processes: int = 1
    """that share the port; a client is served by one"""
    drain: str = "30s"
    """what clients that are served have to end when the server is stopped: 30s, 2m"""
    metrics_port: int | None = None
    """of /healthz, /readyz and /metrics, for Prometheus; left out, nowhere"""
    metrics_host: str = "127.0.0.1"
    """the address that they are at"""
    log_format: Literal["text", "json"] = "text"
    """a line for each event, on standard error"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug: also who connects and says nothing"""

    def __call__(self) -> None:
        """Exits with 1 where clients were cut."""
        from parelu import api

        serve = self.configured()[0]
        status = api.serve_until_stopped(
            self.deployment,
            (serve.host.strip("[]"), serve.port),
            announce,
            processes=serve.processes,
            drain=duration_of("--drain", serve.drain),
            metrics=None if serve.metrics_port is None else (serve.metrics_host.strip("[]"), serve.metrics_port),
            log=(serve.log_format, serve.log_level),
        )
        if status:
            sys.exit(status)

    def configured(self) -> tuple[Serve, dict[str, Entry]]:
        """(the options, name → model), of the file as it is now; raises UserError for what is wrong in it."""
        if self.config is None:
            self.check()
            if not self.candidate:
                raise UserError("give the folder of a candidate, or --config FILE")
            return self, {"": Entry(**{**_of_model(self), "candidate": self.candidate})}
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if given != ["config"]:
            raise UserError(f"--config has all options: write {', '.join(n for n in given if n != 'config')} into it")
        return _read(self.config)

    def check(self) -> None:
        """Raises UserError for a number that cannot be."""
        is_possible = 1 <= self.clients <= MOST_CLIENTS and 1 <= self.processes <= MOST_PROCESSES
        if not (is_possible and 0 <= self.port <= 65535):
            raise UserError(
                f"give --clients from 1 to {MOST_CLIENTS}, --port from 0 to 65535, "
                f"--processes from 1 to {MOST_PROCESSES}"
            )
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise UserError("give --metrics-port from 0 to 65535")
        duration_of("--drain", self.drain)
        duration_of("--wait", self.wait)

    def deployment(self) -> Candidates:
        """What is to be served, as it is on disk now."""
        from parelu import api

        serve, entries = self.configured()
        options = api.ServerOptions(clients=serve.clients, wait=duration_of("--wait", serve.wait))
        settings = {name: entry.setting(entry.candidate) for name, entry in entries.items()}
        return api.Candidates(serve.tls, options, serve.allow, settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry(Model):
    """One of the `models` of a file."""

    candidate: str


@dataclasses.dataclass(frozen=True)
class _Several:
    models: dict | None = None


def _of_model(options: Model) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(Model)}


def _read(path: Path) -> tuple[Serve, dict[str, Entry]]:
    from parelu import api

    content = api.read_mapping(path)
    try:
        given = _values(api.checked_mapping(content, Serve, _Several))
        models = given.pop("models", None)
        if "config" in given:
            raise UserError("config is this file: leave it out")
        serve = Serve(**given)
        serve.check()
        if (models is None) == (not serve.candidate):
            raise UserError("give one of candidate, and models, a mapping of names to models")
        if models is None:
            return serve, {"": Entry(**{**_of_model(serve), "candidate": serve.candidate})}
        return serve, {name: _entry(serve, name, entry) for name, entry in models.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _entry(serve: Serve, name: object, content: object) -> Entry:
    """Its own options, else those of the file."""
    from parelu import api

    api.check_model_name(name)
    if not isinstance(content, dict):
        raise UserError(f"models.{name} is {content!r}; it should be a mapping such as {{candidate: FOLDER}}")
    given = _values(api.checked_mapping(content, Entry, key=f"models.{name}."))
    return Entry(**{**_of_model(serve), **given})


def _values(content: dict[str, Any]) -> dict[str, Any]:
    """As the options have them, of what a file says: paths, and tuples."""
    kinds = {field.name: str(field.type) for kind in (Serve, Entry) for field in dataclasses.fields(kind)}
    taken = {}
    for name, value in content.items():
        kind = kinds.get(name, "")
        taken[name] = (
            Path(value) if kind.startswith("Path") and value is not None
            else tuple(value) if isinstance(value, list) else value
        )  # fmt: skip
    return taken


def announce(server: Server) -> None:
    """What an operator publishes and should know."""
    from parelu.report.private import hints_text

    for name, served in server.models.items():
        terms, budget = served.model.terms, f"{served.budget:,} inferences" if served.budget else "no budget"
        which = f"model {name}: " if name else ""
        server.log.info("%spin %s: publish it, clients check it (--pin)", which, served.offer.pin)
        if served.offer.hints:
            server.log.info(hints_text(served.offer.hints, served.mode.sizes(served.model)))
        server.log.info("%s ReLUs; %s", f"{terms.program.relus:,}", served.mode.trust(terms.relu))
        server.log.info("reveals %s; %s for each certificate", served.offer.reveal, budget)
        local = f"{terms.truncated_locally:,}"
        server.log.info("%s truncation: %s values are truncated locally", terms.truncation, local)
    server.log.info("listening on %s%s", server.address, "" if server.is_encrypted else ", without TLS")


COMMANDS: dict[str, type[Any]] = {"serve": Serve}
