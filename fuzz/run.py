"""Runs the fuzz targets, each in a process of its own, for a time.

    make fuzz                                                 # some minutes for all; SECONDS=3600 for an hour
    PYTHONPATH=src:tests python -m fuzz.run program material --seconds 60
    PYTHONPATH=src:tests python -m fuzz.run program --input build/fuzz/program-crash-1f…

With atheris, inputs are bred by what they reach (libFuzzer); without it, samples are mutated at random. A failure is an
error that the target does not allow, an input that takes too long, or memory beyond `MEMORY`: the input is kept in
build/fuzz, and the exit code is 1. What was found on the way is kept there too and is where the next run starts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

FOUND = Path("build/fuzz")
MEMORY = 4096  # MiB that a target's process may have
INSTRUMENTED = ("parelu.private", "parelu.network", "parelu.data.readers", "fuzz.edits")


def guided(name: str, seconds: int) -> None:
    """Inputs bred by coverage; does not return."""
    import atheris  # pyright: ignore[reportMissingImports]

    os.environ["PARELU_KERNELS"] = "numpy"  # numba does not compile instrumented functions
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from fuzz.corpus import FOLDER
        from fuzz.targets import TARGETS
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    target = TARGETS[name]
    target(b"")  # what is made once takes its time, and is not of the first input
    options = {
        "max_total_time": seconds,
        "timeout": round(target.seconds),
        "rss_limit_mb": MEMORY,
        "artifact_prefix": f"{FOUND}/{name}-",
    }
    folders = [str(FOUND / name), str(FOLDER / name)]
    atheris.Setup([name, *(f"-{key}={value}" for key, value in options.items()), *folders], target)
    atheris.Fuzz()


def mutated(draw: random.Random, samples: list[bytes]) -> bytes:
    """A sample with one to four changes."""
    data = bytearray(draw.choice(samples))
    for _ in range(draw.randint(1, 4)):
        at, other = draw.randint(0, len(data)), draw.choice(samples)
        size = draw.randint(1, 16)
        start = draw.randint(0, len(other))
        match draw.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                data[at:at] = draw.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at : at + size] = other[start : start + size]
            case 4:
                data[at:at] = data[draw.randint(0, at) : at]
            case _:
                data[at : at + 1] = draw.choice([b"\0", b"\xff", b"-1", b"0", b"9" * 30, b"[", b'"', b"null", b"1e99"])
    return bytes(data)


def unguided(name: str, seconds: int) -> None:
    """Samples mutated at random."""
    from fuzz.corpus import samples
    from fuzz.targets import TARGETS

    target, draw, done = TARGETS[name], random.Random(), 0
    target(b"")
    signal.signal(signal.SIGALRM, _too_long)
    known, end = samples(name), time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(draw, known)
        done += 1
        try:
            signal.setitimer(signal.ITIMER_REAL, target.seconds)
            target(data)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10 > MEMORY:
                raise MemoryError(f"more than {MEMORY} MiB")
        except Exception:
            FOUND.mkdir(parents=True, exist_ok=True)
            kept = FOUND / f"{name}-crash-{hashlib.sha1(data).hexdigest()}"
            kept.write_bytes(data)
            traceback.print_exc()
            print(f"#{done} {kept}")
            sys.exit(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"#{done} done")


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError("the input takes too long")


def run_all(names: list[str], seconds: int) -> bool:
    """One process after another, with a line each; whether none failed."""
    good, environment = True, {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in names:
        command = [sys.executable, "-m", "fuzz.run", name, "--seconds", str(max(1, seconds // len(names))), "--here"]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
        said = ended.stdout + ended.stderr
        inputs = max(map(int, re.findall(r"#(\d+)", said)), default=0)
        print(f"{name:<28}{inputs:>10} inputs  {'ok' if not ended.returncode else 'FAILED'}", flush=True)
        if ended.returncode:
            good = False
            print("    " + "\n    ".join(said.strip().splitlines()[-25:]), flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="all by default")
    parser.add_argument("--seconds", type=int, default=240, help="for all of them together")
    parser.add_argument("--input", type=Path, help="run one target once, on this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        (guided if importlib.util.find_spec("atheris") else unguided)(options.targets[0], options.seconds)
        return
    from fuzz.targets import TARGETS

    if options.input:
        accepted = TARGETS[options.targets[0]](options.input.read_bytes())
        print("accepted" if accepted else "refused as documented")
        return
    print("guided by coverage" if importlib.util.find_spec("atheris") else "mutations at random: atheris is missing")
    sys.exit(not run_all(options.targets or list(TARGETS), options.seconds))


if __name__ == "__main__":
    main()
