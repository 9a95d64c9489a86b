"""What a budget on disk, and material that the server acknowledges, cost a query; interleaved in one run.

    python benchmarks/serving.py --repeat 40            --offline hints makes the material with the client

Two servers, a process each, one with its ledger on disk; a client asks each in turn, with material that the connection
has in memory, where nothing is acknowledged, and with material of its stock. Of resnet20 with a tenth of its ReLUs,
online seconds and the part of them before the first byte that depends on the image.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from parelu.network.spec import spec_of
from parelu.private.fresh import noise, untrained
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.offline.mode import Keep, modes, ring_for
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Label
from parelu.private.serving.client import Client
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions

INPUT, KEEP, STOCK = (3, 32, 32), 0.1, 200


def serve(folder: Path, name: str, ledger: Path | None, offline: str, port: Connection) -> None:
    torch.set_num_threads(1)
    model = Model(Lowered.load(folder), relus()["sign"], Label())
    options = ServerOptions(ahead=STOCK, stock=folder / f"{name}-stock", ledger=ledger)
    modes()[offline].make(model, Keep(folder=folder / "hints"))
    server = Server(Served(model, modes()[offline], options), ("127.0.0.1", 0), options=options)
    port.send(server.port)
    server.run()


def asked(client: Client, image: torch.Tensor) -> tuple[float, float]:
    """Seconds of a query, and of it before x − r is sent."""
    traffic = client.session.channel.traffic
    traffic.clear()
    started = time.perf_counter()
    client.predict(image)
    return time.perf_counter() - started, traffic["online", "request"].seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=40, help="queries of each kind")
    parser.add_argument("--offline", choices=sorted(modes()), default="dealer")
    arguments = parser.parse_args()
    repeat, offline = arguments.repeat, arguments.offline
    torch.set_num_threads(1)
    candidate = untrained(spec_of("resnet20", INPUT, 10), KEEP, seed=0)
    image, context = noise(1, INPUT, seed=1), multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="parelu-serving-") as name:
        folder = Path(name)
        ring = ring_for(offline)
        lower(candidate.network(), noise(16, INPUT, seed=0), candidate.preprocessing, ring=ring).save(folder)
        servers, clients, keep = [], {}, Keep(STOCK, folder / "mine")
        for where, ledger in (("in memory", None), ("on disk", folder / "clients.sqlite")):
            ours, theirs = context.Pipe()
            servers.append(context.Process(target=serve, args=(folder, where, ledger, offline, theirs), daemon=True))
            servers[-1].start()
            port = ours.recv()
            for kind in ("prepared", "stock"):
                stock = folder / f"mine-{where}" if kind == "stock" else None
                clients[f"{kind}, ledger {where}"] = Client("127.0.0.1", port, offline=offline, stock=stock, keep=keep)
        for turn in range(repeat + 1):
            for kind, client in clients.items():
                client.session.add_to_stock() if kind.startswith("stock") else client.prepare()
                seconds = asked(client, image)
                if turn:  # one to warm up
                    found.setdefault(kind, []).append(seconds)
        for client in clients.values():
            client.close()
        for server in servers:
            server.terminate()
            server.join()
    base = statistics.median(seconds for seconds, _ in found["prepared, ledger in memory"])
    for kind, measured in found.items():
        whole, before = (sorted(column) for column in zip(*measured, strict=True))
        quarter = len(whole) // 4
        row = {
            "kind": kind,
            "online_ms": round(1e3 * statistics.median(whole), 2),
            "quartiles_ms": [round(1e3 * whole[quarter], 2), round(1e3 * whole[-1 - quarter], 2)],
            "before_the_image_ms": round(1e3 * statistics.median(before), 3),
            "ratio": round(statistics.median(whole) / base, 3),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
