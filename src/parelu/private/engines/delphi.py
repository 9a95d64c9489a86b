"""The `delphi` engine as it is measured: two processes, the deployed server's and client's code.

Every byte is counted off the wire. Seconds are the client's wall time from its first byte to its last. A round is one
message there and one back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network import storage
from parelu.private.engines.base import Engine, Measurement, Options
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Activation
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model, check_truncation
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.rows import LINEAR, RELU, Cost, Costs, LayerCost, Part
from parelu.private.serving.client import Client
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.transport.link import link_of
from parelu.private.transport.traffic import Traffic

PHASES = ("offline", "online")
CLOCKS = {"offline": "client", "online": "server"}  # by whose clock the parts of a phase are told apart
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # one core a party
TIMEOUT = 600.0  # seconds of silence


class Delphi(Engine):
    name = "delphi"

    def check(self, options: Options) -> None:
        choices = (
            ("ReLU protocol", options.relu, relus()),
            ("offline mode", options.offline, modes()),
        )
        for what, name, known in choices:
            if name not in known:
                raise UserError(f"unknown {what} {name!r}; known are {', '.join(known)}")
        link_of(options.link)
        if options.batch < 1:
            raise UserError(f"a batch of {options.batch} images; it should be 1 or more")
        check_truncation(options.truncation, relus()[options.relu])

    def described(self, options: Options) -> dict[str, str]:
        mode = modes()[options.offline]
        return {
            "relu": options.relu,
            "offline_mode": options.offline,
            "threat_model": mode.trust(relus()[options.relu]),
            "truncation": options.truncation,
        }

    def run(self, lowered: Lowered, images: Tensor, options: Options) -> Measurement:
        modes()[options.offline].check_terms(lowered.program, relus()[options.relu])
        with tempfile.TemporaryDirectory(prefix="parelu-") as name:
            folder = Path(name)
            lowered.save(folder)
            warm = torch.cat([images[: options.batch], images])
            storage.write(folder, "images", {"batch": options.batch}, {"images": warm})
            server, client = _run_parties(folder, options)
        runs = client["runs"][1:], server["runs"][1:]
        # A dealer makes all of a query's material at once.
        clocks = {"online": "server"} if modes()[options.offline].third_party else CLOCKS
        costs = Costs(
            offline=_cost(("offline",), *runs),
            online=_cost(("online",), *runs),
            total=_cost(PHASES, *runs),
            setup=_cost(("setup",), client["runs"][:1], server["runs"][:1]),
            hints_bytes=_hints_bytes(client["runs"][0]),
            peak_mb=client["peak_mb"] + server["peak_mb"],
            peak_mb_client=client["peak_mb"],
            peak_mb_server=server["peak_mb"],
            layers=_layers(*runs),
            parts=_parts(lowered.program, clocks, *runs),
        )
        return Measurement(np.array(client["logits"])[len(warm) - len(images) :], costs)


def _run_parties(folder: Path, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `_server` and `_client` find, each in a process of its own."""
    asked = json.dumps(dataclasses.asdict(options))
    with _party("server", folder, asked) as server:
        assert server.stdout is not None
        first = server.stdout.readline()
        if not first:
            raise UserError(f"the server's process failed: {_last_line(server)}")
        with _party("client", folder, asked, json.loads(first)) as client:
            out, error = client.communicate()
        rest = server.stdout.readline()
        if not rest:
            raise UserError(f"the server's process failed: {_last_line(server)}")
        if client.returncode:
            reasons = [(error.strip() or "killed").splitlines()[-1], *json.loads(rest)["log"]]
            raise UserError(f"private inference failed: {'; '.join(reasons)}")
        return json.loads(rest), json.loads(out)


