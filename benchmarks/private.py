"""Private inference: what a ReLU costs, whether a ReLU cut pays, and how far other engines and the floors are.

    python benchmarks/private.py --peers semi2k crypten --repeat 5 --json private.json

One run on one machine, two processes with a core each over loopback; what is compared alternates, and a ratio is the
median over the repetitions, with its range. Networks have fresh weights: a speed needs no training. `--peers` runs
other engines: SPU's on the same networks, CrypTen on one of the same kind (`crypten_peer.py`); both get environments of
their own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crypten_peer
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.private.bench import bench
from parelu.private.crypto import carries
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import fresh_seed
from parelu.private.crypto.ring import LinearMap
from parelu.private.fresh import fresh, noise, untrained
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.lowering.ops import Activation, Conv
from parelu.private.offline.mode import ring_for

MODEL, INPUT, SITE = "resnet20", (3, 32, 32), (1, 250, 400)
IMAGES, FEW = 10, 3
DELPHI_RELU = 21.9e-6  # seconds online a ReLU, 18.3 of the client's and 3.6 of the server's: Mishra et al. 2020


def one_site() -> nn.Module:
    """A site of 100,000 ReLUs."""
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))


@dataclasses.dataclass(frozen=True)
class Case:
    """A network ready to be measured, with the settings of `bench`."""

    lowered: Lowered
    candidate: Candidate
    images: torch.Tensor
    settings: dict[str, str]
    kernels: str = "numba"

    def row(self) -> dict[str, Any]:
        """One measurement; the offline phase is dealt where the settings name no other."""
        with environment("PARELU_KERNELS", self.kernels):
            return bench(self.lowered, self.candidate, self.images, **{"offline": "dealer", **self.settings}).to_json()


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """The variable set, for the processes that start meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def site_case(relu: str, bits: int, kernels: str = "numba") -> Case:
    """100,000 ReLUs whose inputs have `bits` bits."""
    case = _case(untrained(spec_of(f"{Path(__file__).stem}:one_site", SITE, 2), 1.0, seed=0), relu=relu)
    return dataclasses.replace(case, lowered=_with_bits(case.lowered, [bits]), kernels=kernels)


def network_case(keep: float, **settings: str) -> Case:
    """ResNet20 with a random mask."""
    return _case(untrained(_spec(), keep, seed=0), **settings)


def varied(case: Case, kernels: str = "numba", **settings: str) -> Case:
    """The same network under other settings, on fewer images."""
    return dataclasses.replace(case, images=case.images[:FEW], settings=settings, kernels=kernels)


def widened(case: Case, bits: int, **settings: str) -> Case:
    """The same network, whose ReLUs all work on so many bits, on fewer images."""
    return dataclasses.replace(varied(case, **settings), lowered=_with_bits(case.lowered, [bits] * len(_bits(case))))


def contiguous(case: Case) -> Case:
    """As many ReLUs in each site, and as many bits, but all next to each other."""
    masks = {
        name: torch.arange(site.mask.numel()).view(site.mask.shape) < int(site.mask.sum())
        for name, site in case.candidate.network().sites.items()
    }
    other = _case(fresh(_spec(), Plan.from_masks(masks)), **case.settings)
    return dataclasses.replace(other, lowered=_with_bits(other.lowered, _bits(case)))


def _spec() -> Any:
    return spec_of(MODEL, INPUT, 10)


def _case(candidate: Candidate, **settings: str) -> Case:
    images = noise(IMAGES, candidate.spec.input, seed=1)
    ring = ring_for("seal")  # every offline mode computes in it: they are compared on one program
    return Case(lower(candidate.network(), images, candidate.preprocessing, ring=ring), candidate, images, settings)


def _bits(case: Case) -> list[int]:
    """Of its activations, in order."""
    return [op.bits for op in case.lowered.program.ops if isinstance(op, Activation)]


def _with_bits(lowered: Lowered, bits: list[int]) -> Lowered:
    """The program with these bits for its activations, in order."""
    left = iter(bits)
    ops = tuple(
        dataclasses.replace(op, bits=next(left)) if isinstance(op, Activation) else op for op in lowered.program.ops
    )
    return dataclasses.replace(lowered, program=dataclasses.replace(lowered.program, ops=ops))


