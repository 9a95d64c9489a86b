"""Whole sessions whose bytes are spoilt on the way, by thousands: what each party makes of them.

    PYTHONPATH=tests python benchmarks/transcripts.py --sessions 10000 --log transcripts.jsonl
    PYTHONPATH=tests python benchmarks/transcripts.py --sessions 500 --settings dealer/{sign,full,fss}/plain
    PYTHONPATH=tests python benchmarks/transcripts.py --only seal/sign/tls:17

A client reaches a server through a proxy that knows messages (on a plain connection) or TLS records, and spoils one to
four of them anywhere in either direction: bytes flipped, cut, doubled, dropped, swapped, replayed from other sessions,
replaced by garbage, or the connection closed there. What must hold: over TLS no wrong answer is accepted; over either,
every end is an answer or one line on each side within a time limit, and no file, thread, process or memory is left.
On a plain connection an answer may be wrong: how many are is counted.

Each session is a line of the log, and those that stand there are not run again. Exits with 1 where something did not
hold. Equal seeds spoil equal places; what the parties draw is fresh each time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import queue
import random
import re
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError, UserError
from parelu.private.lowering import reference
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.serving import client as client_module
from parelu.private.serving import server as server_module
from parelu.private.serving.client import Client
from parelu.private.serving.log import telling
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.transport import channel, tls

SHAPE, IMAGES = (1, 6, 6), 16
TOLERANCE = 0.05  # of a logit: truncation's last bits
LONGEST = 60  # seconds that a session may take on a busy machine: beyond, it hangs
RECORD, MESSAGE = struct.Struct(">BHH"), channel.HEADER
KINDS = ("flip", "flip", "flip header", "cut", "double", "drop", "swap", "replay", "garbage", "insert", "close")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both parties run. share: of all sessions; patience: seconds of silence that end a connection."""

    offline: str
    relu: str
    tls: bool
    share: float
    patience: float

    def __str__(self) -> str:
        return f"{self.offline}/{self.relu}/{'tls' if self.tls else 'plain'}"


SETTINGS = (
    Setting("dealer", "sign", True, 0.10, 0.25),
    Setting("dealer", "full", True, 0.07, 0.25),
    Setting("dealer", "fss", True, 0.07, 0.25),
    Setting("dealer", "sign", False, 0.07, 0.25),
    Setting("dealer", "full", False, 0.05, 0.25),
    Setting("dealer", "fss", False, 0.04, 0.25),
    Setting("hints", "sign", True, 0.16, 2.0),
    Setting("hints", "full", True, 0.10, 2.0),
    Setting("hints", "fss", True, 0.01, 4.0),
    Setting("hints", "sign", False, 0.08, 2.0),
    Setting("hints", "full", False, 0.04, 2.0),
    Setting("hints", "fss", False, 0.01, 4.0),
    Setting("seal", "sign", True, 0.08, 2.0),
    Setting("seal", "full", True, 0.05, 2.0),
    Setting("seal", "fss", True, 0.005, 4.0),
    Setting("seal", "sign", False, 0.04, 2.0),
    Setting("seal", "full", False, 0.02, 2.0),
    Setting("seal", "fss", False, 0.005, 4.0),
)


class Hang(Exception):
    """A party did not come to an end."""


