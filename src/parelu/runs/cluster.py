"""Tasks on a Ray cluster, or on a Ray of this machine alone (extra `ray`); what they find and leave is the run folder.

A task that dies with its worker or node is begun anew elsewhere, from its checkpoint. Tasks of a driver that died end
with it; the same command goes on.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import parelu
from parelu.errors import UserError
from parelu.methods.jobs import Task
from parelu.runs.data_source import Named
from parelu.runs.executor import Do, Executor, Watcher, Work
from parelu.runs.processes import ENVIRONMENT
from parelu.training.loop import Progress

RETRIES = 10  # of a task whose worker or node died
PATIENCE = 5.0  # seconds until something listens at the address
JOINED = 60.0  # seconds until a cluster has let this process in
EVERY = 0.5  # seconds between two looks at how tasks move
_connecting = threading.Lock()
TOKEN = ".ray"  # in the run folder, while a run is on: whether a node sees this folder
EXAMPLE = "such as ray, ray:10.0.0.1:6379 or ray:auto,cpus=2,gpus=0.5"


class Stopped(Exception):
    """Tasks were given up because something else failed or was interrupted."""


@dataclasses.dataclass(frozen=True)
class OnRay(Executor):
    """Tasks of a Ray cluster.

    Attributes:
        address: HOST:PORT of its head, or "auto" for the one that this machine is a node of; "" starts a Ray here,
            which ends with this process.
        cpus: of a task, and its threads.
        gpus: of a task, also a part of one; left out, one where the cluster has any.
        stop: set from another thread, to end what waits for tasks.
    """

    address: str = ""
    cpus: int = 1
    gpus: float | None = None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event, compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> OnRay:
        """ "ray[:ADDRESS][,cpus=N][,gpus=N]"; raises `UserError`."""
        where, *shares = text.split(",")
        kind, _, address = where.partition(":")
        known: dict[str, str] = {name: value for name, _, value in (share.partition("=") for share in shares)}
        if kind != "ray" or set(known) - {"cpus", "gpus"}:
            raise UserError(f"--on {text} is no executor; give one {EXAMPLE}")
        try:
            cpus, gpus = int(known.get("cpus", "1")), float(known["gpus"]) if "gpus" in known else None
        except ValueError:
            raise UserError(f"--on {text}: cpus is a whole number and gpus a number, {EXAMPLE}") from None
        if cpus < 1 or (gpus is not None and not 0 <= gpus < math.inf):
            raise UserError(f"--on {text}: cpus is 1 or more, and gpus 0 or more, {EXAMPLE}")
        return cls(address, cpus, gpus)

    @contextmanager
    def at(self, work: Work, watcher: Watcher) -> Iterator[Do]:
        ray = connected(self.address)
        resources = self._share(ray.cluster_resources())
        options = {**resources, "max_retries": RETRIES, "retry_exceptions": False}
        board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        (work.run.path / TOKEN).write_text(token := secrets.token_hex(16))
        shared = ray.put(_absolute(work))
        pending: dict[Any, Task] = {}

        def do(tasks: Sequence[Task], of: int) -> None:
            for task in tasks:
                remote = ray.remote(**options)(_do)
                pending[remote.remote([shared], task, (token, *versions()), self.cpus, board)] = task
            while pending:
                if self.stop.is_set():
                    raise Stopped
                done, _ = ray.wait(list(pending), timeout=EVERY)
                for name, where, progress in _news(ray, board):
                    watcher.moved(name, progress, where)
                for reference in done:
                    task = pending.pop(reference)
                    _result(ray, reference, task)
                    watcher.finished(task.name, work.outcome(task), resumed=False)

        try:
            yield do
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            ray.kill(board)
            (work.run.path / TOKEN).unlink(missing_ok=True)

    def _share(self, resources: dict[str, float]) -> dict[str, float]:
        """Of a task; raises `UserError` where no task would ever start."""
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        asked = self.gpus if self.gpus is not None else min(1.0, gpus)
        for name, share, there in (("cpus", self.cpus, cpus), ("gpus", asked, gpus)):
            if share > there:
                raise UserError(f"a task wants {name}={share:g}, the Ray cluster has {there:g}; lower it in --on")
        return {"num_cpus": self.cpus, "num_gpus": asked}


def connected(address: str) -> ModuleType:
    """Ray, with this process a driver of the cluster; raises `UserError` where there is none."""
    if find_spec("ray") is None:
        raise UserError("Ray is not installed; run pip install 'parelu[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the cluster
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # it would put a function of its own in the place of print
    import ray

    with _connecting:
        if not ray.is_initialized():
            _connect(ray, address)
    return ray


def _connect(ray: ModuleType, address: str) -> None:
    if not address:
        from parelu.network.machine import cores

        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        ray.init(num_cpus=cores(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return
    if address != "auto":
        _check_listens(address)
    _join(ray, address)


def _check_listens(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--on ray:{address}: the address of a Ray cluster is HOST:PORT, {EXAMPLE}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}); start its head there with "
            f"ray start --head --port {port}, or give another --on"
        ) from error


def _join(ray: ModuleType, address: str) -> None:
    """Ray itself waits for minutes and for ever where something else listens."""
    found: list[BaseException | None] = []

    def join() -> None:
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": dict(ENVIRONMENT)},
            )
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(JOINED)
    if not found:
        raise UserError(f"what listens at {address} is no head of a Ray cluster; give the port of its --port in --on")
    if isinstance(found[0], ConnectionError):
        raise UserError(f"no Ray cluster at {address}: {str(found[0]).splitlines()[0]}") from found[0]
    if found[0]:
        raise found[0]


def versions() -> tuple[str, str]:
    """That all of a cluster must have in common, for a task to come out alike wherever it is done."""
    return parelu.__version__, torch.__version__


def _absolute(work: Work) -> Work:
    """The same for a process of another working directory."""
    run, source = dataclasses.replace(work.run, path=work.run.path.resolve()), work.source
    if isinstance(source, Named) and source.folder:
        source = dataclasses.replace(source, folder=source.folder.resolve())
    return dataclasses.replace(work, run=run, source=source)


class _Board:
    """An actor to which tasks report; what is lost with it are bars."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[str, str, Progress]] = {}

    def put(self, name: str, where: str, progress: Progress) -> None:
        self.last[name] = name, where, progress

    def take(self) -> list[tuple[str, str, Progress]]:
        """The last of each task since the last call."""
        found, self.last = list(self.last.values()), {}
        return found