def alternate(cases: dict[str, Case], repeat: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of each case, one after the other, `repeat` times."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for turn in range(repeat):
        for name, case in cases.items():
            rows[name].append(case.row())
            print(
                f"  {turn + 1}/{repeat} {name}: {1e3 * rows[name][-1]['online']['seconds']:.1f} ms online",
                file=sys.stderr,
                flush=True,
            )
    return rows


def peers(engines: list[str], cases: dict[float, Case], repeat: int) -> list[dict[str, Any]]:
    """Rows of other engines, `repeat` inferences of each share of ReLUs."""
    found = []
    for engine in engines:
        if engine == "crypten":
            found += crypten_peer.rows(list(cases), repeat)
            continue
        for keep, case in cases.items():
            images = noise(repeat, case.candidate.spec.input, seed=1)
            row = dataclasses.replace(case, images=images, settings={"engine": f"spu-{engine}"}).row()
            found.append(
                {
                    **row,
                    "keep": keep,
                    "median": row["total"]["seconds"],
                    **{name: row["total"][name] for name in ("bytes_to_client", "bytes_to_server")},
                }
            )
    return found


def floors(case: Case) -> dict[str, float]:
    """What this machine cannot go below: seconds of a block of AES and of the linear layers' products, on one core."""
    hash, count = Hash(fresh_seed()), 1 << 12
    scratch = hash.scratch(2, count)
    scratch.operands[:] = 0
    block = _best(lambda: hash._permute(scratch.flat_operands, scratch.inner)) / (2 * count)
    left, out = np.random.default_rng(0).random((2, 512, 512))
    with threadpool_limits(1):
        rate = 2 * 512**3 / _best(lambda: np.matmul(left, left, out=out))
    flops, program = 0.0, case.lowered.program
    for number, op in enumerate(program.ops):
        if isinstance(op, Conv):
            weight = case.lowered.weights[number]["weight"]
            limbs = LinearMap(weight, op.stride, op.padding, op.groups, program.ring).count
            flops += 2.0 * limbs * weight.size * np.prod(program.shapes[number + 1][1:])
    return {"aes_block": block, "flops_a_second": rate, "linear_flops": flops, "linear": flops / rate}


def _best(work: Callable[[], Any], times: int = 50) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(times))


def ratios(over: list[float], under: list[float]) -> str:
    """Median and range of the quotients, pair by pair."""
    found = sorted(a / b for a, b in zip(over, under, strict=True))
    return f"{statistics.median(found):.2f}  ({found[0]:.2f}–{found[-1]:.2f})"


def online(rows: list[dict[str, Any]]) -> list[float]:
    """Seconds online."""
    return [row["online"]["seconds"] for row in rows]