@contextlib.contextmanager
def _party(*arguments: str | int | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "parelu.private.engines.delphi", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _last_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    last = (process.stderr.read().strip() or "killed").splitlines()[-1]
    return last.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")


Runs = Sequence[Sequence[Mapping[str, Any]]]  # for each inference, the traffic of each phase and layer


def _cost(phases: Sequence[str], client: Runs, server: Runs) -> Cost:
    """Medians over the inferences of the sums over the layers of these phases."""

    def total(runs: Runs, what: str) -> float:
        return statistics.median(sum(t[what] for t in run if t["phase"] in phases) for run in runs)

    return Cost(
        seconds=total(client, "seconds"),
        sent={"client": total(client, "received"), "server": total(client, "sent")},
        rounds=total(client, "rounds"),
        cpu={"client": total(client, "cpu"), "server": total(server, "cpu")},
    )


def _parts(program: Program, clocks: Mapping[str, str], client: Runs, server: Runs) -> dict[str, dict[str, Part]]:
    """Of each phase the activations, by the clock of this party, and the rest; nothing where a layer is both.

    Online the client waits in an activation for the linear layers before it; the server does not: there an activation
    lasts from its message to the client's answer.
    """
    named = list(zip(program.ops, program.layers, strict=True))
    activations = {layer for op, layer in named if isinstance(op, Activation)}
    if any(op.is_secret and layer in activations for op, layer in named):
        return {}

    def split(phase: str, clock: Runs, what: str) -> dict[str, float]:
        whole = [sum(t[what] for t in run if t["phase"] == phase) for run in client]
        within = [
            sum(t[what] for t in run if (t["phase"], t["layer"] in activations) == (phase, True)) for run in clock
        ]
        within = [min(of_whole) for of_whole in zip(within, whole, strict=True)]  # two clocks, on a busy machine
        rest = [all_ - part for all_, part in zip(whole, within, strict=True)]
        return {LINEAR: statistics.median(rest), RELU: statistics.median(within)}

    found = {}
    for phase, party in clocks.items():
        seconds = split(phase, client if party == "client" else server, "seconds")
        received, sent = split(phase, client, "received"), split(phase, client, "sent")
        found[phase] = {
            part: Part(seconds[part], {"client": received[part], "server": sent[part]}) for part in (LINEAR, RELU)
        }
    return found


def _hints_bytes(first: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the setup, what the client keeps; None where the offline mode has no hints."""
    return sum(t["received"] for t in first if (t["phase"], t["layer"]) == ("setup", "hints")) or None


def _layers(client: Runs, server: Runs) -> tuple[LayerCost, ...]:
    """Of each phase and layer, the medians over the inferences."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for party, runs in (("client", client), ("server", server)):
        for entry in itertools.chain(*runs):
            layer = found.setdefault((entry["phase"], entry["layer"]), {})
            layer.setdefault(f"cpu_{party}", []).append(entry["cpu"])
            layer.setdefault(f"seconds_{party}", []).append(entry["seconds"])
            if party == "client":
                layer.setdefault("bytes_to_client", []).append(entry["received"])
                layer.setdefault("bytes_to_server", []).append(entry["sent"])
    return tuple(
        LayerCost(phase, layer, **{name: statistics.median(values) for name, values in lists.items()})
        for (phase, layer), lists in found.items()
        if phase in PHASES
    )


def _entries(traffic: Mapping[tuple[str, str], Traffic]) -> list[dict[str, Any]]:
    return [
        {
            "phase": phase,
            "layer": layer,
            "sent": t.sent,
            "received": t.received,
            "seconds": t.seconds,
            "cpu": t.cpu,
            "rounds": t.turns / 2,
        }
        for (phase, layer), t in traffic.items()
    ]


def peak_mb() -> float:
    """Peak resident memory of this process in MiB; not its parent's, which getrusage would report after a fork."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _server(folder: Path, options: Options, listening: Callable[[int], None]) -> dict[str, Any]:
    """Serve one connection; `listening` is told the port."""
    mode = modes()[options.offline]
    model = Model(Lowered.load(folder), relus()[options.relu], Exact(), options.truncation)
    mode.make(model, Keep(folder=folder / "hints of the server"))
    runs: list[list[dict[str, Any]]] = []
    failures: list[str] = []
    server = Server(
        model,
        mode,
        ("127.0.0.1", 0),
        options=ServerOptions(link=link_of(options.link), timeout=TIMEOUT, budget=0, audit=0.0),
        log=failures.append,
        finished=lambda traffic: runs.append(_entries(traffic)),
    )
    with contextlib.closing(server):
        listening(server.port)
        server.run(connections=1)
    return {"runs": runs, "peak_mb": peak_mb(), "log": failures}


def _client(folder: Path, options: Options, port: int) -> dict[str, Any]:
    """Ask for each query of the images in the folder."""
    header, tensors = storage.read(folder, "images")
    runs, logits = [], []
    keep, link = Keep(options.queries, folder / "hints"), link_of(options.link)
    offline, relu = options.offline, options.relu
    with Client("127.0.0.1", port, offline=offline, relu=relu, keep=keep, link=link, timeout=TIMEOUT) as client:
        for images in tensors["images"].split(header["batch"]):
            client.prepare(len(images))
            logits += client.predict(images, len(images)).tolist()
            runs.append(_entries(client.session.channel.traffic))
            client.session.channel.traffic.clear()
    return {"runs": runs, "logits": logits, "peak_mb": peak_mb()}


def _main(role: str, folder: str, asked: str, *port: str) -> None:
    def tell(value: Any) -> None:
        print(json.dumps(value), flush=True)

    torch.set_num_threads(1)
    options = Options(**json.loads(asked))
    tell(_client(Path(folder), options, int(*port)) if role == "client" else _server(Path(folder), options, tell))


if __name__ == "__main__":
    _main(*sys.argv[1:])
