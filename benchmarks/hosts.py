"""Private inference between two hosts: network namespaces with links that the kernel shapes, beside our own shaping.

    python benchmarks/hosts.py --repeat 5          as root, on Linux; makes two namespaces and takes them away again

The kernel limits the bandwidth (tbf) and delays (netem) where it has these. The same two processes then run over
loopback, shaped by the channel to what the kernel shapes: what it lacks is said, and left out of both. A line each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from parelu.network.spec import spec_of
from parelu.private.fresh import noise, untrained
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.offline.mode import Keep, modes, ring_for
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.serving.client import Client
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.transport.link import Link, link_of
from parelu.private.transport.tls import make_certificates

MODEL, INPUT, KEEP, PORT = "resnet20", (3, 32, 32), 0.1, 7000
HOSTS = {"parelu-server": "10.77.0.1", "parelu-client": "10.77.0.2"}


def serve(folder: str, host: str, relu: str, offline: str, link: Link) -> None:
    model = Model(Lowered.load(Path(folder)), relus()[relu], Exact())
    modes()[offline].make(model, Keep(folder=Path(folder) / "hints"))
    server = Server(Served(model, modes()[offline]), (host, PORT), Path(folder) / "certs", ServerOptions(link=link))
    print("ready", flush=True)
    server.run()


def ask(folder: str, host: str, relu: str, offline: str, repeat: int, link: Link) -> None:
    images, keep = noise(repeat + 1, INPUT, seed=1), Keep(1000, Path(folder) / "mine")
    with Client(host, PORT, Path(folder) / "certs", offline=offline, relu=relu, keep=keep, link=link) as client:
        client.prepare(repeat + 1)
        times = []
        for image in images:
            started = time.perf_counter()
            client.predict(image[None])
            times.append(time.perf_counter() - started)
    print(json.dumps(times[1:]))


def shell(command: str) -> bool:
    return subprocess.run(command.split(), capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def two_hosts(asked: Link) -> Iterator[Link]:
    """Both namespaces, joined by a link; yields what the kernel shapes of what was asked."""
    server, client = HOSTS
    try:
        if not all(shell(f"ip netns add {name}") for name in HOSTS):
            sys.exit("network namespaces cannot be made here: run as root, on Linux, with ip of iproute2")
        shell(f"ip link add eth0 netns {server} type veth peer name eth0 netns {client}")
        delay = bandwidth = True
        for name, address in HOSTS.items():
            inside = f"ip netns exec {name}"
            shell(f"{inside} ip addr add {address}/24 dev eth0")
            shell(f"{inside} ip link set eth0 up")
            bits = round(asked.bandwidth)
            limit = f"rate {bits}bit burst 64kb latency 400ms"
            bandwidth &= shell(f"{inside} tc qdisc add dev eth0 root handle 1: tbf {limit}")
            delay &= shell(f"{inside} tc qdisc add dev eth0 parent 1: netem delay {500 * asked.round_trip}ms")
        yield Link(asked.bandwidth if bandwidth else 0.0, asked.round_trip if delay else 0.0)
    finally:
        for name in HOSTS:
            shell(f"ip netns del {name}")


def measured(
    folder: str,
    setting: tuple[str, str],
    hosts: tuple[str, str],
    prefixes: tuple[list[str], list[str]],
    repeat: int,
    link: Link,
) -> list[float]:
    """Seconds online of each query; setting: ReLU protocol and offline mode."""
    shaping = json.dumps([link.bandwidth, link.round_trip])
    script, environment = [sys.executable, __file__], {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*prefixes[0], *script, "serve", folder, hosts[0], *setting, shaping],
        text=True,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()
        client = subprocess.run(
            [*prefixes[1], *script, "ask", folder, hosts[0], *setting, str(repeat), shaping],
            text=True,
            check=True,
            stdout=subprocess.PIPE,
            env=environment,
        )
        return json.loads(client.stdout)
    finally:
        server.kill()
        server.communicate()


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["serve"]:
        folder, host, relu, offline, link = sys.argv[2:]
        serve(folder, host, relu, offline, Link(*json.loads(link)))
        return
    if sys.argv[1:2] == ["ask"]:
        folder, host, relu, offline, repeat, link = sys.argv[2:]
        ask(folder, host, relu, offline, int(repeat), Link(*json.loads(link)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--link", type=link_of, default="wan", help="as parelu bench has it, but not loopback")
    parser.add_argument("--offline", choices=sorted(modes()), default="dealer")
    arguments = parser.parse_args()
    inside = tuple(["ip", "netns", "exec", name] for name in HOSTS)
    with tempfile.TemporaryDirectory(prefix="parelu-hosts-") as folder:
        candidate = untrained(spec_of(MODEL, INPUT, 10), KEEP, seed=0)
        lowered = lower(
            candidate.network(), noise(64, INPUT, seed=2), candidate.preprocessing, ring=ring_for(arguments.offline)
        )
        lowered.save(Path(folder))
        make_certificates(Path(folder) / "certs", (*HOSTS.values(), "127.0.0.1"))
        with two_hosts(arguments.link) as shaped:
            said = f"{shaped.bandwidth / 1e6:g} Mb/s, {1e3 * shaped.round_trip:g} ms"
            print(f"the kernel shapes {said} of {arguments.link}", flush=True)
            for relu in ("sign", "fss"):
                setting = relu, arguments.offline
                kernel = measured(folder, setting, tuple(HOSTS.values()), inside, arguments.repeat, Link())
                own = measured(folder, setting, ("127.0.0.1",) * 2, ([], []), arguments.repeat, shaped)
                for name, times in (("two hosts", kernel), ("loopback, shaped by the channel", own)):
                    print(
                        f"{relu:<6}{name:<34}{1e3 * statistics.median(times):>9.1f} ms online "
                        f"({1e3 * min(times):.1f}–{1e3 * max(times):.1f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
