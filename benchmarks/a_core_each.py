"""Commands side by side, a core each: two trainings of one thread each do more than one of two."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import subprocess
from collections.abc import Iterable
from pathlib import Path


def run(commands: Iterable[tuple[str, list[str], Path]]) -> None:
    """Run each command, and say how it ended. A command is what it is called, its words and where its output goes."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in os.sched_getaffinity(0):
        free.put(core)

    def one(command: tuple[str, list[str], Path]) -> tuple[str, int]:
        name, words, log = command
        core = free.get()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            done = subprocess.run(
                words,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        free.put(core)
        return name, done.returncode

    with concurrent.futures.ThreadPoolExecutor(free.qsize()) as pool:
        for name, code in pool.map(one, commands):
            print(f"{name}: {'done' if code == 0 else f'exit code {code}'}", flush=True)
