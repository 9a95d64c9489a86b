"""How many inferences a second a server answers, and how long each takes, from 1 to 64 clients.

    python benchmarks/clients.py                                    with and without stocks, one process and two
    python benchmarks/clients.py --clients 16 --places 4            twelve wait, and are told their place

`parelu serve` of resnet10 m=4 at 1x8x8 with a tenth of its ReLUs, on this machine, without TLS unless --tls; every
client is a thread, eight of them a process. With stocks a client has filled its own before the clock runs; without,
each query makes its material. Each row: inferences a second of all clients, quantiles of a query's seconds, and the
longest wait for a turn. Everything shares this machine's cores: the figures are of server and clients together.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from parelu.network import storage
from parelu.network.spec import spec_of
from parelu.private.fresh import noise, untrained
from parelu.private.lowering.lower import lower
from parelu.private.offline.mode import DEFAULT, Keep, modes, ring_for
from parelu.private.serving.client import Client
from parelu.private.transport.tls import make_certificates
from parelu.runs.measurement import program_folder

INPUT, KEEP = (1, 8, 8), 0.1
TOGETHER = 8  # clients of a process


def candidate(folder: Path, offline: str) -> Path:
    """One that is ready to be served, calibrated on noise."""
    made = untrained(spec_of("resnet10 m=4", INPUT, 10), KEEP, seed=0)
    made.save(folder)
    digest, ring = storage.read_header(folder, "candidate")["tensors_sha256"], ring_for(offline)
    lowered = lower(made.network(), noise(64, INPUT, seed=0), made.preprocessing, ring=ring)
    lowered.save(program_folder(folder, ring), digest)
    return folder


@contextmanager
def serving(folder: Path, options: argparse.Namespace, processes: int, places: int, stock: int) -> Iterator[int]:
    """The port of `parelu serve` in processes of its own, which are all ready."""
    kept = ["--stock", str(stock), "--stock-dir", str(folder / "stock")] if stock else []
    tls = ["--tls", str(folder / "certs")] if options.tls else []
    command = [sys.executable, "-m", "parelu", "serve", str(folder / "candidate"), "--port", "0", "--budget", "0"]
    command += ["--processes", str(processes), "--clients", str(places), "--wait", "1h", "--offline", options.offline]
    command += ["--audit", "0", "--log-format", "json", *kept, *tls]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr
    lines = iter(server.stderr.readline, "")
    port, ready = 0, 1
    for line in lines:
        if line.startswith("{"):
            message = json.loads(line)["message"]
            ready += "is ready" in message
            port = int(message.split(",")[0].rpartition(":")[2]) if message.startswith("listening") else port
        if port and ready == processes:
            break
    threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()
    if not port:
        raise SystemExit("the server did not start")
    try:
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def ask(job: dict[str, Any], number: int, start: Any, found: list[dict[str, Any]]) -> None:
    """One client: connects for each `queries`, until the time is over."""
    image, waits = np.zeros((1, *INPUT), np.uint8), [0.0]
    seconds, failed, folder = [], 0, Path(job["folder"])
    stock = folder / f"client{number}" if job["stock"] else None

    def client() -> Client:
        asked = time.monotonic()
        keep = Keep(1000, folder / "hints")
        certificates = folder / "certs" if job["tls"] else None
        host = "localhost" if job["tls"] else "127.0.0.1"
        connected = Client(host, job["port"], certificates, offline=job["offline"], stock=stock, keep=keep)
        waits.append(time.monotonic() - asked)
        return connected

    with client() as first:
        for _ in range(job["stock"]):
            first.session.add_to_stock()
        first.predict(image)
    waits.clear()
    start.wait()
    end = time.monotonic() + job["seconds"]
    while time.monotonic() < end and (not stock or len(seconds) < job["stock"] - 1):
        try:
            with client() as connected:
                for _ in range(job["queries"]):
                    if time.monotonic() > end or (stock and not connected.session.in_stock):
                        break
                    began = time.monotonic()
                    connected.predict(image)
                    seconds.append(time.monotonic() - began)
        except (ValueError, OSError):
            failed += 1
    found.append({"seconds": seconds, "failed": failed, "waits": waits, "until": time.monotonic()})


def clients_of(job: dict[str, Any], numbers: list[int], start: Any, told: Any) -> None:
    """A process of clients."""
    found: list[dict[str, Any]] = []
    threads = [threading.Thread(target=ask, args=(job, number, start, found)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.put(found)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)] if values else math.nan


def measure(job: dict[str, Any], clients: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(clients + 1), context.Queue()
    groups = [list(range(first, min(first + TOGETHER, clients))) for first in range(0, clients, TOGETHER)]
    processes = [context.Process(target=clients_of, args=(job, group, start, told)) for group in groups]
    for process in processes:
        process.start()
    start.wait()
    began = time.monotonic()
    found = [one for _ in processes for one in told.get()]
    for process in processes:
        process.join()
    seconds = [value for one in found for value in one["seconds"]]
    lasted = max(one["until"] for one in found) - began
    return {
        "clients": clients,
        "answers": len(seconds),
        "per_second": round(len(seconds) / lasted, 1),
        **{f"p{int(100 * q)}_ms": round(1e3 * quantile(seconds, q), 1) for q in (0.5, 0.95, 0.99)},
        "mean_ms": round(1e3 * statistics.fmean(seconds), 1) if seconds else None,
        "longest_turn_s": round(max((wait for one in found for wait in one["waits"]), default=0.0), 2),
        "failed": sum(one["failed"] for one in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of the server")
    parser.add_argument("--places", type=int, default=0, help="clients served at once by a process; 0: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row, at most")
    parser.add_argument("--stock", type=int, default=50, help="inferences in each client's stock")
    parser.add_argument("--queries", type=int, default=1000, help="of a connection")
    parser.add_argument("--offline", choices=sorted(modes()), default=DEFAULT)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parelu-clients-") as name:
        folder = Path(name)
        candidate(folder / "candidate", options.offline)
        make_certificates(folder / "certs")
        for processes in options.processes:
            for stock in (options.stock, 0):
                for clients in options.clients:
                    places = options.places or clients
                    with serving(folder, options, processes, places, stock) as port:
                        job = {**vars(options), "folder": name, "port": port, "stock": stock}
                        row = {"processes": processes, "stock": bool(stock), "places": places}
                        print(json.dumps({**row, **measure(job, clients)}), flush=True)


if __name__ == "__main__":
    main()
