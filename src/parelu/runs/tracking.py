"""The epochs of run folders in TensorBoard and MLflow, as they grow (extra `track`).

Folders are read, and nothing in a training knows of it: a tracker may begin late, stop and begin again.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parelu.errors import UserError
from parelu.network.metrics import Metrics
from parelu.runs.folder import Run
from parelu.training.history import Epoch, read_history

IDLE = 60.0  # seconds without a run at work in any folder, after which nothing more is waited for
EVERY = 5.0  # seconds between two looks


class Tracker(abc.ABC):
    """Where curves go. A network is known by the name of its run and its own, such as "seed0/random-100"."""

    @abc.abstractmethod
    def known(self, network: str) -> int:
        """The last epoch that is there already, from 1; 0 where there is none."""

    @abc.abstractmethod
    def add(self, network: str, epochs: Sequence[Epoch]) -> None: ...

    @abc.abstractmethod
    def finish(self, network: str, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """What a trained network is, and what was measured of it; may be called again."""

    def close(self) -> None:
        return


def follow(folders: Sequence[Path], tracker: Tracker, *, idle: float = IDLE, every: float = EVERY) -> int:
    """Hand on what run folders hold, and while runs are at work in them, what comes; returns the number of networks.

    folders: of runs, or that hold some at any depth; idle, every: seconds.

    Raises:
        UserError: there is no run folder.
    """
    seen: dict[Path, tuple[int, ...]] = {}
    sent: dict[str, int] = {}
    last_at_work: float | None = None
    while True:
        runs = _runs(folders)
        if any(map(_is_at_work, runs)):
            last_at_work = time.monotonic()
        for name, place in _networks(runs, folders):
            state = _state(place)
            if seen.get(place) != state:
                seen[place] = state
                _hand_on(tracker, name, place, sent)
        if last_at_work is None or time.monotonic() - last_at_work > idle:
            tracker.close()
            return len(sent)
        time.sleep(every)


def _hand_on(tracker: Tracker, name: str, place: Path, sent: dict[str, int]) -> None:
    epochs = read_history(place)
    sent.setdefault(name, tracker.known(name))
    if new := [epoch for epoch in epochs if epoch.epoch > sent[name]]:
        tracker.add(name, new)
        sent[name] = new[-1].epoch
    if (place / "candidate.json").exists():
        metrics = Run(place.parents[1], {}).candidate(place.name).metrics
        if isinstance(metrics, Metrics):
            tracker.finish(name, _settings(metrics), _figures(metrics))


def _settings(metrics: Metrics) -> dict[str, Any]:
    found = {"method": metrics.method, "steps": metrics.steps, "budget": metrics.budget, "seed": metrics.seed}
    return {name: value for name, value in found.items() if value not in (None, "")} | {"role": metrics.role}


def _figures(metrics: Metrics) -> dict[str, float]:
    return {
        "relus": metrics.relus_and_comparisons,
        "squares": metrics.squares,
        "macs": metrics.macs,
        "final_validation_accuracy": metrics.validation_accuracy,
        "final_test_accuracy": metrics.test_accuracy,
    }


def _runs(folders: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        below = sorted(path.parent for path in folder.rglob("config.json")) if folder.is_dir() else []
        if not below:
            raise UserError(f"{folder} holds no run folder; give one that parelu reduce, sweep or recipe made")
        found += below
    return found


def _networks(runs: Sequence[Path], folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Name and folder of each network and search that has begun."""
    top = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    for run in runs:
        inner = run.resolve().relative_to(top)
        for place in sorted((*run.glob("candidates/*"), *run.glob("searches/*"))):
            search = "search " if place.parent.name == "searches" else ""
            if (place / "metrics.jsonl").exists() or (place / "candidate.json").exists():
                yield str(inner / f"{search}{place.name}"), place


def _state(place: Path) -> tuple[int, ...]:
    times: list[int] = []
    for name in ("metrics.jsonl", "candidate.json"):
        with contextlib.suppress(FileNotFoundError):
            times.append((place / name).stat().st_mtime_ns)
    return tuple(times)


def _is_at_work(run: Path) -> bool:
    try:
        with (run / ".lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


class TensorBoard(Tracker):
    """Event files of one folder, a folder below for each network; those that are there are written anew."""

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("TensorBoard is not installed; run pip install 'parelu[track]'")
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.writer = folder, SummaryWriter
        self.writers: dict[str, Any] = {}

    def known(self, network: str) -> int:
        for old in (self.folder / network).glob("events.out.tfevents.*"):
            old.unlink()
        return 0

    def add(self, network: str, epochs: Sequence[Epoch]) -> None:
        writer = self._writer(network)
        for epoch in epochs:
            for name, value in _scalars(epoch).items():
                writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    def finish(self, network: str, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        writer = self._writer(network)
        writer.add_hparams(dict(settings), dict(figures), run_name=".")
        writer.flush()

    def _writer(self, network: str) -> Any:
        if network not in self.writers:
            self.writers[network] = self.writer(str(self.folder / network))
        return self.writers[network]

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class MLflow(Tracker):
    """An experiment of an MLflow server, an MLflow run for each network; what is there already is not sent again.

    Args:
        address: such as "http://127.0.0.1:5000"; whatever MLflow takes as a tracking URI.
        experiment: its name.

    Raises:
        UserError: MLflow is not installed, or does not answer.
    """

    def __init__(self, address: str, experiment: str) -> None:
        if find_spec("mlflow") is None:
            raise UserError("MLflow is not installed; run pip install 'parelu[track]'")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.client, self.ids = MlflowClient(address), dict[str, str]()
        try:
            found = self.client.get_experiment_by_name(experiment)
            self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)
        except MlflowException as error:
            raise UserError(f"MLflow at {address} does not answer: {str(error).splitlines()[0][:200]}") from error

    def known(self, network: str) -> int:
        label = network.replace('"', "'")
        found = self.client.search_runs([self.experiment], f'tags.parelu = "{label}"', max_results=1)
        if not found:
            made = self.client.create_run(self.experiment, tags={"mlflow.runName": label, "parelu": label})
            self.ids[network] = made.info.run_id
            return 0
        self.ids[network] = found[0].info.run_id
        return max((m.step for m in self.client.get_metric_history(self.ids[network], "loss")), default=0)

    def add(self, network: str, epochs: Sequence[Epoch]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(name, value, now, e.epoch) for e in epochs for name, value in _scalars(e).items()]
        for start in range(0, len(found), 1000):  # as many as MLflow takes at once
            self.client.log_batch(self.ids[network], metrics=found[start : start + 1000])

    def finish(self, network: str, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        for name, value in settings.items():
            self.client.log_param(self.ids[network], name, value)
        for name, value in figures.items():
            self.client.log_metric(self.ids[network], name, value)
        self.client.set_terminated(self.ids[network])


def _scalars(epoch: Epoch) -> dict[str, float]:
    """The numbers of an epoch; a callback may report others."""
    values = {name: value for name, value in epoch.to_json().items() if name != "epoch"}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
