"""A day in small: clients query one server while parties are killed, connections cut and disks filled.

    python benchmarks/day.py --queries 200 --clients 4 --kills 20 --cuts 50

Each party is a process of its own, with a stock on disk; clients reach the server through a proxy that cuts. What must
hold: every answered query is right, no piece of material is used twice by a party, every wait ends, and a server that
lives through it all does not grow. Prints JSON; exits with 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parelu.network.spec import spec_of
from parelu.private.fresh import noise, untrained
from parelu.private.lowering import reference
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.offline.mode import DEFAULT, Keep, modes, ring_for
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.serving.client import Client
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.serving.stock import Stock

SHAPE, IMAGES, ROOM = (1, 8, 8), 16, 4
TIMEOUT = 20.0  # seconds of silence, of every party
LONGEST = 120.0  # seconds without an answer of anybody: a hang
TOLERANCE = 0.05  # of a logit: truncation's last bits


def note_uses(folder: Path, party: str) -> None:
    """Write the name of each piece that this process takes, before it is used."""
    remove, log = Stock.remove, folder / f"{party}.used"

    def noted(self: Stock, name: bytes) -> bytes:
        content = remove(self, name)
        with log.open("a") as file:
            file.write(f"{self.folder.name} {name.hex()}\n")
        return content

    Stock.remove = noted


def serve(folder: Path, port: int, offline: str) -> None:
    note_uses(folder, "server")
    model = Model(Lowered.load(folder), relus()["sign"], Exact())
    modes()[offline].make(model, Keep(folder=folder / "hints"))
    options = ServerOptions(ROOM, folder / "server", budget=0, timeout=TIMEOUT)
    server = Server(Served(model, modes()[offline], options), ("127.0.0.1", port), options=options)
    print(json.dumps({"memory": memory()}), flush=True)
    server.run()


def query(folder: Path, port: int, number: int, offline: str, seed: int) -> None:
    """Ask until killed: prepare a few, use them, connect again; a line for each answer and each failure."""
    note_uses(folder, f"client{number}")
    images = noise(IMAGES, SHAPE, seed=1)
    expected = np.load(folder / "expected.npy")
    draw, stock, keep = random.Random(seed), folder / f"client{number}", Keep(1000, folder / f"hints{number}")
    while True:
        try:
            with Client("127.0.0.1", port, stock=stock, offline=offline, keep=keep, timeout=TIMEOUT) as client:
                for _ in range(draw.randint(0, 3)):
                    client.session.add_to_stock()
                for _ in range(draw.randint(1, 4)):
                    image = draw.randrange(IMAGES)
                    error = float(np.abs(client.predict(images[image : image + 1])[0] - expected[image]).max())
                    print(json.dumps({"right": error < TOLERANCE, "error": error}), flush=True)
        except (ValueError, OSError) as error:
            print(json.dumps({"failed": str(error)[:100]}), flush=True)
            time.sleep(0.2)


def memory(pid: int | str = "self") -> int:
    """Resident KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0


class Proxy:
    """Passes bytes on; `cut` makes the next connections end after a random number of bytes."""

    def __init__(self, target: int, draw: random.Random) -> None:
        self.target, self.draw, self.waiting, self.cuts = target, draw, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self.listener.accept()
            try:
                theirs = socket.create_connection(("127.0.0.1", self.target), timeout=2)
            except OSError:
                ours.close()
                continue
            left = [float("inf")]
            if self.waiting:
                self.waiting, self.cuts = self.waiting - 1, self.cuts + 1
                left = [10 ** self.draw.uniform(0, 6.3)]
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pass, args=(source, sink, left), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, left: list[float]) -> None:
        try:
            while (body := source.recv(1 << 16)) and left[0] > 0:
                sink.sendall(body[: int(min(len(body), left[0]))])
                left[0] -= len(body)
        except OSError:
            pass
        for end in (source, sink):
            end.close()


