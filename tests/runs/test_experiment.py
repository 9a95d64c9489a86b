"""Experiments with objects in place of names, and executors side by side: the same networks come out."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import TINY, Silent, tiny_experiment

from parelu import data
from parelu.errors import UserError
from parelu.methods.jobs import FRESH, FROM_TEACHER, FromJob, FromKept, FromSearch
from parelu.network.metrics import Metrics, Searched, Tags, metrics_from_json
from parelu.network.spec import spec_of
from parelu.runs.data_source import IN_MEMORY, InMemory, digest, source_of
from parelu.runs.executor import InProcess, Work
from parelu.runs.experiment import run_experiment
from parelu.runs.folder import Run
from parelu.runs.jobs import full_job
from parelu.runs.processes import Processes

BRIEF = dataclasses.replace(TINY, epochs=1)
SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Run:
    """By names, in worker processes."""
    folder = tmp_path_factory.mktemp("named") / "run"
    return run_experiment(tiny_experiment("random", training=BRIEF), folder, Silent(), Processes(2))


def same(a: Run, b: Run) -> bool:
    for record in a.candidates():
        mine, its = a.candidate(record.name), b.candidate(record.name)
        if mine.plan != its.plan or not all(torch.equal(mine.weights[n], its.weights[n]) for n in mine.weights):
            return False
    return len(a.candidates()) == len(b.candidates())


@pytest.mark.parametrize("executor", [InProcess(), Processes(2)], ids=["in process", "processes"])
def test_objects_give_the_networks_of_their_names(executor, named: Run, digits: data.Dataset, tmp_path: Path):
    one = tiny_experiment("random", training=BRIEF)
    one = dataclasses.replace(one, model=SPEC, data=digits, weights=named.candidate("teacher").weights)
    watcher, again = Silent(), Silent()
    run = run_experiment(one, tmp_path / "run", watcher, executor)
    assert same(named, run)
    assert sorted(watcher.trained) == ["random-304", "random-37"], "each with one thread, as the named ones"
    run_experiment(one, tmp_path / "run", again, executor)
    assert again.trained == []


def test_what_is_in_memory_is_part_of_the_configuration(digits: data.Dataset, tmp_path: Path):
    one = dataclasses.replace(tiny_experiment(training=BRIEF), model=SPEC, data=digits)
    assert one.config() | {"model": "resnet10 m=2", "data": "digits"} == {
        **tiny_experiment(training=BRIEF).config(),
        "data_sha256": digest(digits),
    }
    assert one.config()["data"] == IN_MEMORY and one.config()["model"] == SPEC.to_json()
    run = run_experiment(one, tmp_path / "run", Silent(), InProcess())
    labels = digits.train.labels.clone()
    labels[0] = (labels[0] + 1) % 10
    other = dataclasses.replace(digits, train=data.Split(digits.train.images, labels))
    with pytest.raises(UserError, match="data_sha256"):
        run_experiment(dataclasses.replace(one, data=other), tmp_path / "run", Silent(), InProcess())
    weights = dict(run.candidate("teacher").weights)
    with pytest.raises(UserError, match="weights"):
        run_experiment(dataclasses.replace(one, weights=weights), tmp_path / "run", Silent(), InProcess())
    for missing in (None, other):
        with pytest.raises(UserError, match="was trained on a data set in memory"):
            source_of(run, digits.input_shape, missing)
    assert source_of(run, digits.input_shape, digits).load() is digits


def test_what_does_not_fit_is_refused_before_the_folder_is_made(digits: data.Dataset, tmp_path: Path):
    one = dataclasses.replace(tiny_experiment("random", training=BRIEF), data=digits)
    with pytest.raises(UserError, match="reads 3 channels and tells 10 classes apart, digits has 1 and 10"):
        spec = spec_of("resnet10 m=2", (3, 8, 8), 10)
        run_experiment(dataclasses.replace(one, model=spec), tmp_path / "run", Silent(), InProcess())
    with pytest.raises(UserError, match="images and data folder are of a data set's name"):
        dataclasses.replace(one, images=100)
    assert not (tmp_path / "run").exists()


def test_tasks_in_process_leave_its_random_numbers_alone(digits: data.Dataset, tmp_path: Path):
    run, state = Run.start(tmp_path / "run", {}), torch.get_rng_state()
    with InProcess().at(Work(run, InMemory(digits), 0), Silent()) as do:
        do([full_job(SPEC, BRIEF)], 1)
    assert run.candidate("teacher").trained.epochs == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_starts_have_the_keys_and_folders_of_a_run():
    run = Path("run")
    assert (FRESH.key, FRESH.folder(run)) == ("", None)
    assert (FROM_TEACHER.key, FROM_TEACHER.folder(run)) == ("teacher", run / "candidates/teacher")
    assert FromJob("a-both").folder(run) == run / "candidates/a-both"
    for start, key in ((FromSearch("snl", 50), "snl/50"), (FromKept("x"), "x/kept"), (FromKept("x", "y"), "x/y")):
        assert (start.key, start.folder(run)) == (key, run / "searches" / key)


@pytest.mark.parametrize(
    ("tags", "json"),
    [
        (Tags("train"), {"method": "train"}),
        (Tags("deepreduce", "cull S1"), {"method": "deepreduce", "steps": "cull S1", "budget": None}),
        (
            Tags("snl", "", 50, "", Searched(3, 1.5, 80.0)),
            {
                "method": "snl",
                "steps": "",
                "budget": 50,
                "note": "",
                "searched": {"epochs": 3, "seconds": 1.5, "validation_accuracy": 80.0},
            },
        ),
    ],
)
def test_tags_leave_out_what_is_not_there(tags: Tags, json: dict):
    assert tags.to_json() == json and list(tags.to_json()) == list(json)


def test_metrics_survive_their_json(named: Run):
    for record in named.candidates():
        json = record.metrics.to_json()
        assert metrics_from_json(json) == record.metrics and list(metrics_from_json(json).to_json()) == list(json)
        del json["depth"]
        with pytest.raises(UserError, match="the metrics lack depth"):
            metrics_from_json(json)
    assert isinstance(record.metrics, Metrics)
    assert metrics_from_json({}) is None