class Spoiler:
    """Passes one session's bytes on, and spoils `places`: (upwards, number of the message or record) → kind.

    seen: what each direction carried, for later sessions' replays and to know how much there is to spoil.
    """

    def __init__(self, framed: bool, places: dict[tuple[bool, int], str], old: Units, draw: random.Random) -> None:
        self.framed, self.places, self.old, self.draw = framed, places, old, draw
        self.seen: Units = {True: [], False: []}
        self.spoilt: list[str] = []

    def run(self, above: socket.socket, below: socket.socket) -> None:
        """Until both directions have ended."""
        threads = [
            threading.Thread(target=self._pass, args=(*ends, upwards))
            for ends, upwards in (((above, below), True), ((below, above), False))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for end in (above, below):
            end.close()

    def _pass(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        held = b""
        with contextlib.suppress(OSError):
            for number, unit in enumerate(self._units(source)):
                self.seen[upwards].append(unit)
                kind = self.places.get((upwards, number))
                if kind == "swap":
                    self.spoilt.append(kind)
                    held += unit
                    continue
                body = self._spoil(unit, kind, upwards, number) if kind else unit
                sink.sendall(body + held)
                held = b""
                if kind == "close":
                    break
            sink.sendall(held)
        # A party that waits is told by the end of what it reads; one that sends, by the end of what it writes to.
        for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                end.shutdown(how)

    def _units(self, source: socket.socket) -> Iterator[bytes]:
        """Messages or records; at the end, what is left of one."""
        header = MESSAGE if self.framed else RECORD
        with source.makefile("rb") as stream:
            while head := stream.read(header.size):
                body = b""
                if len(head) == header.size:
                    body = stream.read(header.unpack(head)[-1])
                yield head + body

    def _spoil(self, unit: bytes, kind: str, upwards: bool, number: int) -> bytes:
        self.spoilt.append(kind)
        draw, size = self.draw, len(unit)
        match kind:
            case "flip" | "flip header":
                header = MESSAGE.size if self.framed else RECORD.size
                first, stop = (0, header) if kind == "flip header" else (header if size > header else 0, size)
                spoilt = bytearray(unit)
                spoilt[draw.randrange(first, min(stop, size))] ^= 1 << draw.randrange(8)
                return bytes(spoilt)
            case "cut" | "close":
                return unit[: draw.randrange(size)]
            case "double":
                return unit + unit
            case "drop":
                return b""
            case "replay":
                others = self.old[upwards]
                return draw.choice([*others[number : number + 1], *others[-1:], *self.seen[upwards]])
            case "garbage":
                return draw.randbytes(size)
            case _:
                return draw.randbytes(draw.randint(1, 60)) + unit


Units = dict[bool, list[bytes]]


class Pair:
    """A server of one setting that serves all of its sessions, and clients, one after another, through a proxy."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.certificates = setting, folder if setting.tls else None
        lowered = lowered_of(ready(Residual(), SHAPE, lambda u: u < 0.3))
        self.images = images_of(IMAGES, SHAPE, seed=1)
        self.expected = reference.run(lowered, self.images).logits
        self.largest = 2.0 ** (lowered.program.output_bits - 2) * lowered.program.output_unit  # of a logit
        self.lines: queue.Queue[str] = queue.Queue()
        model = Model(lowered, relus()[setting.relu], Exact())
        self.patience = 10.0 * LONGEST  # until the loops are compiled
        mode = modes()[setting.offline]
        options = self._options()
        self.server = Server(
            Served(model, mode, options), ("127.0.0.1", 0), self.certificates, options, log=telling(self.lines.put)
        )
        self.accepting = threading.Thread(target=self.server.run, daemon=True)
        self.accepting.start()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.old: Units = {True: [], False: []}
        self.session({}, random.Random(0))
        self.clean = self.old  # what a session as it should be carries
        self.patience = setting.patience
        self.server.options = self._options()

    def _options(self) -> ServerOptions:
        """Without a budget, and without audits: a client that goes away would be barred before long."""
        return ServerOptions(timeout=self.patience, budget=0, audit=0.0)

    def session(self, places: dict[tuple[bool, int], str], draw: random.Random) -> dict[str, Any]:
        """What became of one session; raises Hang."""
        spoiler = Spoiler(not self.setting.tls, places, self.old, draw)
        proxy = threading.Thread(target=self._carry, args=(spoiler,))
        proxy.start()
        first, count = draw.randrange(IMAGES - 1), 1 + (draw.random() < 0.2)
        started, end, said = time.monotonic(), "refused", ""
        signal.setitimer(signal.ITIMER_REAL, LONGEST if places else 10 * LONGEST)
        try:
            port = self.listener.getsockname()[1]
            with Client(
                "127.0.0.1",
                port,
                self.certificates,
                offline=self.setting.offline,
                relu=self.setting.relu,
                keep=Keep(),  # hints come in each session
                timeout=self.patience,
            ) as client:
                found = client.predict(self.images[first : first + count], batch=count)
                error = float(np.abs(found - self.expected[first : first + count]).max())
                is_in_range = bool((np.abs(found) <= self.largest).all())
                end = "right" if error < TOLERANCE else "wrong" if is_in_range else "out of range"
        except (ProtocolError, UserError) as error:
            said = str(error)
        except Hang:
            end, said = "hang", "the client did not come to an end"
        except Exception as error:
            end, said = "broken", f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            line = self.lines.get(timeout=LONGEST)
        except queue.Empty:
            end, line = "hang", "the server did not come to an end"
        proxy.join(LONGEST)
        if proxy.is_alive():
            end = "hang"
        if "internal error" in line or "\n" in said or "\n" in line or len(said) > 500:
            end = "broken"
        if not places:
            assert end == "right", f"{self.setting}: {end}: {said}; {line}"
        self.old = spoiler.seen
        seconds = round(time.monotonic() - started, 3)
        return {"end": end, "client": said, "server": line, "spoilt": spoiler.spoilt, "seconds": seconds}

    def spoilt(self, number: int, seed: int) -> dict[str, Any]:
        """Session `number` of a seed."""
        draw = random.Random(f"{seed} {self.setting} {number}")
        there = [(upwards, place) for upwards, units in self.clean.items() for place in range(len(units))]
        # Where nothing else is wrong, a plain connection carries flipped bits to the end.
        kinds = ("flip",) if not self.setting.tls and draw.random() < 0.5 else KINDS
        places = {place: draw.choice(kinds) for place in draw.sample(there, min(draw.randint(1, 4), len(there)))}
        return {"setting": str(self.setting), "number": number, **self.session(places, draw)}

    def _carry(self, spoiler: Spoiler) -> None:
        above, _ = self.listener.accept()
        try:
            below = socket.create_connection(("127.0.0.1", self.server.port), timeout=5)
        except OSError:
            above.close()
            return
        below.settimeout(None)
        spoiler.run(above, below)

    def close(self) -> None:
        self.server.close()
        self.accepting.join()
        self.listener.close()


def held() -> dict[str, int]:
    """What this process has: open files, threads, children, KiB of memory."""
    status = Path("/proc/self/status").read_text().splitlines()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
        "children": len(children),
        "memory": next(int(line.split()[1]) for line in status if line.startswith("VmRSS")),
    }


def run(setting: Setting, numbers: list[int], seed: int, log: Path, certificates: Path) -> None:
    """These sessions, a line each; then what the process holds more than after its first fifty."""
    pair = Pair(setting, certificates)
    warm = None
    with log.open("a") as file:
        for done, number in enumerate(numbers, start=1):
            if done == min(50, len(numbers)):
                warm = held()
            file.write(json.dumps(pair.spoilt(number, seed)) + "\n")
            file.flush()
    end = held()
    pair.close()
    with log.open("a") as file:
        grown = {name: end[name] - value for name, value in (warm or end).items()}
        file.write(json.dumps({"setting": str(setting), "sessions": len(numbers), "grown": grown, "held": end}) + "\n")


def work(part: int, parts: int, wanted: dict[str, list[int]], seed: int, log: Path, certificates: Path) -> None:
    """Every `parts`-th of the wanted sessions that the log lacks."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _hang)
    # Both ends stand on one machine: a handshake or a farewell of seconds is none.
    server_module.HANDSHAKE_TIMEOUT, channel.QUIET = 2.0, 0.1
    connect = client_module.connect
    client_module.connect = lambda host, port: connect(host, port, 2.0)
    client_module.Client.renew = lambda self: None  # a session is one connection
    done = {(line["setting"], line["number"]) for line in lines(log) if "number" in line}
    for setting in SETTINGS:
        numbers = wanted.get(str(setting), [])[part::parts]
        left = [number for number in numbers if (str(setting), number) not in done]
        if left:
            run(setting, left, seed, log.with_suffix(f".{part}.jsonl"), certificates)


def shared(sessions: int, settings: Sequence[str]) -> dict[str, list[int]]:
    """Setting → numbers of its sessions, of so many in all, by the settings' shares."""
    chosen = [setting for setting in SETTINGS if str(setting) in settings]
    whole = sum(setting.share for setting in chosen)
    return {str(setting): list(range(round(setting.share / whole * sessions))) for setting in chosen}


def _hang(number: int, frame: Any) -> None:
    raise Hang


def lines(log: Path) -> list[dict[str, Any]]:
    """Of all processes' logs."""
    logs = [path for path in log.parent.glob(f"{log.stem}.*jsonl") if path.is_file()]
    return [json.loads(line) for path in logs for line in path.read_text().splitlines() if line.endswith("}")]


ENDS = {"right": 7, "wrong": 7, "refused": 9, "hang": 6, "broken": 8}  # and the widths of their columns


def table(sessions: list[dict[str, Any]]) -> Iterator[str]:
    """Lines: a setting's sessions, how they ended, and their seconds."""
    titles = "".join(f"{end:>{width}}" for end, width in ENDS.items())
    yield f"{'setting':<18}{'sessions':>9}{titles}{'median s':>10}{'max':>7}"
    for setting in map(str, SETTINGS):
        own = [line for line in sessions if line["setting"] == setting]
        if own:
            ends, seconds = Counter(line["end"] for line in own), sorted(line["seconds"] for line in own)
            counts = "".join(f"{ends[end]:>{width}}" for end, width in ENDS.items())
            yield f"{setting:<18}{len(own):>9}{counts}{seconds[len(seconds) // 2]:>10.2f}{seconds[-1]:>7.1f}"


def reason(line: str) -> str:
    """A party's line without what is different each time."""
    return re.sub(r"\d+", "N", re.sub(r"^[\d.]+:\d+: | ?\(_ssl.*", "", line))[:90] or "(an answer)"


def summary(found: list[dict[str, Any]]) -> bool:
    """Print what became of all sessions; whether all held that must."""
    sessions, grown = [line for line in found if "number" in line], [line for line in found if "grown" in line]
    print(*table(sessions), sep="\n")
    for party in ("client", "server"):
        reasons = Counter(reason(line[party]) for line in sessions)
        print(f"\nthe {party} says", *(f"{count:>7}  {text}" for text, count in reasons.most_common(12)), sep="\n")
    print("\nspoilt", dict(Counter(kind for line in sessions for kind in line["spoilt"]).most_common()))
    print("\nthe most that a process holds more after all of a setting's sessions than after fifty; memory in KiB")
    for setting in map(str, SETTINGS):
        own = [line["grown"] for line in grown if line["setting"] == setting]
        if own:
            print(f"{setting:<18}", {what: max(line[what] for line in own) for what in own[0]})
    bad = [
        line
        for line in sessions
        if line["end"] in ("hang", "broken", "out of range")
        or (line["end"] == "wrong" and line["setting"].endswith("tls"))
    ]
    print(*map(json.dumps, bad[:20]), sep="\n")
    left = [line for line in grown if any(line["grown"][what] > 0 for what in ("files", "threads", "children"))]
    return not bad and not left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("transcripts.jsonl"))
    names = list(map(str, SETTINGS))
    parser.add_argument("--settings", nargs="+", choices=names, default=names, metavar="SETTING", help="these alone")
    parser.add_argument("--only", help="SETTING:NUMBER, a session to run again, with another --log")
    options = parser.parse_args()
    setting, _, number = (options.only or "").rpartition(":")
    wanted = {setting: [int(number)]} if options.only else shared(options.sessions, options.settings)
    with tempfile.TemporaryDirectory(prefix="parelu-transcripts-") as folder:
        tls.make_certificates(Path(folder))
        common = (options.processes, wanted, options.seed, options.log, Path(folder))
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=work, args=(part, *common)) for part in range(options.processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    held_good = summary(lines(options.log)) and not any(worker.exitcode for worker in workers)
    sys.exit(not held_good)


if __name__ == "__main__":
    main()
