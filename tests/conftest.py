"""Runs that several test files look at."""

import fcntl
import json
import os
import queue
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import settings

from parelu.methods.base import methods
from parelu.network.candidate import Candidate
from parelu.runs import experiment, merging
from parelu.runs.executor import InProcess
from parelu.runs.experiment import Experiment, Reduction
from parelu.runs.folder import Run
from parelu.training.loop import Progress
from parelu.training.schedule import Training

# A test's time depends on the machine; how long one example takes says nothing of the code.
settings.register_profile("parelu", deadline=None)
settings.load_profile("parelu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the last file keeps one of two workers waiting for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class Silent:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.read: list[str] = []

    def queued(self, job: object, cost: float) -> None:
        assert cost >= 0

    def moved(self, name: str, progress: Progress, where: str = "") -> None:
        assert 0 < progress.step <= progress.steps

    def finished(self, name: str, candidate: Candidate, *, resumed: bool) -> None:
        (self.read if resumed else self.trained).append(name)


TINY = Training(epochs=2, batch=128, lr=0.1, schedule="one-cycle")


ALL = ("deepreduce", "random", "snip", "uniform")


def tiny_experiment(*names: str, seed: int = 0, training: Training = TINY, **changes: object) -> Experiment:
    reductions = tuple(Reduction(methods()[name](), ("0.5", "37") if name != "deepreduce" else ()) for name in names)
    return Experiment("resnet10 m=2", "digits", reductions, training, seed, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def one_thread_and_an_own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))  # no calibration of this user's


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Silent]:
    """A finished experiment of all methods on digits, 8×8; pytest's worker processes train it once, and copy it."""
    torch.set_num_threads(1)  # it may come before the fixtures of a test: other threads would give other bits
    watcher = Silent()
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return experiment.run_experiment(tiny_experiment(*ALL), folder, watcher, InProcess()), watcher
    shared = tmp_path_factory.getbasetemp().parent / "finished"
    shared.mkdir(exist_ok=True)
    told = shared / "told.json"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            experiment.run_experiment(tiny_experiment(*ALL), shared / "run", watcher, InProcess())
            told.write_text(json.dumps(vars(watcher)))
    vars(watcher).update(json.loads(told.read_text()))
    shutil.copytree(shared / "run", folder)
    return Run.open(folder), watcher


@pytest.fixture(scope="session")
def compiled() -> None:
    """Compiles the protocols' loops, in a fresh clone, which takes longer than some timeouts; then they are cached."""
    from two_parties import Pair, Residual, images_of, lowered_of, ready

    lowered = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.3))
    for offline, relu in (("hints", "sign"), ("seal", "fss"), ("dealer", "fss"), ("dealer", "full")):
        with Pair(lowered, relu, offline, timeout=1200) as pair:
            pair.infer(images_of(1, (1, 6, 6))[0])
        assert pair.server_error is None


@pytest.fixture
def parties_as_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parties of a measurement in this process: to start two costs more than these networks."""
    from parelu.private.engines import parties

    def run(self, folder, options):
        ports = queue.SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            server = pool.submit(parties._server, folder, options, ports.put)
            server.add_done_callback(lambda _: ports.put(None))  # where it fails before it listens
            port = ports.get()
            client = parties._client(folder, options, port) if port else None
            return server.result(), client

    monkeypatch.setattr(parties.Parties, "run", run)


@pytest.fixture
def dealt_base_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions whose base transfers cost nothing, where what comes after them is tested."""
    from base_transfers import deal

    deal(monkeypatch)


@pytest.fixture
def worker_processes() -> None:
    """Jobs in processes of their own, as users have them."""


@pytest.fixture(autouse=True)
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in this process, one after another, unless a test asks for `worker_processes`: starting those takes longer
    than these networks."""
    if "worker_processes" in request.fixturenames:
        return
    monkeypatch.setattr(experiment, "Processes", InProcess)
    monkeypatch.setattr(merging, "Processes", InProcess)
