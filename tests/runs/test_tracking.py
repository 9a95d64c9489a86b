"""What trackers are told of run folders, and what TensorBoard and MLflow then hold."""

import threading
import time
from pathlib import Path

import pytest
from conftest import Silent

from parelu.errors import UserError
from parelu.runs import tracking
from parelu.runs.folder import Run
from parelu.training.history import Epoch, read_history, write_history

EPOCHS = [Epoch(n, 1 / n, {"ce": 0.5, "kept": [1, 2]}, 0.1, 50.0 + n, 2.0) for n in range(1, 6)]


class Kept(tracking.Tracker):
    def __init__(self, known: int = 0) -> None:
        self.start, self.steps, self.done, self.closed = known, {}, {}, False

    def known(self, network):
        return self.start

    def add(self, network, epochs):
        self.steps.setdefault(network, []).extend(epoch.epoch for epoch in epochs)

    def finish(self, network, settings, figures):
        self.done[network] = settings, figures

    def close(self):
        self.closed = True


def begun(folder: Path, count: int = 2) -> Path:
    """A run of which one network has had some epochs."""
    Run.start(folder, {"model": "resnet10 m=2"})
    place = folder / "candidates" / "teacher"
    place.mkdir(parents=True, exist_ok=True)
    write_history(place, EPOCHS[:count])
    return place


def test_a_finished_run_is_handed_on_whole(finished: tuple[Run, Silent]):
    run, _ = finished
    tracker = Kept()
    assert tracking.follow([run.path], tracker) == len(tracker.done) == len(list(run.candidates()))
    for record in run.candidates():
        settings, figures = tracker.done[record.name]
        assert tracker.steps[record.name] == [epoch.epoch for epoch in read_history(run.folder(record.name))]
        assert figures["final_test_accuracy"] == record.metrics.test_accuracy
        assert settings["method"] == record.metrics.method
    assert tracker.closed


def test_what_comes_while_a_run_is_at_work_is_handed_on_once(tmp_path):
    place, tracker = begun(tmp_path / "runs" / "seed0"), Kept()

    def work() -> None:
        with Run.open(place.parents[1]).locked():
            for count in (3, 4, 5):
                time.sleep(0.2)
                write_history(place, EPOCHS[:count])
            time.sleep(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)
    tracking.follow([tmp_path / "runs"], tracker, idle=0.1, every=0.02)
    thread.join()
    assert tracker.steps == {"seed0/teacher": [1, 2, 3, 4, 5]}


def test_what_a_tracker_has_already_is_left_out(tmp_path):
    begun(tmp_path, 5)
    tracker = Kept(known=3)
    tracking.follow([tmp_path], tracker)
    assert tracker.steps == {"teacher": [4, 5]}


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run folder"):
        tracking.follow([tmp_path], Kept())


def test_tensorboard_holds_the_curves_once(tmp_path, finished: tuple[Run, Silent]):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = finished
    for _ in range(2):
        tracking.follow([run.path], tracking.TensorBoard(tmp_path))
    found = EventAccumulator(str(tmp_path / "random-37")).Reload()
    history = read_history(run.folder("random-37"))
    told = [(event.step, round(event.value, 4)) for event in found.Scalars("loss")]
    assert told == [(epoch.epoch, round(epoch.loss, 4)) for epoch in history]
    assert found.Scalars("relus")[0].value == 37


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mlflow_holds_the_curves_once(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = begun(tmp_path / "seed0")
    store = f"file:{tmp_path / 'mlruns'}"
    tracking.follow([tmp_path / "seed0"], tracking.MLflow(store, "one"))
    write_history(place, EPOCHS)
    again = tracking.MLflow(store, "one")
    tracking.follow([tmp_path / "seed0"], again)
    history = again.client.get_metric_history(again.ids["teacher"], "validation_accuracy")
    assert [(m.step, m.value) for m in history] == [(e.epoch, e.validation_accuracy) for e in EPOCHS]
    assert len(again.client.search_runs([again.experiment])) == 1


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TensorBoard is not installed; run pip install 'parelu\[track\]'"):
        tracking.TensorBoard(tmp_path)
    with pytest.raises(UserError, match="MLflow is not installed"):
        tracking.MLflow("http://127.0.0.1:1", "one")
