"""The two processes of a measurement: the deployed server's and client's code, for one program after another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from parelu.errors import UserError
from parelu.network import storage
from parelu.private.crypto.kernels import kernels
from parelu.private.engines.base import Options
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.serving.client import Client
from parelu.private.serving.log import telling
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.serving.watcher import Traffics, Watcher
from parelu.private.transport.link import link_of
from parelu.private.transport.traffic import Traffic

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # one core a party
TIMEOUT = 600.0  # seconds of silence
Process = subprocess.Popen[str]
Found = dict[str, Any]  # what a party says of a measurement, JSON


class Parties:
    """Two processes, which start with the first measurement and end with the block."""

    def __init__(self) -> None:
        self._processes: tuple[Process, Process] | None = None

    def __enter__(self) -> Parties:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes or ():
            process.kill()
            process.communicate()
        self._processes = None

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the processes that there are now."""
        return tuple(process.pid for process in self._processes or ())

    def run(self, folder: Path, options: Options) -> tuple[Found, Found]:
        """What `_server` and `_client` find of the program and the images in a folder.

        Raises UserError where a party fails; the next measurement has new processes.
        """
        try:
            return self._run({"folder": str(folder), "options": dataclasses.asdict(options)})
        except BaseException:
            self.__exit__()
            raise

    def _run(self, job: Mapping[str, Any]) -> tuple[Found, Found]:
        self._processes = server, client = self._processes or (_process("server"), _process("client"))
        _ask(server, job)
        port = _told(server)
        if port is None:
            raise UserError(f"the server's process failed: {_last_line(server)}")
        _ask(client, {**job, "port": port})
        of_client = _told(client)
        of_server = _told(server)
        if of_server is None:
            raise UserError(f"the server's process failed: {_last_line(server)}")
        if of_client is None:
            raise UserError(f"private inference failed: {'; '.join([_last_line(client), *of_server['log']])}")
        return of_server, of_client


def _process(role: str) -> Process:
    command = [sys.executable, "-m", "parelu.private.engines.parties", role]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **ENVIRONMENT})


def _ask(process: Process, job: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it failed: what it says of that is read next
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()


def _told(process: Process) -> Any:
    """The next line of a process; None where it ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return json.loads(line) if line else None


def _last_line(process: Process) -> str:
    assert process.stderr is not None
    last = (process.stderr.read().strip() or "killed").splitlines()[-1]
    return last.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")


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


class _Runs(Watcher):
    """Keeps what passed in each query."""

    def __init__(self, runs: list[list[dict[str, Any]]]) -> None:
        self._runs = runs

    def passed(self, model: str, traffic: Traffics) -> None:
        if any(phase == "online" for phase, _ in traffic):
            self._runs.append(_entries(traffic))


def _server(folder: Path, options: Options, listening: Callable[[int], None]) -> Found:
    """Serve one connection; `listening` is told the port."""
    mode = modes()[options.offline]
    model = Model(Lowered.load(folder), relus()[options.relu], Exact(), options.truncation)
    mode.make(model, Keep(folder=folder / "hints of the server"))
    runs: list[list[dict[str, Any]]] = []
    failures: list[str] = []
    how = ServerOptions(link=link_of(options.link), timeout=TIMEOUT, budget=0, audit=0.0)
    server = Server(
        Served(model, mode, how), ("127.0.0.1", 0), options=how, log=telling(failures.append), watcher=_Runs(runs)
    )
    with contextlib.closing(server):
        listening(server.port)
        server.run(connections=1)
    return {"runs": runs, "peak_mb": peak_mb(), "log": failures}


def _client(folder: Path, options: Options, port: int) -> Found:
    """Ask for each query of the images in the folder."""
    header, tensors = storage.read(folder, "images")
    runs, logits = [], []
    keep, link = Keep(options.queries, folder / "hints"), link_of(options.link)
    offline, relu = options.offline, options.relu
    kernels.load()  # not while the set-up is timed
    with Client("127.0.0.1", port, offline=offline, relu=relu, keep=keep, link=link, timeout=TIMEOUT) as client:
        for images in tensors["images"].split(header["batch"]):
            client.prepare(len(images))
            logits += client.predict(images, len(images)).tolist()
            runs.append(_entries(client.session.channel.traffic))
            client.session.channel.traffic.clear()
    return {"runs": runs, "logits": logits, "peak_mb": peak_mb()}


def _main(role: str) -> None:
    def tell(value: Any) -> None:
        print(json.dumps(value), flush=True)

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        folder, options = Path(job["folder"]), Options(**job["options"])
        tell(_client(folder, options, job["port"]) if role == "client" else _server(folder, options, tell))


if __name__ == "__main__":
    _main(*sys.argv[1:])