def relu_text(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each protocol: microseconds and bytes a ReLU."""
    lines = [
        f"{'ReLU, 100,000 at once':<36}{'online µs':>10}{'range':>14}{'CPU c + s':>12}{'bytes':>8}{'offline B':>11}"
    ]
    for name, found in rows.items():
        site = [
            next(r for r in row["layers"] if r["phase"] == "online" and r.get("bytes_to_client", 0) > 1e5)
            for row in found
        ]
        scale = 1e6 / found[0]["relus"]
        wall = sorted(s["seconds_client"] * scale for s in site)
        cpu = [statistics.median(s[f"cpu_{party}"] * scale for s in site) for party in ("client", "server")]
        sent = (site[0]["bytes_to_client"] + site[0]["bytes_to_server"]) / found[0]["relus"]
        offline = found[0]["offline"]
        before = (offline["bytes_to_client"] + offline["bytes_to_server"]) / found[0]["relus"]
        lines.append(
            f"{name:<36}{statistics.median(wall):>10.2f}{f'{wall[0]:.2f}–{wall[-1]:.2f}':>14}"
            f"{f'{cpu[0]:.2f} + {cpu[1]:.2f}':>12}{sent:>8.0f}{before:>11.0f}"
        )
    return "\n".join(lines)


def network_text(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each case."""
    lines = [
        f"{MODEL + ', 32×32':<36}{'ReLUs':>9}{'online ms':>11}{'range':>14}{'CPU c + s':>12}{'MB down/up':>13}"
        f"{'offline ms':>12}{'MB down/up':>13}"
    ]
    for name, found in rows.items():
        wall = sorted(1e3 * s for s in online(found))
        cpu = [statistics.median(1e3 * r["online"][f"cpu_{party}"] for r in found) for party in ("client", "server")]
        size = {
            phase: "/".join(f"{found[0][phase][f'bytes_to_{to}'] / 1e6:.2f}" for to in ("client", "server"))
            for phase in ("online", "offline")
        }
        offline = statistics.median(1e3 * r["offline"]["seconds"] for r in found)
        lines.append(
            f"{name:<36}{found[0]['relus']:>9,}{statistics.median(wall):>11.1f}"
            f"{f'{wall[0]:.1f}–{wall[-1]:.1f}':>14}{f'{cpu[0]:.0f} + {cpu[1]:.0f}':>12}{size['online']:>13}"
            f"{offline:>12.0f}{size['offline']:>13}"
        )
    return "\n".join(lines)


def peer_text(
    rows: list[dict[str, Any]], ours: dict[float, list[dict[str, Any]]], alone: dict[float, list[dict[str, Any]]]
) -> str:
    """A line for each engine: its seconds, and how many times ours, online, with the dealt offline phase, and with the
    one of mode `hints`, `alone`.
    """
    lines = [
        f"{'engine':<24}{'ReLUs':>9}{'seconds':>9}{'range':>14}{'MB':>7}{'÷ ours online':>15}{'÷ with dealt':>14}"
        f"{'÷ with hints':>14}"
    ]
    for row in rows:
        mine = ours[row["keep"]]
        whole, without_dealer = (
            statistics.median(r["total"]["seconds"] for r in found) for found in (mine, alone[row["keep"]])
        )
        fast, size = statistics.median(online(mine)), (row["bytes_to_client"] + row["bytes_to_server"]) / 1e6
        span = f"{min(row['seconds']):.2f}–{max(row['seconds']):.2f}"
        times = [row["median"] / seconds for seconds in (fast, whole, without_dealer)]
        lines.append(
            f"{row['engine']:<24}{row['relus']:>9,}{row['median']:>9.2f}{span:>14}{size:>7.1f}"
            f"{times[0]:>15.0f}{times[1]:>14.1f}{times[2]:>14.2f}"
        )
    return "\n".join(
        [
            *lines,
            *sorted({f"  {row['engine']}: {row['threat_model']}" for row in rows}),
            f"  ours: {ours[1.0][0]['threat_model']}",
        ]
    )


def summary(
    sites: dict[str, list[dict[str, Any]]], networks: dict[str, list[dict[str, Any]]], floor: dict[str, float]
) -> str:
    """The ratios that are promised, and the distance to the floors."""
    all_, tenth, packed = (online(networks[name]) for name in ("all", "10 %", "10 %, contiguous"))
    found = sites["sign, m = 32"]
    wall = statistics.median(r["online"]["seconds"] / r["relus"] for r in found)
    rows = sum(carries.part_bytes(1 << 13, 32, 0)) / (1 << 13) + 8
    linear = [
        statistics.median(
            sum(
                r["cpu_server"]
                for r in row["layers"]
                if r["phase"] == "online" and "bytes_to_client" not in r and "cpu_client" not in r
            )
            for row in networks[name]
        )
        for name in ("all", "10 %")
    ]
    same = all(
        a["online"][what] == b["online"][what]
        for a, b in zip(networks["10 %"], networks["10 %, contiguous"], strict=True)
        for what in ("bytes_to_client", "bytes_to_server", "rounds")
    )
    return "\n".join(
        [
            f"all ReLUs ÷ a tenth, online                  {ratios(all_, tenth)}    target ≥ 3, aim 5",
            f"scattered ÷ contiguous mask, online          {ratios(tenth, packed)}    target ≤ 1.2; "
            f"bytes and rounds {'the same' if same else 'DIFFER'}",
            f"DELPHI's published ReLU ÷ sign at m = 32     {DELPHI_RELU / wall:.1f}    target ≥ 6 (other hardware)",
            f"sign at m = 32: {1e6 * wall:.2f} µs a ReLU; its rows and correction are {rows:.0f} B",
            f"linear layers: the server's CPU {1e3 * linear[0]:.1f} ms at all ReLUs, {1e3 * linear[1]:.1f} ms in two "
            f"parts at a tenth; {floor['linear_flops'] / 1e6:.0f} MFLOP at {floor['flops_a_second'] / 1e9:.0f} GFLOP/s "
            f"are {1e3 * floor['linear']:.1f} ms",
        ]
    )


def fss_text(
    sites: dict[str, list[dict[str, Any]]], networks: dict[str, list[dict[str, Any]]], floor: dict[str, float]
) -> str:
    """What is promised of `fss`: beside `sign` with the same bits on the shaped WAN, and its distance to the floor."""
    wide, calibrated = (
        ratios(online(networks[f"all{bits}, WAN"]), online(networks[f"all{bits}, fss, WAN"]))
        for bits in (", m = 32", "")
    )
    found = sites["fss, m = 32"]
    wall = statistics.median(r["online"]["seconds"] / r["relus"] for r in found)
    return "\n".join(
        [
            f"sign ÷ fss, all ReLUs, WAN, m = 32           {wide}    target ≥ 5",
            f"sign ÷ fss, all ReLUs, WAN, calibrated m     {calibrated}    target ≥ 3",
            f"fss at m = 32: {1e6 * wall:.2f} µs a ReLU, target ≤ 2, aim 1; its AES blocks alone take each party "
            f"{1e6 * 2 * 31 * floor['aes_block']:.2f} µs, at the same time",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", default=[], choices=["semi2k", "cheetah", "crypten"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    sys.modules.setdefault(Path(__file__).stem, sys.modules["__main__"])
    torch.set_num_threads(1)
    every, tenth = network_case(1.0), network_case(0.1)
    calibrated = max(_bits(every))
    sites = alternate(
        {f"{relu}, m = {bits}": site_case(relu, bits) for bits in (32, 20, calibrated) for relu in ("sign", "fss")}
        | {
            "full": site_case("full", 32),
            "sign, m = 32, numpy kernels": site_case("sign", 32, "numpy"),
            "fss, m = 32, numpy kernels": site_case("fss", 32, "numpy"),
        },
        arguments.repeat,
    )
    print(relu_text(sites), end="\n\n", flush=True)
    networks = alternate({"all": every, "10 %": tenth, "10 %, contiguous": contiguous(tenth)}, arguments.repeat)
    others = peers(arguments.peers, {0.1: tenth, 1.0: every}, arguments.repeat)
    again = alternate({"all": every, "10 %": tenth}, arguments.repeat) if others else {}
    variants: dict[str, dict[str, str]] = {
        "full": {"relu": "full"},
        "offline hints": {"offline": "hints"},
        "offline seal": {"offline": "seal"},
        "numpy kernels": {"kernels": "numpy"},
        "LAN": {"link": "lan"},
        "WAN": {"link": "wan"},
        "fss": {"relu": "fss"},
        "fss, WAN": {"relu": "fss", "link": "wan"},
    }
    networks |= alternate(
        {
            f"{share}, {name}": varied(case, **settings)
            for name, settings in variants.items()
            for share, case in (("all", every), ("10 %", tenth))
        }
        | {
            "all, m = 32, WAN": widened(every, 32, link="wan"),
            "all, m = 32, fss, WAN": widened(every, 32, relu="fss", link="wan"),
        },
        max(1, arguments.repeat // 2),
    )
    print(network_text(networks), end="\n\n", flush=True)
    if others:
        ours = {keep: networks[name] + again[name] for keep, name in ((1.0, "all"), (0.1, "10 %"))}
        alone = {keep: networks[f"{name}, offline hints"] for keep, name in ((1.0, "all"), (0.1, "10 %"))}
        print(peer_text(others, ours, alone), end="\n\n", flush=True)
    floor = floors(tenth)
    print(summary(sites, networks, floor), fss_text(sites, networks, floor), sep="\n")
    if arguments.json:
        content = {
            "cores": os.cpu_count(),
            "floors": floor,
            "sites": sites,
            "networks": networks,
            "again": again,
            "peers": others,
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
