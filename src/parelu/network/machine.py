"""The machine that this process runs on."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The model of the processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def load() -> float:
    """Processes that ran or waited for a core over the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def worked() -> float:
    """CPU seconds of all processes so far, and of other machines on the same processor where those are told; 0 where
    the system does not say."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, first[1:9])  # the others are idle, and waiting for a disk
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def worked_by(processes: Iterable[int]) -> float:
    """CPU seconds of these processes so far, by their ids; 0 where the system does not say."""
    try:
        after_names = (Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in processes)
        return sum(int(fields[11]) + int(fields[12]) for fields in after_names) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def pace() -> float:
    """CPU seconds that a fixed piece of work takes just now, some milliseconds: memory beyond caches, arithmetic."""
    return min(_piece() for _ in range(3))


def _piece() -> float:
    start = time.process_time()
    memory = bytearray(1 << 23)
    memory[:] = bytes(memory)
    hashlib.sha256(memory[: 1 << 21])
    sum(range(100_000))
    return time.process_time() - start