def _news(ray: ModuleType, board: Any) -> list[tuple[str, str, Progress]]:
    try:
        return ray.get(board.take.remote(), timeout=PATIENCE)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return []  # its node died; it starts elsewhere


def _result(ray: ModuleType, reference: Any, task: Task) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise UserError(
            f"{task.name} was killed {RETRIES + 1} times, perhaps for want of memory; "
            "run the same command again to go on"
        ) from error


# --- in a worker ---

_works: dict[str, Work] = {}


def _do(shared: Sequence[Any], task: Task, expected: tuple[str, str, str], threads: int, board: Any) -> None:
    """Do a task of the work that `shared` refers to; its data set is loaded once a worker."""
    import ray

    (reference,) = shared
    if reference.hex() not in _works:
        _works.clear()
        _works[reference.hex()] = ray.get(reference)
    work = _works[reference.hex()]
    where = socket.gethostname()
    _check(work.run.path, expected, where)
    torch.set_num_threads(threads)
    reported = 0.0

    def watch(progress: Progress) -> None:
        nonlocal reported
        if progress.step == progress.steps or time.monotonic() - reported >= EVERY:
            reported = time.monotonic()
            board.put.remote(task.name, where, progress)

    with _alone(work.run.path, task.name):
        if not work.is_finished(task):
            work.do(task, watch)


def _check(folder: Path, expected: tuple[str, str, str], where: str) -> None:
    token, *known = expected
    for name, ours, theirs in zip(("parelu", "torch"), known, versions(), strict=True):
        if ours != theirs:
            raise UserError(f"{name} on {where} is {theirs}, and {ours} where the run was started; install one of them")
    path = folder / TOKEN
    if not path.is_file() or path.read_text() != token:
        raise UserError(f"{where} does not see {folder}; give a --run on a disk that all nodes of the cluster share")


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """One at a time: what ran on a node that was given up may still be at it for a moment."""
    locks = folder / ".locks"
    locks.mkdir(exist_ok=True)
    with (locks / name).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