class Party:
    """A process and what it says."""

    def __init__(self, *arguments: Any) -> None:
        command = [sys.executable, __file__, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        self.lines: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.lines.append(json.loads(line))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Day:
    """The parties, and what was said by those that are no more."""

    def __init__(self, folder: Path, clients: int, offline: str, seed: int) -> None:
        self.folder, self.offline, self.draw, self.said = folder, offline, random.Random(seed), []
        self.port = free_port()
        self.proxy = Proxy(self.port, self.draw)
        self.server = self._start_server()
        self.clients = [self._start_client(number) for number in range(clients)]

    def _start_server(self) -> Party:
        party = Party("serve", self.folder, self.port, self.offline)
        while not party.lines and party.process.poll() is None:
            time.sleep(0.05)
        return party

    def _start_client(self, number: int) -> Party:
        return Party("query", self.folder, self.proxy.port, number, self.offline, self.draw.randrange(1 << 30))

    def answers(self) -> list[dict[str, Any]]:
        return [*self.said, *(line for client in self.clients for line in client.lines)]

    def right(self) -> int:
        return sum("right" in line for line in self.answers())

    def wait(self, answers: int) -> None:
        """Until there are so many; raises TimeoutError where nobody answers."""
        last, since = self.right(), time.monotonic()
        while (now := self.right()) < answers:
            if now > last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > LONGEST:
                failures = [line["failed"] for line in self.answers() if "failed" in line]
                raise TimeoutError(f"no answer for {LONGEST:g} s, {last} before; last failures: {failures[-5:]}")
            time.sleep(0.02)

    def kill_one(self) -> None:
        victim = self.draw.randrange(len(self.clients) + 1)
        time.sleep(self.draw.random())
        if victim == len(self.clients):
            self.server.kill()
            self.server = self._start_server()
        else:
            self.clients[victim].kill()
            self.said += self.clients[victim].lines
            self.clients[victim] = self._start_client(victim)

    def fill_disk(self) -> None:
        """For a second the server can write no file of more than a few bytes."""
        limits = resource.prlimit(self.server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.server.process.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
        time.sleep(1)
        resource.prlimit(self.server.process.pid, resource.RLIMIT_FSIZE, limits)

    def end(self) -> None:
        for party in (*self.clients, self.server):
            party.kill()


def run(queries: int, clients: int, kills: int, cuts: int, offline: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="parelu-day-") as name:
        folder = Path(name)
        candidate = untrained(spec_of("resnet10 m=2", SHAPE, 10), 0.3, seed=0)
        ring = ring_for(offline)
        lowered = lower(candidate.network(), noise(64, SHAPE, seed=2), candidate.preprocessing, ring=ring)
        lowered.save(folder)
        np.save(folder / "expected.npy", reference.run(lowered, noise(IMAGES, SHAPE, seed=1)).logits)
        started = time.monotonic()
        day = Day(folder, clients, offline, seed)
        try:
            day.wait(clients)
            for kill in range(kills):
                day.proxy.waiting += cuts * (kill + 1) // kills - cuts * kill // kills
                day.kill_one()
                if kill % 5 == 4:
                    day.fill_disk()
                day.wait(min(queries // 2, (kill + 1) * queries // (2 * kills)))
            day.proxy.waiting, undisturbed = 0, max(queries - day.right(), queries // 4)
            sizes = [memory(day.server.process.pid)]
            for _ in range(8):
                day.wait(day.right() + undisturbed // 8)
                sizes.append(memory(day.server.process.pid))
        finally:
            day.end()
        answers = [*day.said, *(line for client in day.clients for line in client.lines)]
        uses = {path.stem: Counter(path.read_text().splitlines()) for path in folder.glob("*.used")}
        return {
            "answered": sum("right" in line for line in answers),
            "wrong": sum(line.get("right") is False for line in answers),
            "largest_error": max(line.get("error", 0.0) for line in answers),
            "failures": Counter(line["failed"][:60] for line in answers if "failed" in line).most_common(8),
            "kills": kills,
            "cuts": day.proxy.cuts,
            "used_of_stocks": sum(uses["server"].values()),
            "used_twice": sum(count > 1 for counter in uses.values() for count in counter.values()),
            "server_memory_kib": sizes,
            "seconds": round(time.monotonic() - started, 1),
        }


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:2] == ["query"]:
        query(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("queries", 200), ("clients", 4), ("kills", 20), ("cuts", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--offline", choices=sorted(modes()), default=DEFAULT)
    result = run(**vars(parser.parse_args()))
    print(json.dumps(result, indent=1))
    sys.exit(result["wrong"] > 0 or result["used_twice"] > 0)


if __name__ == "__main__":
    main()
