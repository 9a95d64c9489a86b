"""The further processes of a server: started, told, restarted when they die, and never left behind.

They accept at the sockets of the process that starts them. Between them goes a pipe: (what, …) each way, and its end
tells a process that the other is gone.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from parelu.private.serving.metrics import Snapshot, added, without_gauges

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a dead process is replaced: twice as long each time
SETTLED = 60.0  # seconds after which one that dies is replaced as soon as the first
LATE = 5.0  # seconds that a process may take longer than it was given
READY, FIGURES, RELOADED, RELOAD = "ready", "figures", "reloaded", "reload"


class Workers:
    """So many processes, each with a thread here that looks after it.

    target: called in each with a pipe and what `arguments` gives then. log: is told of those that die.
    """

    def __init__(
        self, count: int, target: Callable[..., None], arguments: Callable[[], tuple[Any, ...]], log: logging.Logger
    ) -> None:
        self._target, self._arguments, self._log = target, arguments, log
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._pipes: dict[int, Any] = {}
        self._processes: dict[int, Any] = {}
        self._ready: set[int] = set()
        self._figures: dict[int, Snapshot] = {}
        self._gone: Snapshot = []
        self.restarts, self.count, self.cut = 0, count, False
        self._threads = [threading.Thread(target=self._keep, args=(slot,), daemon=True) for slot in range(1, count + 1)]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> int:
        """Processes that serve."""
        return len(self._ready)

    def figures(self) -> list[Snapshot]:
        """Of all, those that are no more among them."""
        with self._lock:
            return [self._gone, *self._figures.values()]

    def tell(self, *message: Any) -> None:
        with self._lock:
            pipes = list(self._pipes.values())
        for pipe in pipes:
            with contextlib.suppress(OSError):
                pipe.send(message)

    def stop(self) -> None:
        """Let them drain; `join` waits for that."""
        self._stopping.set()
        with self._lock:
            processes = list(self._processes.values())
        for process in processes:
            with contextlib.suppress(AttributeError, ProcessLookupError):
                process.terminate()

    def join(self, seconds: float) -> bool:
        """Whether all ended within so many seconds and had cut nobody; those that did not are killed."""
        end = time.monotonic() + seconds + LATE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            late = [process for process in self._processes.values() if process.is_alive()]
        for process in late:
            process.kill()
        for thread in self._threads:
            thread.join()
        return not late and not self.cut

    def _keep(self, slot: int) -> None:
        wait = FIRST_WAIT
        while not self._stopping.is_set():
            started = time.monotonic()
            status = self._one(slot)
            self.cut |= status != 0
            if self._stopping.is_set():
                return
            self.restarts += 1
            wait = FIRST_WAIT if time.monotonic() - started > SETTLED else min(2 * wait, LONGEST_WAIT)
            self._log.error("process %d of this server died (status %s); another starts in %g s", slot, status, wait)
            self._stopping.wait(wait)
            self.cut = False

    def _one(self, slot: int) -> int | None:
        """Start one and listen to it until it ends; returns its status."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=self._target, args=(theirs, *self._arguments()), name=f"parelu serve {slot}")
        with self._lock:
            if self._stopping.is_set():
                ours.close()
                theirs.close()
                return 0
            process.start()
            self._pipes[slot], self._processes[slot] = ours, process
        theirs.close()
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._hear(slot, *ours.recv())
        process.join()
        with self._lock:
            del self._pipes[slot], self._processes[slot]
            self._ready.discard(slot)
            self._gone = added([self._gone, without_gauges(self._figures.pop(slot, []))])
        ours.close()
        status = process.exitcode
        process.close()
        return status

    def _hear(self, slot: int, what: str, *rest: Any) -> None:
        if what == READY:
            self._ready.add(slot)
            self._log.info("process %d of this server is ready (%s)", slot, *rest)
        elif what == FIGURES:
            with self._lock:
                self._figures[slot] = rest[0]
        elif what == RELOADED and rest[0]:
            self._log.error("process %d of this server serves on as before: %s", slot, *rest)


def pins(models: Mapping[str, Any]) -> dict[str, str]:
    """Name → what a client pins, of what a server serves."""
    return {name: served.offer.pin for name, served in models.items()}
